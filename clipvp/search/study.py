"""The trials of a sweep that many workers share: Optuna's study, and the locks that say who works on what.

A worker holds the lock of its trial's folder. The lock ends with the process, so a trial that is running in the storage
and whose folder is free was left by a worker that ended, and is taken up again as the same trial: its values, its
reports and the checkpoints in its folder are used.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..config.schema import RunConfig
from ..config.values import differences, settings_of
from ..files import NO_LOCKS, why_no_lock, write_text
from ..registry import UserError
from ..results import lock
from .space import DEFAULT_TRIALS, Space, SweepConfig

try:
    import optuna
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError as error:
    raise UserError("a sweep needs optuna, which is missing: pip install 'clipvp[sweep]'") from error

JOURNAL, TRIALS, _GUARD, _ID = "journal.log", "trials", ".workers.lock", ".sweep"
_NAME = "clipvp"
# Times that a trial may be begun without a new epoch before it counts as failed: it may end its worker each time.
_MOST_BEGINNINGS = 4
_FIRST_TRIALS = 5  # that the median rule stops no trial before


class Study:
    """The trials of one sweep.

    Args:
        settings: The search.
        space: What is tried.
        base: What all trials share.
        output: Folder of the sweep, the same for all workers.

    Attributes:
        total: Trials of all workers together.

    Raises:
        UserError: The storage cannot be used, or holds a sweep over another space, with another config or in another
            folder.
    """

    def __init__(self, settings: SweepConfig, space: Space, base: RunConfig, output: Path):
        self.settings, self.space, self.base, self.output = settings, space, base, output
        self.grid = space.grid() if settings.sampler == "grid" else None
        wanted = settings.trials or (DEFAULT_TRIALS if self.grid is None else len(self.grid))
        self.total = wanted if self.grid is None else min(wanted, len(self.grid))
        self.where = settings.storage or str(output / JOURNAL)
        output.mkdir(parents=True, exist_ok=True)
        self._guard = FileLock(output / _GUARD)
        with self._guarded():
            self.study = self._open()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """One worker at a time: looks for a trial, begins it and locks its folder."""
        try:
            self._guard.acquire()
        except NO_LOCKS as error:
            raise UserError(
                f"output: the workers of a sweep need file locks, which {str(self.output)!r} does not have: "
                f"{why_no_lock(error)}"
            ) from error
        try:
            yield
        finally:
            self._guard.release()

    def _open(self) -> optuna.Study:
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                storage=_storage(self.where), study_name=_NAME, direction="maximize", load_if_exists=True
            )
        except UserError:
            raise
        except Exception as error:  # a database may raise anything
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"sweep.storage: {self.where!r} cannot be used: {reason}") from error
        finally:
            optuna.logging.set_verbosity(before)
        known, mark = study.user_attrs, self.output / _ID
        if "space" in known:
            self._check(known, mark.read_text(encoding="utf-8") if mark.is_file() else "")
        elif study.get_trials(deepcopy=False):
            raise UserError(f"sweep.storage: {self.where!r} holds a study {_NAME!r} that is no sweep")
        else:
            write_text(mark, uuid.uuid4().hex)
            study.set_user_attr("id", mark.read_text(encoding="utf-8"))
            study.set_user_attr("config", settings_of(self.base))
            study.set_user_attr("space", self.space.given)
        study.pruner = _pruner(self.settings)
        return study

    def _check(self, known: dict[str, Any], mark: str) -> None:
        """Raise ``UserError`` where the storage holds another sweep than this."""
        theirs, ours = known["space"], self.space.given
        differ = [
            f"{key}: {ours.get(key)}, not {theirs.get(key)}"
            for key in {**theirs, **ours}
            if theirs.get(key) != ours.get(key)
        ]
        if differ:
            raise UserError(
                f"sweep.storage: {self.where!r} holds a sweep over another space ({'; '.join(differ)}); "
                "choose another --output or --sweep.storage"
            )
        if differ := differences(settings_of(self.base), known["config"]):
            raise UserError(
                f"sweep.storage: {self.where!r} holds a sweep with another config ({'; '.join(differ)}); "
                "choose another --output or --sweep.storage"
            )
        if mark != known.get("id"):
            raise UserError(
                f"sweep.storage: the sweep in {self.where!r} has another folder than {str(self.output)!r}; its "
                "workers, also on other machines, share one output folder"
            )

    def folder(self, number: int) -> Path:
        return self.output / TRIALS / f"{number:04d}"

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def unfinished(self) -> bool:
        """Return whether trials are still to be begun or ended, by whichever worker."""
        trials = self.trials()
        return len(trials) < self.total or any(not trial.state.is_finished() for trial in trials)

    def claim(self) -> tuple[Trial, dict[str, Any]] | None:
        """Return a trial for this worker and its values, the folder locked; None where no trial is free now.

        One that was left comes before a new one.
        """
        with self._guarded(), _no_experimental_warnings():
            for trial in self.trials():
                if trial.state == TrialState.RUNNING and self._take(trial.number):
                    self._seed(trial.number)
                    if found := self._begin(optuna.Trial(self.study, trial._trial_id)):
                        return found
                    self.leave(trial.number)
            trials = self.trials()
            # A worker that was killed may have left a trial in the queue.
            queued = [trial.number for trial in trials if trial.state == TrialState.WAITING]
            number = queued[0] if queued else len(trials)
            if not queued:
                if number >= self.total:
                    return None
                if self.grid is not None:
                    self.study.enqueue_trial(self.space.stored(self.grid[number]))
            self._seed(number)
            trial = self.study.ask()
            self._take(trial.number)
            return self._begin(trial)

    def _seed(self, number: int) -> None:
        """Give a trial random numbers of its own, so that they follow from the trials before, whichever worker asks."""
        self.study.sampler = _sampler(self.settings.sampler, 1_000_003 * self.base.seed + number)

    def _take(self, number: int) -> bool:
        """Lock the folder of a trial, if no other worker holds it."""
        try:
            if lock.take(self.folder(number)):
                return True
        except UserError:
            return False
        raise UserError(
            f"output: the workers of a sweep need file locks, which {str(self.output)!r} does not have"
        )

    def _begin(self, trial: Trial) -> tuple[Trial, dict[str, Any]] | None:
        """Note that a trial begins, or goes on; None where it has ended, or has begun too often without an epoch."""
        frozen = trial.storage.get_trial(trial._trial_id)
        if frozen.state != TrialState.RUNNING:
            return None
        begun = [*frozen.user_attrs.get("begun_at", []), frozen.last_step or 0]
        if begun[-_MOST_BEGINNINGS:].count(begun[-1]) == _MOST_BEGINNINGS:
            self.fail(trial, f"its worker ended {_MOST_BEGINNINGS - 1} times before epoch {begun[-1] + 1}")
            return None
        params = self.space.draw(trial)
        trial.set_user_attr("begun_at", begun)
        return trial, params

    def fail(self, trial: Trial, reason: str) -> None:
        trial.set_user_attr("error", reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def leave(self, number: int) -> None:
        lock.give_back(self.folder(number))


def after_epoch(trial: Trial, epochs: int, history: list[dict[str, Any]]) -> bool:
    """Report the validation accuracies that the trial has not reported yet; return whether the pruner ends it.

    Args:
        trial: Of this worker.
        epochs: Of the whole trial; after the last one there is nothing to end.
        history: One row a finished epoch.
    """
    known = trial.storage.get_trial(trial._trial_id)
    if "pruned_at" in known.user_attrs:  # by the worker that was killed before it could say so
        return True
    for row in history:
        if "val_acc1" in row and row["epoch"] not in known.intermediate_values:
            trial.report(row["val_acc1"], row["epoch"])
            if trial.should_prune() and row["epoch"] < epochs:
                trial.set_user_attr("pruned_at", row["epoch"])
                return True
    return False


def _storage(where: str) -> optuna.storages.BaseStorage:
    if "://" in where:
        return optuna.storages.RDBStorage(where)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = Path(where).expanduser()
    if path.is_dir():
        raise UserError(
            f"sweep.storage: {where!r} is a folder; give a file, or an address such as sqlite:///FILE"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    seed %= 2**32
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)  # a grid's trials are queued


def _pruner(settings: SweepConfig) -> optuna.pruners.BasePruner:
    if settings.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=settings.min_epochs, reduction_factor=3)
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(_FIRST_TRIALS, n_warmup_steps=settings.min_epochs)
    return optuna.pruners.NopPruner()


@contextmanager
def _no_experimental_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
