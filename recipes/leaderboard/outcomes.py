"""What came out of the runs of a table: a small JSON file beside its description, merged from many machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipvp.config.values import differences, to_dict
from clipvp.files import write_text
from clipvp.registry import UserError
from clipvp.results.correct import Correct, pack, read_correct
from clipvp.results.folder import RESULTS as RUN_RESULTS
from clipvp.results.folder import read_results

from .tables import Run, Table

_PLACES = ("data.name", "source.name")  # may lie elsewhere on another machine
_DIGITS = 6


def read_outcomes(path: Path) -> dict[str, Any]:
    """Return the content of a table's JSON file, or what a table without runs has."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cells": []}


def collect(table: Table, runs: list[Run], before: dict[str, Any]) -> dict[str, Any]:
    """Return the outcomes of all finished runs, with those of ``before`` that are not among them.

    Args:
        table: What was run. Earlier outcomes of other settings are left out.
        runs: Those of this machine; the ones that are not finished are left out.
        before: What the JSON file holds.

    Raises:
        UserError: A folder holds a run of other settings.
    """
    environments: list[dict[str, Any]] = []
    outcomes: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}

    def add(key: tuple[str, str, str], outcome: dict[str, Any], environment: dict[str, Any]) -> None:
        if environment not in environments:
            environments.append(environment)
        outcome = {**outcome, "environment": environments.index(environment)}
        outcomes.setdefault(key, {})[outcome["seed"]] = outcome

    if before.get("base") == table.base:
        for cell in before["cells"]:
            key = cell["source"], cell["task"], cell["method"]
            if _describes(table, key) and table.values(*key) == cell["values"]:
                for outcome in cell["runs"]:
                    add(key, outcome, before["environments"][outcome["environment"]])
    for run in runs:
        if (run.folder / RUN_RESULTS).exists():
            results = read_results(run.folder)
            _check(run, results)
            key = run.cell.source, run.cell.task, run.cell.method
            add(key, _outcome(results, read_correct(run.folder), table.score), _environment(results))
    cells = [
        {
            "source": source,
            "task": task,
            "method": method,
            "values": table.values(source, task, method),
            "runs": [found[seed] for seed in table.seeds if seed in found],
        }
        for source in table.sources
        for task in table.tasks
        for method in table.methods
        if (found := outcomes.get((source, task, method)))
    ]
    return {"table": table.name, "base": table.base, "environments": environments, "cells": cells}


def write_outcomes(path: Path, outcomes: dict[str, Any]) -> None:
    """Write a table's JSON file, one run a line, so that a change is easy to see."""
    head = {key: value for key, value in outcomes.items() if key != "cells"}
    lines = [f'"{key}": {_text(value)}' for key, value in head.items()]
    cells = []
    for cell in outcomes["cells"]:
        settings = _text({key: value for key, value in cell.items() if key != "runs"})
        runs = ",\n  ".join(_text(run) for run in cell["runs"])
        cells.append(f'{settings[:-1]}, "runs": [\n  {runs}]}}')
    body = ",\n".join([*lines, '"cells": [\n' + ",\n".join(cells) + "]"])
    write_text(path, "{" + body + "}\n")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _describes(table: Table, key: tuple[str, str, str]) -> bool:
    return key[0] in table.sources and key[1] in table.tasks and key[2] in table.methods


def _check(run: Run, results: dict[str, Any]) -> None:
    differ = differences(results.get("config", {}), to_dict(run.config))
    differ = [what for what in differ if what.partition(":")[0] not in _PLACES]
    if differ:
        raise UserError(
            f"{str(run.folder)!r} holds a run of other settings ({'; '.join(differ)}); remove it or choose another "
            "--output"
        )


def _outcome(results: dict[str, Any], correct: Correct | None, score: str) -> dict[str, Any]:
    """Return what is kept of a run; of single images whether they are right by the score that the table shows."""
    scores = {
        key: round(score["acc1"], _DIGITS)
        for key, score in results["metrics"].items()
        if score["acc1"] is not None
    }
    right = {}
    if correct is not None and score in correct.scores:
        right = {"test": correct.test_hash, "right": pack(correct.scores[score])}
    queries = {"queries": results["queries"]["total"]} if "queries" in results else {}
    return {
        "seed": results["seed"],
        "split": results["split_hash"],
        "scores": scores,
        "seconds": round(sum(results["seconds"].values()), 1),
        "trainable": results["run_info"]["trainable_parameters"],
        **queries,
        **right,
    }


def _environment(results: dict[str, Any]) -> dict[str, Any]:
    info = results["run_info"]
    return {"device": info["device_name"], "commit": info["git_commit"], "versions": info["versions"]}
