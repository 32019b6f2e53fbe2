"""Write the page: what ``page.html.j2`` shows of runs. The template escapes every text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from ...files import write_text
from ...registry import UserError
from ..compare import learned_numbers
from ..folder import PAGE
from ..tables import (
    CAPTIONS,
    COMPARISON_COLUMNS,
    EPOCH_COLUMNS,
    MAPPING_COLUMNS,
    QUERIES_NAME,
    SCORE_COLUMNS,
    SCORES,
    mapping_columns,
    mapping_text,
    percent,
    scores_table,
)
from . import curves, scatter
from .read import Run, differing, read_runs

_MOST_DETAILS = 30  # runs whose mapping and pictures are on the page
_SCALE = 0.56  # of the pictures' pixels, so that their text is as large as the page's small text


def write_page(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page of one run, or of several compared.

    Args:
        folders: Of finished runs, or of comparisons, whose runs are all taken.
        output: The file. When None, ``report.html``: in the folder of a single run, else in the current folder.

    Returns:
        The file.

    Raises:
        UserError: A folder holds no finished run, or the file cannot be written.
    """
    runs = read_runs(folders)
    output = output or (folders[0] / PAGE if len(folders) == 1 else Path(PAGE))
    try:
        write_text(output, page(runs))
    except OSError as error:
        raise UserError(f"{str(output)!r} cannot be written: {error.strerror}") from error
    return output


def templates() -> Environment:
    """Return the templates of the pages."""
    return Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def page(runs: Sequence[Run]) -> str:
    """Return the HTML of one run, or of several compared."""
    environment = templates()
    alone = len(runs) == 1
    cells = scatter.cells_of(runs)
    looks = scatter.looks_of(len(runs), cells)
    shots = scatter.shots_chart(runs, cells)
    tasks = ", ".join(dict.fromkeys(run.results["task"] for run in runs))
    return environment.get_template("page.html.j2").render(
        title=f"{tasks}: {runs[0].name if alone else f'{len(runs)} runs'}",
        figures=_figures(runs[0]) if alone else [],
        splits_differ=_splits_differ(runs),
        scores=_scores(runs, looks),
        settings=_settings(runs),
        texts=_texts(runs),
        cells=cells,
        scatters=[] if alone else [*scatter.cost_charts(runs, cells), *([shots] if shots else [])],
        charts=_charts(runs, looks),
        runs=[_run(look, run) for look, run in zip(looks, runs, strict=True)],
        detailed=len(runs) <= _MOST_DETAILS,
        size=curves,
    )


class Cell(NamedTuple):
    """One cell of a table: its text, the value that it sorts by, and the look of a run's curve before the text."""

    text: str
    value: Any
    look: str = ""


class Column(NamedTuple):
    """One column of a table that sorts on a click."""

    name: str
    cells: list[Cell]

    @property
    def is_number(self) -> bool:
        return all(cell.value is None or isinstance(cell.value, (int, float)) for cell in self.cells)


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _splits_differ(runs: Sequence[Run]) -> bool:
    """Return whether runs of one task and one seed have different images."""
    hashes: dict[tuple, set[str]] = {}
    for run in runs:
        hashes.setdefault((run.results["task"], run.results["seed"]), set()).add(run.results["split_hash"])
    return any(len(found) > 1 for found in hashes.values())


def _texts(runs: Sequence[Run]) -> list[str]:
    """Return what the filter of the page searches of each run: its name, seed, and settings that differ."""
    settings = differing(runs) if len(runs) > 1 else []
    return [
        " ".join([run.name, run.results["task"], *(f"{key}={values[place]}" for key, values in settings)])
        for place, run in enumerate(runs)
    ]


