"""What comes before the first run of a comparison: data and methods are checked, and the time is measured."""

from __future__ import annotations

import time
from collections.abc import Callable

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..data.task import Task, load_task
from ..progress import duration
from ..registry import UserError
from ..results.correct import read_correct
from .measure import Cost, Estimate, check_fit, measure
from .plan import Job, Plan
from .run import Outcome, reason_to_go_on
from .same_images import SameImages


class Tasks:
    """Loads the tasks of jobs; the last one is kept, since jobs that follow each other often share it."""

    def __init__(self):
        self.key, self.task = None, None

    def __call__(self, job: Job) -> Task:
        config = job.config
        key = repr((config.data, config.seed, config.train.protocol))
        if key != self.key:
            self.task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
            self.key = key
        return self.task


def check_images(plan: Plan, outcome: Outcome, tasks: Tasks) -> None:
    """Compare the images of the finished runs, and those that the others would have.

    Of the others, one is looked at for each seed that has finished runs, or one where no seed has: its test images are
    those of all seeds.

    Raises:
        UserError: Some would be other images than those of the finished runs.
    """
    groups: dict[str, list[Job]] = {}
    for row in plan.jobs.values():
        groups.setdefault(row[0].cell.group, []).extend(row)
    for group, jobs in groups.items():
        images = SameImages(group)
        for job in jobs:
            if (results := outcome.results.get(job.key)) is not None:
                right = read_correct(job.folder)
                images.check(job.config.seed, job.folder, results["split_hash"], right and right.test_hash)
        finished = set(images.splits)
        todo = {job.config.seed: job for job in reversed(jobs) if job.key not in outcome.results}
        for seed in [seed for seed in todo if seed in finished] or (list(todo)[:1] if finished else []):
            task = tasks(todo[seed])
            images.check(seed, todo[seed].folder, task.split_hash, task.test_hash)


def estimate_costs(
    plan: Plan, outcome: Outcome, tasks: Tasks, accelerator: Accelerator, say: Callable[[str], None]
) -> tuple[list[str], dict[str, Cost]]:
    """Return the names of the cells that fit, and what a run of each takes.

    The runs of a cell for which there is too little memory have failed.

    Raises:
        UserError: A method that was asked for does not fit its source, or none does.
    """
    unfit, kept, costs, shown = [], [], {}, set()
    for name, jobs in plan.jobs.items():
        todo = [job for job in jobs if job.key not in outcome.results]
        if todo:
            task = tasks(todo[0])
            if str(task) not in shown:
                say(f"{task}\n")
                shown.add(str(task))
            try:
                check_fit(todo[0].config, task, accelerator.device)
            except UserError as error:
                unfit.append(f"{name}: {error}")
                continue
        kept.append(name)
    if unfit and (not plan.chosen or not kept):
        raise UserError(
            f"{len(unfit)} of {len(plan.jobs)} do not fit and nothing was run; " + "; ".join(unfit)
        )
    if unfit:
        say(f"left out, since they do not fit: {', '.join(line.partition(':')[0] for line in unfit)}")
    todo = [name for name in kept if any(job.key not in outcome.results for job in plan.jobs[name])]
    if todo:
        say(
            f"measuring how long {len(todo)} method{'s' if len(todo) > 1 else ''} take{'' if len(todo) > 1 else 's'}"
        )
    for name in todo:
        waiting = [job for job in plan.jobs[name] if job.key not in outcome.results]
        try:
            cost = measure(waiting[0].config, tasks(waiting[0]), accelerator)
        except UserError:
            raise
        except Exception as error:
            reason = reason_to_go_on(error, accelerator)
            outcome.failed |= {job.key: reason for job in waiting}
            say(f"== {name} failed: {reason}")
            continue
        [cost] = broadcast_object_list([cost])
        costs |= {job.key: cost for job in waiting}
    return kept, costs


def announce(
    waiting: list[Job],
    jobs: list[Job],
    costs: dict[str, Cost],
    outcome: Outcome,
    ends: float | None,
    minutes: float | None,
    say: Callable[[str], None],
) -> None:
    """Say how long it will take.

    Raises:
        UserError: No run fits into the budget.
    """
    estimate = Estimate()
    total = estimate.total([(costs[job.key], job.config.seed) for job in waiting])
    done = sum(job.key in outcome.results for job in jobs)
    line = f"{len(waiting)} runs, about {duration(total)} in all" if waiting else "nothing is left to run"
    line += f" ({done} finished before)" if done else ""
    if waiting and ends is not None:
        [left] = broadcast_object_list([ends - time.monotonic()])  # the clock of the main process
        first = min(estimate.seconds(costs[job.key], job.config.seed) for job in waiting)
        if first > left and not done:
            raise UserError(
                f"--budget {minutes:g}: the shortest run takes about {duration(first)}, and "
                f"{duration(max(left, 0))} are left; give more minutes, smaller images "
                f"(--source.canvas) or fewer (--data.max_test)"
            )
        line += f"; the budget is {minutes:g} minutes"
        line += ", the cheap ones come first" if total > left else ""
    say(line)
