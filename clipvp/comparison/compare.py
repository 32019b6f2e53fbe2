"""Compare methods on a task: which to use, how sure that is, and its prompt in a folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..config.schema import DataConfig, RunConfig
from ..config.values import settings_of
from ..files import write_json, write_text
from ..registry import UserError, check_positive
from ..results import lock
from ..results.compare import as_csv, as_latex, finished, markdown
from ..results.folder import COMPARISON, PLOTS, PROMPT
from .advice import next_things
from .judge import Cells, Run, Verdict, judge
from .measure import Cost
from .pictures import save_comparison_pictures
from .plan import Job, group_folder, make_plan
from .prepare import Tasks, announce, check_images, estimate_costs
from .rows import make_rows
from .run import Outcome, in_order, run_jobs

BEST = "best"
CHOSEN_BUDGET = 10.0  # minutes, where the methods are chosen here
_LOOK_SECONDS = 0.5  # between two looks at a folder that another process writes


@dataclass
class Comparison:
    """What a comparison gave; it shows itself as text and in a notebook.

    Args:
        rows: One a cell, the content of compare.json.
        verdicts: One for each group of cells that learn from the same images.
        next: What to try next.
        left_out: Runs that did not fit into the budget.
        failed: Runs that ended with an error, and its message.
        output: The folder.
        best: Folder of the picked prompt, by group; one that was not saved is missing.
    """

    rows: list[dict[str, Any]]
    verdicts: list[Verdict]
    next: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    output: Path = Path()
    best: dict[str, Path] = field(default_factory=dict)

    @property
    def pick(self) -> str | None:
        """The cell to use, of the first group that has one."""
        return next((verdict.pick for verdict in self.verdicts if verdict.pick), None)

    def markdown(self) -> str:
        """Return the table."""
        return markdown(self.rows)

    def __str__(self) -> str:
        parts = [self.markdown()]
        for verdict in self.verdicts:
            name = f"{verdict.group}: " if verdict.group else ""
            parts.append(f"{name}{verdict.sentence}")
            if folder := self.best.get(verdict.group):
                parts[-1] += f"\n  its prompt is in {folder}: clipvp predict {folder} IMAGE..."
        if self.next:
            parts.append("\n".join(["next:", *(f"  - {line}" for line in self.next)]))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        from html import escape

        from tabulate import tabulate

        from ..results.compare import table_of

        table = tabulate(*table_of(self.rows), tablefmt="html", disable_numparse=True)
        lines = [verdict.sentence for verdict in self.verdicts] + self.next
        return table + "".join(f"<p>{escape(line)}</p>" for line in lines)


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def compare(
    data: str | DataConfig | None = None,
    *,
    config: RunConfig | None = None,
    methods: str | Sequence[str] = (),
    tasks: str | Sequence[str] = (),
    sources: str | Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    budget: float | None = None,
    output: str | Path | None = None,
    accelerator: Accelerator | None = None,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Run every method with every task, source, combination of values and seed, each once; say which to use.

    Runs that are finished are not run again, those that were interrupted go on, and several processes or machines that
    see the output folder share the runs out.

    Args:
        data: Name or settings of the task; those of ``config`` when None.
        config: What all runs have; defaults when None.
        methods: Names or files of methods; a few that fit the source when empty.
        tasks: Names of tasks, in the place of ``data``.
        sources: Names of sources, in the place of ``config.source.name``.
        vary: Dotted keys and the values that they take.
        seeds: One run a cell for each; a seed draws shots, order and start.
        budget: Minutes; runs that would end later are left out. 10 where the methods are chosen here, else no limit.
        output: The folder; ``config.output`` when None, and runs/compare without a config.
        accelerator: Processes and device; a new one when None.
        say: Gets each line of progress; printed when None.

    Raises:
        UserError: A name or value is wrong, a method does not fit, the budget is too small for one run, or runs in the
            folder are of another config or of other images.
    """
    began = time.monotonic()
    output = Path(output or (config.output if config else "runs/compare")).expanduser()
    config = config or RunConfig(output=str(output))
    if data is not None:
        config = replace(config, data=DataConfig(name=data) if isinstance(data, str) else data)
    check_positive("--budget", budget)
    plan = make_plan(
        config,
        methods=_listed(methods),
        tasks=_listed(tasks),
        sources=_listed(sources),
        vary={} if vary is None else vary,
        seeds=list(seeds),
        output=output,
    )
    outcome = Outcome()
    for jobs in plan.jobs.values():  # a wrong folder is told first
        for job in jobs:
            if (results := finished(job.config)) is not None:
                outcome.results[job.key] = results
    accelerator = accelerator or Accelerator()
    [outcome.results] = broadcast_object_list([outcome.results])
    say = say or accelerator.print
    minutes = CHOSEN_BUDGET if budget is None and plan.chosen else budget
    ends = began + 60 * minutes if minutes else None
    tasks_of = Tasks()
    check_images(plan, outcome, tasks_of)
    kept, costs = estimate_costs(plan, outcome, tasks_of, accelerator, say)
    jobs = [job for name in kept for job in plan.jobs[name]]
    waiting = in_order([job for job in jobs if job.key in costs], costs)
    announce(waiting, jobs, costs, outcome, ends, minutes, say)
    run_jobs(waiting, costs, outcome, accelerator, ends=ends, tasks=tasks_of, say=say)
    if outcome.failed and not outcome.results:
        raise UserError(f"every run failed, the first: {next(iter(outcome.failed.values()))}")
    found = conclude([plan.jobs[name] for name in kept], outcome, costs, output)
    if accelerator.is_main_process:
        write_comparison(found, config)
    accelerator.wait_for_everyone()
    return found