def _scores(runs: Sequence[Run], looks: Sequence[str]) -> list[Column]:
    """Return the table of the runs' scores."""
    cells = [Cell(run.name, run.name, look) for run, look in zip(runs, looks, strict=True)]
    columns = [Column("run", cells)]
    metrics = [run.results["metrics"] for run in runs]
    wanted = [(key, "acc1", label) for key, label in SCORES.items()]
    wanted.append(
        (
            "test.last",
            "mean_per_class_recall",
            f"{SCORE_COLUMNS['mean_per_class_recall']}: {SCORES['test.last']}",
        )
    )
    for key, score, name in wanted:
        if any(scores.get(key, {}).get("n") for scores in metrics):
            values = [scores.get(key, {}).get(score) for scores in metrics]
            columns.append(Column(name, [Cell(percent(value), value) for value in values]))
    for key, name in (("seed", "seed"), ("num_train", "training images")):
        columns.append(Column(name, [Cell(str(run.results[key]), run.results[key]) for run in runs]))
    numbers = [learned_numbers(run.results) for run in runs]
    if any(number is not None for number in numbers):
        texts = ["-" if number is None else f"{number:,}" for number in numbers]
        own = [Cell(text, number) for text, number in zip(texts, numbers, strict=True)]
        columns.append(Column(COMPARISON_COLUMNS["numbers"], own))
    queries = [run.results.get("queries", {}).get("total") for run in runs]
    if any(queries):
        cells = [Cell("-" if total is None else f"{total:,}", total) for total in queries]
        columns.append(Column(QUERIES_NAME, cells))
    minutes = [sum(run.results["seconds"].values()) / 60 for run in runs]
    return [*columns, Column("minutes", [Cell(f"{value:.1f}", value) for value in minutes])]


def _settings(runs: Sequence[Run]) -> list[Column]:
    """Return the table of the settings in which runs differ; empty where none does."""
    rows = differing(runs)
    if not rows:
        return []
    columns = [Column("run", [Cell(run.name, run.name) for run in runs])]
    for key, values in rows:
        if len({_text(value) for value in values}) == 1:  # a key that some configs lack, at its default
            continue
        columns.append(
            Column(
                key, [Cell(_text(value), value if _is_number(value) else _text(value)) for value in values]
            )
        )
    return columns


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _figures(run: Run) -> list[tuple[str, str]]:
    """Return the main numbers of a run: what each is, and its text."""
    scores = [(f"{label}, {n:,} images", acc1) for label, acc1, *_, n in scores_table(run.results["metrics"])]
    if queries := run.results.get("queries"):
        scores.append((QUERIES_NAME, f"{queries['total']:,}"))
    return [*scores, ("time in all", f"{sum(run.results['seconds'].values()) / 60:.1f} min")]


def _charts(runs: Sequence[Run], looks: Sequence[str]) -> list[curves.Chart]:
    charts = []
    for key, title in EPOCH_COLUMNS.items():
        series = [
            (run.name, [(row["epoch"], row[key]) for row in run.history if row.get(key) is not None])
            for run in runs
        ]
        if any(points for _, points in series):  # a baseline has no epochs
            drawn = curves.chart(title.capitalize(), series, share=key.endswith("acc1"))
            lines = [line._replace(look=look) for line, look in zip(drawn.lines, looks, strict=True)]
            charts.append(drawn._replace(lines=lines))
    key = "val_acc1"
    series = [
        (run.name, [(row["queries"], row[key]) for row in run.history if "queries" in row and key in row])
        for run in runs
    ]
    if len(runs) > 1 and any(points for _, points in series):
        name = f"{EPOCH_COLUMNS[key].capitalize()} by queries"
        drawn = curves.chart(name, series, share=True, x_name=QUERIES_NAME)
        lines = [line._replace(look=look) for line, look in zip(drawn.lines, looks, strict=True)]
        charts.append(drawn._replace(lines=lines))
    return charts


def _run(look: str, run: Run) -> dict[str, Any]:
    """Return what the page shows of one run besides scores and curves."""
    results = run.results
    info, rows = results["run_info"], results["mapping_table"]
    mapping = [
        Column(MAPPING_COLUMNS[key], [Cell(mapping_text(row, key), row[key]) for row in rows])
        for key in mapping_columns(rows)
    ]
    # The lists of all classes and of the few-shot images are too long to show.
    data = {key: value for key, value in results["data"].items() if key not in ("class_names", "indices")}
    machine = {**info["versions"], **{key: value for key, value in info.items() if key != "versions"}}
    texts = {"Settings": results["config"], "Data": data, "Machine": machine}
    return {
        "name": run.name,
        "look": look,
        "mapping": mapping,
        "pictures": [_picture(path) for path in run.pictures],
        "texts": {
            heading: yaml.safe_dump(values, sort_keys=False, allow_unicode=True).strip()
            for heading, values in texts.items()
        },
    }


def _picture(path: Path) -> dict[str, Any]:
    """Return a PNG file with its caption and size; bytes 16 to 24 of its header are width and height, big-endian."""
    content = path.read_bytes()
    width, height = (round(_SCALE * int.from_bytes(content[at : at + 4], "big")) for at in (16, 20))
    return {
        "caption": CAPTIONS.get(path.stem, path.stem),
        "width": width,
        "height": height,
        "content": base64.b64encode(content).decode("ascii"),
    }
