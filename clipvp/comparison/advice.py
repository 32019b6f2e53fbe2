"""What to try after a comparison: commands that may change its answer, the most promising first."""

from __future__ import annotations

from collections.abc import Sequence

from ..progress import duration
from .judge import Cells, Run, Verdict
from .measure import Cost
from .plan import Job

_FEW_SEEDS, _FEW_IMAGES = 3, 100
_ALPHA = 0.05
_MOST = 4


def next_things(
    verdict: Verdict, cells: Cells, left_out: Sequence[Job], costs: dict[str, Cost], failed: int
) -> list[str]:
    """Return at most four sentences, each with the option that does it."""
    found = []
    if left_out:
        needs = sum(costs[job.key].run for job in left_out if job.key in costs)
        names = list(dict.fromkeys(job.cell.name for job in left_out))
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        found.append(
            f"{len(left_out)} runs did not fit into the budget ({few}; about {duration(needs)}): "
            "the same command again goes on with them"
        )
    if failed:
        found.append(f"{failed} runs failed, see above; the same command tries them again")
    if verdict.pick is None or verdict.run is None:
        return found[:_MOST]
    runs = cells[verdict.pick]
    level = [
        pair["cell"] for pair in verdict.pairs if pair.get("p_holm") is not None and pair["p_holm"] >= _ALPHA
    ]
    seeds = len(runs)
    if seeds < _FEW_SEEDS:
        wanted = list(range(_FEW_SEEDS + 2))
        found.append(f"{seeds} seed{'s tell' if seeds > 1 else ' tells'} little: --seeds {wanted}")
    elif level:
        found.append(
            f"these seeds do not tell {_few(level)} from {verdict.pick} (p after Holm's correction above {_ALPHA}): "
            f"--seeds {list(range(2 * seeds))}"
        )
    found += _of_images(verdict.run)
    found += _of_source(verdict.run, verdict.pick)
    return found[:_MOST]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _of_images(run: Run) -> list[str]:
    found = []
    if run.results["metrics"]["val.best"]["n"] < _FEW_IMAGES:
        found.append(
            f"{run.results['metrics']['val.best']['n']} validation images choose roughly: more labelled images help "
            "the choice and the method alike"
        )
    if (shots := run.results["data"].get("shots")) is not None:
        counts = list(dict.fromkeys([max(shots // 4, 1), shots, 4 * shots]))
        found.append(f"whether more images pay: --vary '{{data.shots: {counts}}}'")
    return found


def _of_source(run: Run, pick: str) -> list[str]:
    """Return what another source, or another size of its input, may give."""
    side = run.results["source"]["canvas"][0]
    name = run.results["source"]["name"]
    found = []
    if side < 160:
        found.append(f"a larger canvas than {side}: --source.canvas {2 * side if side < 112 else 224}")
    found.append(f"a larger source than {name}: --sources '[{name}, ...]' (clipvp list sources)")
    return found
