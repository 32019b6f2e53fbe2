"""What a sweep tries: keys of the config, the values that each may take, and which of them a trial has.

Nothing here imports Optuna or torch: a wrong space is told before either loads.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any

from ..config.schema import SECTIONS, RunConfig
from ..config.values import from_dict, to_dict
from ..registry import UserError, check_choice, check_positive, nearest

SAMPLERS, PRUNERS = ("tpe", "random", "grid"), ("asha", "median", "none")
DEFAULT_TRIALS = 20
_MOST_GRID = 10_000
# Sections and keys that stay the same in all trials, and why.
_FIXED = {
    **dict.fromkeys(("data", "seed"), "all trials validate on the same images"),
    "train.protocol": "trials are chosen by validation",
    "train.test_every_epoch": "no trial sees the test set",
    **dict.fromkeys(("output", "resume", "overwrite", "plugins", "sweep"), "it says how the sweep runs"),
}


@dataclass
class SweepConfig:
    """The search.

    Args:
        space: Dotted keys and what each may be: a list of values, or {low: 0.001, high: 0.1} with log: true or a step.
            A trial leaves out the keys that its choices do not have, such as mapping.top_k beside mapping.kind: linear.
        sampler: tpe (tree-structured Parzen estimator), random or grid (every combination).
        pruner: What stops trials early by the validation accuracy of their epochs: asha (successive halving: at epochs
            m, 3m, 9m, ... the best third goes on), median (below the median of the trials before, from the sixth trial
            on) or none.
        trials: Trials of all workers together; 20 when empty, with grid all combinations.
        min_epochs: Epochs m that no trial is stopped before.
        storage: Where the trials are recorded: a journal file, or the address of a database such as sqlite:///FILE;
            journal.log in the output folder when empty. Any number of workers may share it.
    """

    space: dict[str, Any] = field(default_factory=dict)
    sampler: str = "tpe"
    pruner: str = "asha"
    trials: int | None = None
    min_epochs: int = 1
    storage: str | None = None

    def __post_init__(self):
        check_choice("sweep.sampler", self.sampler, SAMPLERS)
        check_choice("sweep.pruner", self.pruner, PRUNERS)
        check_positive("sweep.trials", self.trials)
        check_positive("sweep.min_epochs", self.min_epochs)


@dataclass
class SweepRunConfig(RunConfig):
    """A sweep: the search, and the config that its trials share.

    Args:
        sweep: The search.
    """

    sweep: SweepConfig = field(default_factory=SweepConfig)

    def base(self) -> RunConfig:
        """Return the config without the search."""
        return RunConfig(**{item.name: getattr(self, item.name) for item in fields(RunConfig)})


@dataclass(frozen=True)
class Choice:
    """One of several values of any kind."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> list[Any]:
        """The values as Optuna stores them; a list or a section as JSON."""
        return [json.dumps(v, sort_keys=True) if isinstance(v, (list, dict)) else v for v in self.values]

    def draw(self, trial: Any, key: str) -> Any:
        return self.read(trial.suggest_categorical(key, self.labels))

    def stored(self, value: Any) -> Any:
        return self.labels[self.values.index(value)]

    def read(self, label: Any) -> Any:
        return self.values[self.labels.index(label)]

    def grid(self, key: str) -> list[Any]:
        return list(self.values)

    ends = grid


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included: by its logarithm with ``log``, or low plus multiples of ``step``."""

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool

    def draw(self, trial: Any, key: str) -> Any:
        if self.whole:
            return trial.suggest_int(key, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    def stored(self, value: Any) -> Any:
        return value

    read = stored

    def grid(self, key: str) -> list[Any]:
        step = self.step or (1 if self.whole and not self.log else None)
        if step is None:
            raise UserError(
                f"sweep.space: {key} has no step, which sweep.sampler: grid needs; give one or a list"
            )
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, step))
        values = [low + index * step for index in range(int((high - low) / step) + 1)]
        return [int(value) if self.whole else float(value) for value in values]

    def ends(self, key: str) -> list[Any]:
        return [self.low, self.high]


class Space:
    """The keys that a sweep tries.

    Args:
        given: ``SweepConfig.space``.
        base: What all trials share.

    Raises:
        UserError: A key or a value is not allowed.
    """

    def __init__(self, given: dict[str, Any], base: RunConfig):
        if not given:
            raise UserError(
                "sweep.space is empty; give keys and values, such as {optim.lr: {low: 0.001, high: 0.1, log: true}}"
            )
        self.given, self.base = given, base
        self._values = to_dict(base)
        chooses = {f"{section.name}.{section.key}" for section in SECTIONS.values()}
        for key in given:
            _check_key(key)
        keys = sorted(given, key=lambda key: key not in chooses)  # a choice before what depends on it
        self.axes: dict[str, Choice | Range] = {}
        self.axes = {key: self._axis(key, given[key], keys) for key in keys}
        self._check()

    def _axis(self, key: str, value: Any, keys: list[str]) -> Choice | Range:
        if isinstance(value, list):
            if not value or len({json.dumps(v, sort_keys=True) for v in value}) < len(value):
                raise UserError(f"sweep.space: {key}: {value} is empty or names a value twice")
            return Choice(tuple(value))
        if not isinstance(value, dict) or not {"low", "high"} <= value.keys():
            raise UserError(
                f"sweep.space: {key}: {value!r}; give a list of values, or {{low: ..., high: ...}}"
            )
        for name in value:
            check_choice(f"sweep.space: {key}", name, ["low", "high", "log", "step"])
        log, numbers = value.get("log", False), {}
        for name in value.keys() - {"log"}:
            try:  # YAML reads 1e-3 as text
                numbers[name] = float(value[name])
            except (TypeError, ValueError):
                numbers[name] = math.nan
            if not math.isfinite(numbers[name]) or isinstance(value[name], bool):
                raise UserError(f"sweep.space: {key}: {name}: {value[name]!r} is not a number")
        low, high, step = numbers["low"], numbers["high"], numbers.get("step")
        if not isinstance(log, bool):
            raise UserError(f"sweep.space: {key}: log: {log!r}; give true or false")
        if not low < high or (log and low <= 0) or (step is not None and not 0 < step <= high - low):
            raise UserError(
                f"sweep.space: {key}: {value} is no range: low < high, with log low > 0, 0 < step"
            )
        if log and step is not None:
            raise UserError(f"sweep.space: {key}: log and step exclude each other")
        whole = _is_whole(key, self.base)
        whole = all(number.is_integer() for number in numbers.values()) if whole is None else whole
        if whole:
            if not all(number.is_integer() for number in numbers.values()):
                raise UserError(f"sweep.space: {key}: {value}; give whole numbers")
            low, high, step = int(low), int(high), step and int(step)
        return Range(low, high, log, step, whole)

    def _check(self) -> None:
        """Build a config with each value, and see that every key is used somewhere."""
        choosing = [key for key in self.axes if _section_of(key) and _chooses(key)]
        used, seen = set(), set()
        for combination in itertools.product(*(self.axes[key].grid(key) for key in choosing)):
            chosen = dict(zip(choosing, combination, strict=True))
            self.config(chosen, "runs/checked")
            for key in self.axes.keys() - chosen.keys():
                section = _section_of(key)
                own = key, section and self._choice(section, chosen)
                if self._has(key, chosen) and own not in seen:
                    used.add(key)
                    seen.add(own)
                    for value in self.axes[key].ends(key):
                        self.config({**chosen, key: value}, "runs/checked")
        for key in self.axes.keys() - set(choosing) - used:
            section = SECTIONS[_section_of(key)]
            choice = self._choice(section.name, {})
            raise UserError(f"sweep.space: {section.unknown(key.partition('.')[2], choice)}")

    def _choice(self, section: str, params: dict[str, Any]) -> str:
        key = f"{section}.{SECTIONS[section].key}"
        return params.get(key, self._values[section][SECTIONS[section].key])

    def _has(self, key: str, params: dict[str, Any]) -> bool:
        """Return whether a trial with these choices has a key."""
        section = _section_of(key)
        inner = key.partition(".")[2].partition(".")[0]
        return section is None or inner in SECTIONS[section].keys(self._choice(section, params))

    def draw(self, trial: Any) -> dict[str, Any]:
        """Return the values of a trial of Optuna's, drawn or, where it was drawn before, as they were."""
        params: dict[str, Any] = {}
        for key, axis in self.axes.items():
            if self._has(key, params):
                params[key] = axis.draw(trial, key)
        return params

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination, each once.

        Raises:
            UserError: A range has no step, or there are too many.
        """
        found: list[dict[str, Any]] = [{}]
        for key, axis in self.axes.items():
            found = list(itertools.chain.from_iterable(self._extended(found, key, axis)))
            if len(found) > _MOST_GRID:
                raise UserError(
                    f"sweep.sampler: grid has more than {_MOST_GRID} combinations; use tpe or random"
                )
        return found

    def _extended(
        self, found: list[dict[str, Any]], key: str, axis: Choice | Range
    ) -> Iterator[list[dict[str, Any]]]:
        values = axis.grid(key)
        for params in found:
            yield [{**params, key: value} for value in values] if self._has(key, params) else [params]

    def stored(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return values as Optuna stores them."""
        return {key: self.axes[key].stored(value) for key, value in params.items()}

    def config(self, params: dict[str, Any], output: str) -> RunConfig:
        """Return the config of a trial in a folder.

        Raises:
            UserError: A value is not allowed.
        """
        values = copy.deepcopy(self._values)
        for key, value in params.items():
            *sections, last = key.split(".")
            target = values
            for section in sections:
                target = target.setdefault(section, {})
                if not isinstance(target, dict):
                    raise UserError(f"sweep.space: unknown key {key!r}: {section} has no keys")
            target[last] = value
        try:
            return from_dict(values | {"output": output, "resume": "auto", "overwrite": False})
        except UserError as error:
            raise UserError(f"sweep.space: {error}") from error