def conclude(
    cells: Sequence[Sequence[Job]], outcome: Outcome, costs: dict[str, Cost], output: Path
) -> Comparison:
    """Return what the finished runs say."""
    groups: dict[str, Cells] = {}
    jobs = [job for row in cells for job in row]
    by_key = {job.key: job for job in jobs}
    for row in cells:
        runs = [Run.read(outcome.results[job.key], job.folder) for job in row if job.key in outcome.results]
        if runs:
            groups.setdefault(row[0].cell.group, {})[row[0].cell.name] = runs
    verdicts = [judge(group, found) for group, found in groups.items()]
    rows = [row for verdict in verdicts for row in make_rows(groups[verdict.group], verdict)]
    left_out = [by_key[key] for key in outcome.left_out if key in by_key]
    lines: list[str] = []
    for verdict in sorted(verdicts, key=lambda verdict: verdict.pick is None)[:1]:
        lines = next_things(verdict, groups[verdict.group], left_out, costs, len(outcome.failed))
    best = {}
    for verdict in verdicts:
        if verdict.run is not None and (verdict.run.folder / PROMPT).is_dir():
            inner = group_folder(verdict.group)
            best[verdict.group] = output / BEST / inner if inner else output / BEST
    failed = {str(by_key[key]): error for key, error in outcome.failed.items() if key in by_key}
    return Comparison(rows, verdicts, lines, [str(job) for job in left_out], failed, output, best)


def write_comparison(found: Comparison, config: RunConfig) -> None:
    """Write the tables, what was picked and why, and copies of the picked prompts; one process at a time."""
    while True:
        try:
            lock.take(found.output)
            break
        except UserError:  # processes that share the runs end at about the same time
            time.sleep(_LOOK_SECONDS)
    try:
        _write(found, config)
    finally:
        lock.give_back(found.output)


def _write(found: Comparison, config: RunConfig) -> None:
    output = found.output
    write_json(output / COMPARISON, found.rows)
    write_text(output / "compare.md", found.markdown() + "\n")
    write_text(output / "compare.csv", as_csv(found.rows))
    write_text(output / "compare.tex", as_latex(found.rows) + "\n")
    picks = [
        {
            "group": verdict.group,
            "pick": verdict.pick,
            "seed": verdict.run.seed if verdict.run else None,
            "run": str(verdict.run.folder.relative_to(output)) if verdict.run else None,
            "sentence": verdict.sentence,
            "pairs": verdict.pairs,
        }
        for verdict in found.verdicts
    ]
    write_json(
        output / "pick.json",
        {
            "picks": picks,
            "next": found.next,
            "left_out": found.left_out,
            "failed": found.failed,
            "config": settings_of(config),
        },
    )
    save_comparison_pictures(found.rows, output / PLOTS)
    aside = output / f".{BEST}.part"
    shutil.rmtree(aside, ignore_errors=True)
    for verdict in found.verdicts:
        if verdict.group in found.best:
            shutil.copytree(
                verdict.run.folder / PROMPT, aside / found.best[verdict.group].relative_to(output / BEST)
            )
    shutil.rmtree(output / BEST, ignore_errors=True)
    if found.best:
        aside.rename(output / BEST)
