"""Which folder, table or column value is the training, the validation and the test split, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ...config.schema import DataConfig
from ...registry import UserError, nearest

ROLES = ("train", "val", "test")
NONE = "none"  # the value of data.val_split and data.test_split for no such split
_WORDS = {
    "train": "train training trainset traindata trn",
    "val": "val valid validation validate validating valset dev eval evaluation",
    "test": "test testing testset testdata tst",
}
_ROLE_OF = {word: role for role, words in _WORDS.items() for word in words.split()}
_FILLERS = (
    "set sets data dataset split splits image images img imgs photo photos picture pictures file files folder"
)


def role_of(name: str, loose: bool = False) -> str | None:
    """Return train, val or test if that is what a name says, whatever its case; else None.

    Args:
        name: Such as "Training", "test_images", "train2017" or "valid".
        loose: Also take names with one other word, such as "seg_train".

    >>> [role_of(name) for name in ("Training", "test-images", "seg_train", "cat")]
    ['train', 'test', None, None]
    >>> role_of("seg_train", loose=True)
    'train'
    """
    words = re.findall("[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    roles = {_ROLE_OF[word] for word in words if word in _ROLE_OF}
    others = [word for word in words if word not in _ROLE_OF and word not in _FILLERS.split()]
    return roles.pop() if len(roles) == 1 and (not others or (loose and len(others) == 1)) else None


def roles_of(names: Iterable[str]) -> dict[str, str]:
    """Return the names that are splits with their roles.

    Names with another word ("seg_train") count only where there are a training split and another one of that kind.
    """
    names = list(names)
    strict = {name: role for name in names if (role := role_of(name))}
    loose = {name: role for name in names if (role := role_of(name, loose=True))}
    whole = "train" in loose.values() and len(set(loose.values())) > 1
    return loose if "train" not in strict.values() and whole else strict


def choose_split_names(available: Iterable[str], config: DataConfig) -> dict[str, str]:
    """Return which of the available splits is train, val and test; each may be missing, but not all.

    A task with a validation split and no test split is tested on the validation split.

    Raises:
        UserError: A split that the config names does not exist, several names have one role, or no name has one.
    """
    available = list(available)
    chosen: dict[str, str] = {}
    for role in ROLES:
        asked = getattr(config, f"{role}_split")
        if asked not in (None, NONE) and asked not in available:
            raise UserError(f"data.{role}_split: there is no split {asked!r}; {nearest(asked, available)}")
        if asked not in (None, NONE):
            chosen[role] = asked
    roles = roles_of(name for name in available if name not in chosen.values())
    for role in ("train", "test", "val"):
        if role not in chosen and getattr(config, f"{role}_split") != NONE:
            found = the_split(roles, role)
            chosen |= {role: found} if found else {}
    if "train" not in chosen and not (chosen.keys() and config.train_split is None):
        raise UserError(f"there is no split 'train'; set data.train_split to one of: {', '.join(available)}")
    if "test" not in chosen and "val" in chosen and config.val_split is None and config.test_split != NONE:
        chosen["test"] = chosen.pop("val")
    if len(set(chosen.values())) < len(chosen):
        raise UserError(
            f"one split has two roles: {chosen}; give data.train_split, val_split, test_split their own"
        )
    return chosen


def the_split(roles: Mapping[str, str], role: str) -> str | None:
    """Return the only name of a role, or None.

    Raises:
        UserError: Several names have the role.
    """
    found = [name for name, own in roles.items() if own == role]
    if len(found) > 1:
        names = " and ".join(repr(name) for name in found)
        raise UserError(f"{names} can each be the {role} split; set data.{role}_split to one of them")
    return found[0] if found else None