def _section_of(key: str) -> str | None:
    name = key.partition(".")[0]
    return name if name in SECTIONS else None


def _chooses(key: str) -> bool:
    name, _, inner = key.partition(".")
    return inner == SECTIONS[name].key


def _check_key(key: str) -> None:
    known = [item.name for item in fields(RunConfig)]
    name = str(key).partition(".")[0]
    if name not in known:
        raise UserError(f"sweep.space: unknown key {key!r}; {nearest(name, known)}")
    for fixed, reason in _FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise UserError(f"sweep.space: {key} stays the same in a sweep: {reason}")
    if name in SECTIONS and not key.partition(".")[2]:
        raise UserError(
            f"sweep.space: {key} is a section; give one of its keys, such as {key}.{SECTIONS[name].key}"
        )


def _is_whole(key: str, base: RunConfig) -> bool | None:
    """Return whether a key takes whole numbers alone; None of a key that is not typed."""
    section, _, inner = key.partition(".")
    configs: list[Any] = [base]
    if section in SECTIONS:
        kinds = SECTIONS[section].registry.names()
        configs = [getattr(base, section), *map(SECTIONS[section].config_class, kinds)]
    name = inner if section in SECTIONS else key
    types = {
        kind
        for config in configs
        for item in fields(config)
        if item.name == name
        for kind in str(item.type).split(" | ")
    }
    if "float" in types:
        return False
    if "int" in types:
        return True
    if types:
        raise UserError(f"sweep.space: {key} takes no numbers, so it has no range; give a list of values")
    return None
