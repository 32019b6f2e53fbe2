"""The runs of a comparison, each once: on one process or many, and shared out over machines that see one folder.

A run is taken by locking its folder, so that any number of comparisons with the same output work on it together; a run
whose process was killed is free again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..build import build_classifier
from ..data.task import Task, load_task
from ..progress import duration
from ..registry import UserError
from ..results import lock
from ..results.compare import finished
from ..training.failures import why_failed
from ..training.fit import fit
from ..training.processes import fail_together
from .measure import Cost, Estimate
from .plan import Job

_LOOK_SECONDS = 2.0  # between two looks at runs that other processes hold
_END, _WAIT = -1, -2


@dataclass
class Outcome:
    """What became of the runs of a comparison.

    Args:
        results: By the key of each finished run, the content of results.json.
        left_out: Keys of runs that did not fit into the budget.
        failed: By the key of each run that ended with an error, its message.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def in_order(jobs: Sequence[Job], costs: dict[str, Cost]) -> list[Job]:
    """Return jobs in the order in which they run: on features first, then seed by seed, the cheap ones first."""
    places = {job.key: place for place, job in enumerate(jobs)}
    seeds = list(dict.fromkeys(job.config.seed for job in jobs))
    return sorted(
        jobs,
        key=lambda job: (
            not costs[job.key].on_features,
            seeds.index(job.config.seed),
            costs[job.key].run,
            places[job.key],
        ),
    )


def run_jobs(
    jobs: Sequence[Job],
    costs: dict[str, Cost],
    outcome: Outcome,
    accelerator: Accelerator,
    *,
    ends: float | None = None,
    tasks: Callable[[Job], Task] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Run what is not finished; every process must call it.

    Args:
        jobs: In the order in which they run.
        costs: What each takes.
        outcome: Gets what became of each.
        accelerator: Processes and device.
        ends: When no run may last longer, on the clock of ``time.monotonic``; no limit when None.
        tasks: Loads the task of a job.
        say: Prints a line on the main process.
    """
    estimate, waiting, told = Estimate(), list(jobs), False
    while True:
        choice = _END
        with fail_together(accelerator):
            if accelerator.is_main_process:
                choice = _choose(waiting, costs, outcome, estimate, ends)
        [choice] = broadcast_object_list([choice])
        if choice == _END:
            break
        if choice == _WAIT:
            if not told:
                runs = f"{len(waiting)} run{'s' if len(waiting) > 1 else ''}"
                say(f"waiting for {runs} of other processes; each is taken over if its process ends")
            told = True
            time.sleep(_LOOK_SECONDS)
            continue
        job = next(job for job in waiting if job.key == choice)
        waiting.remove(job)
        left = estimate.total([(costs[other.key], other.config.seed) for other in [job, *waiting]])
        say(
            f"== {job}: about {duration(estimate.seconds(costs[job.key], job.config.seed))}, {duration(left)} for all"
        )
        start = time.monotonic()
        try:
            results = _run(job, accelerator, tasks)
            outcome.results[job.key] = results
            estimate.done(costs[job.key], job.config.seed, time.monotonic() - start)
        except Exception as error:
            outcome.failed[job.key] = reason_to_go_on(error, accelerator)
            say(f"== {job} failed: {outcome.failed[job.key]}")
        finally:
            if accelerator.is_main_process:
                lock.give_back(job.folder)
    found = broadcast_object_list([outcome.results, outcome.left_out, outcome.failed])
    outcome.results, outcome.left_out, outcome.failed = found


def reason_to_go_on(error: Exception, accelerator: Accelerator) -> str:
    """Return why a run failed, where the other runs can go on; else raise the error.

    A single process may go on without memory. Of several, the others wait for the one that lacks it.
    """
    reason = why_failed(error)
    if reason is None or (accelerator.num_processes > 1 and not isinstance(error, UserError)):
        raise error
    return reason


def _choose(
    waiting: list[Job], costs: dict[str, Cost], outcome: Outcome, estimate: Estimate, ends: float | None
) -> str | int:
    """Return the folder of the next run, locked; or that there is none, or none now. Only the main process calls it."""
    held = False
    for job in list(waiting):
        results = finished(job.config)
        if results is not None:  # another process was first
            outcome.results[job.key] = results
            waiting.remove(job)
            continue
        took = estimate.seconds(costs[job.key], job.config.seed)
        if ends is not None and time.monotonic() + took > ends:
            outcome.left_out.append(job.key)
            waiting.remove(job)
            continue
        try:
            lock.take(job.folder)
        except UserError:
            held = True
            continue
        if finished(job.config) is None:
            return job.key
        lock.give_back(job.folder)  # it has just ended; the next look reads it
        held = True
    return _WAIT if held else _END


def _run(job: Job, accelerator: Accelerator, tasks: Callable[[Job], Task] | None) -> dict[str, Any]:
    task = (tasks or load_job_task)(job)
    classifier = build_classifier(job.config, task, accelerator.device)
    return fit(classifier, task, job.config, accelerator).results


def load_job_task(job: Job) -> Task:
    """Return the task of a run."""
    return load_task(job.config.data, seed=job.config.seed, protocol=job.config.train.protocol)
