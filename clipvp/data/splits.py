"""Which images train, validate and test: pure functions on labels, each with a seed of its own.

Each class has one seeded order. Training images come from its front, validation images from its back, so
fewer shots are a subset of more shots, and the two never meet. No global random state is touched.
"""

from __future__ import annotations

import numpy as np

# What a choice is for keys its random numbers, so that no two choices share them.
TRAIN, VAL, TEST, MAX_TEST = 1, 2, 3, 4
FIXED_SEED = 0  # of choices that must not move with the run's seed


def apportion(total: int, sizes: np.ndarray, low: np.ndarray | int, high: np.ndarray) -> np.ndarray:
    """Share ``total`` among classes in proportion to ``sizes``, by largest remainder within bounds.

    Args:
        total: What to share; less is shared when ``high`` allows less, more when ``low`` asks more.
        sizes: (T,) weight of each class.
        low: The least a class gets, where ``high`` allows it.
        high: (T,) the most a class gets.

    Returns:
        (T,) int64. Ties go to the lowest class.
    """
    low = np.minimum(low, high)
    total = int(np.clip(total, low.sum(), high.sum()))
    quota = total * sizes / max(1, sizes.sum())
    shares = np.clip(np.floor(quota).astype(np.int64), low, high)
    while shares.sum() < total:
        shares[np.argmax(np.where(shares < high, quota - shares, -np.inf))] += 1
    while shares.sum() > total:
        shares[np.argmin(np.where(shares > low, quota - shares, np.inf))] -= 1
    return shares


def class_orders(labels: np.ndarray, num_classes: int, purpose: int, seed: int) -> list[np.ndarray]:
    """Return for each class its rows in a random order that depends on nothing but the arguments."""
    by_class = np.split(
        np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=num_classes))
    )
    return [
        np.random.default_rng([purpose, seed % 2**64, label]).permutation(by_class[label])
        for label in range(num_classes)
    ]


def choose_stratified(
    labels: np.ndarray, num_classes: int, total: int, purpose: int, seed: int = FIXED_SEED
) -> np.ndarray:
    """Return ``total`` rows (all when there are fewer), the classes' shares kept, in ascending order."""
    sizes = np.bincount(labels, minlength=num_classes)
    low = 1 if total >= np.count_nonzero(sizes) else 0
    return _fronts(class_orders(labels, num_classes, purpose, seed), apportion(total, sizes, low, sizes))


def choose_shots(labels: np.ndarray, num_classes: int, shots: int, purpose: int, seed: int) -> np.ndarray:
    """Return ``shots`` rows a class (all of a smaller class), in ascending order."""
    sizes = np.bincount(labels, minlength=num_classes)
    return _fronts(class_orders(labels, num_classes, purpose, seed), np.minimum(sizes, shots))


def carve_test(labels: np.ndarray, num_classes: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (train rows, test rows): a stratified test share, the same for every run seed.

    Every class keeps at least one training row.
    """
    sizes = np.bincount(labels, minlength=num_classes)
    num_test = apportion(max(1, round(len(labels) * share)), sizes, 0, np.maximum(sizes - 1, 0))
    orders = class_orders(labels, num_classes, TEST, FIXED_SEED)
    return _fronts(orders, sizes - num_test), _backs(orders, num_test)


def choose_train(
    labels: np.ndarray,
    num_classes: int,
    *,
    seed: int,
    shots: int | None = None,
    max_train: int | None = None,
    val: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (train rows, val rows) of a pool of P images, both in ascending order, never overlapping.

    - ``shots`` k: k rows a class to train on, min(k, 4) a class to validate on; a class too small for
      both trains first.
    - ``max_train`` m: m rows to train on, every class at least one, and round(m * val / (1 - val)) further
      ones to validate on.
    - neither, or an m that would leave less than the validation share: round(P * val) rows validate (at
      least one), the rest trains.

    With ``val`` 0 nothing validates; that moves no training row of ``shots`` or a small ``max_train``.
    """
    sizes = np.bincount(labels, minlength=num_classes)
    orders = class_orders(labels, num_classes, TRAIN, seed)
    if shots is not None:
        num_train = np.minimum(sizes, shots)
        num_val = np.minimum(sizes - num_train, min(shots, 4)) if val else np.zeros_like(sizes)
        return _fronts(orders, num_train), _backs(orders, num_val)
    pool_val = max(1, round(len(labels) * val)) if val else 0
    if max_train is not None and max_train <= len(labels) - pool_val:
        num_train = apportion(max_train, sizes, 1, sizes)
        wanted = max(1, round(max_train * val / (1 - val))) if val else 0
        num_val = apportion(wanted, sizes, 0, sizes - num_train)
    else:
        num_val = apportion(pool_val, sizes, 0, np.maximum(sizes - 1, 0))
        num_train = sizes - num_val
    return _fronts(orders, num_train), _backs(orders, num_val)


def _fronts(orders: list[np.ndarray], counts: np.ndarray) -> np.ndarray:
    return np.sort(np.concatenate([order[:count] for order, count in zip(orders, counts, strict=True)]))


def _backs(orders: list[np.ndarray], counts: np.ndarray) -> np.ndarray:
    return np.sort(
        np.concatenate([order[len(order) - count :] for order, count in zip(orders, counts, strict=True)])
    )
