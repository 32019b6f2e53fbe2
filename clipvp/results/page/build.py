"""The page itself. Every name comes from outside and is escaped; nothing is fetched when it is read."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ...artifact.card import PICTURES, SCORES, percent
from ...files import write_text
from ...registry import UserError
from ..folder import PAGE
from .curves import COLOURS, curves_svg
from .runs import Run, differing, read_runs

_CHARTS = {
    "val_acc1": "Validation accuracy",
    "test_acc1": "Test accuracy",
    "train_acc1": "Training accuracy",
    "train_loss": "Training loss",
    "mapping_changed": "Classes remapped",
}
_COLUMNS = {
    "test.best_val": "test, best on val",
    "test.last": "test, last",
    "val.best": "val, best",
    "test.best_on_test": "test, best on test",
}
_CAPTIONS = {
    **PICTURES,
    "gallery": "Classes and the source labels they take, with counts of training images",
    "mapping": "Source labels that the test images are seen as",
    "templates": "Templates of the labels that the test images are seen as",
    "moves": "How the mapping moved",
}
_SCALE = 0.56  # of the pictures' own pixels: their text is then as large as the page's smaller one


def write_page(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page of one run, or of several compared.

    Args:
        folders: Of finished runs.
        output: The file; ``report.html`` in the folder of a single run, else in the current one, when None.

    Returns:
        The file written.

    Raises:
        UserError: A folder holds no finished run, or the file cannot be written.
    """
    runs = read_runs(folders)
    output = output or (folders[0] / PAGE if len(runs) == 1 else Path(PAGE))
    try:
        write_text(output, page(runs))
    except OSError as error:
        raise UserError(f"{str(output)!r} cannot be written: {error.strerror}") from error
    return output


def page(runs: Sequence[Run]) -> str:
    """Return the HTML of one run, or of several compared."""
    tasks = list(dict.fromkeys(run.results["task"] for run in runs))
    title = f"{', '.join(tasks)}: " + (runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    files = resources.files(__package__)
    style, script = (files.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    compared = [_summary(runs), _differences(runs)] if len(runs) > 1 else []
    body = [
        f"<h1>{escape(title)}</h1>",
        *compared,
        *([] if compared else [_figures(runs[0])]),
        _charts(runs),
        *(_run(run, alone=len(runs) == 1) for run in runs),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n'
        f"<body>\n<main>\n{chr(10).join(part for part in body if part)}\n</main>\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _summary(runs: Sequence[Run]) -> str:
    names = {
        key: label
        for key, label in _COLUMNS.items()
        if any(run.results["metrics"].get(key, {}).get("n") for run in runs)
    }
    headers = ["run", *names.values(), "per class, last", "seed", "images", "minutes"]
    rows = []
    for index, run in enumerate(runs):
        metrics, results = run.results["metrics"], run.results
        scores = [metrics.get(key, {}).get("acc1") for key in names]
        recall = metrics.get("test.last", {}).get("mean_per_class_recall")
        minutes = sum(results["seconds"].values()) / 60
        cells = [(_swatch(index) + escape(run.name), run.name)]
        cells += [(percent(value), value) for value in [*scores, recall]]
        cells += [(str(value), value) for value in (results["seed"], results["num_train"])]
        rows.append([*cells, (f"{minutes:.1f}", minutes)])
    splits = {(run.results["task"], run.results["split_hash"]) for run in runs}
    note = (
        ""
        if len(splits) == 1
        else '<p class="note">The split hashes differ: not all runs train, validate and test on the same images.</p>'
    )
    return f"<h2>Runs</h2>{note}{_table(headers, rows)}"


def _differences(runs: Sequence[Run]) -> str:
    rows = [
        [(escape(key), key), *((escape(_text(value)), _text(value)) for value in values)]
        for key, values in differing(runs)
    ]
    headers = ["setting", *(run.name for run in runs)]
    return f"<h2>What differs</h2>{_table(headers, rows)}" if rows else ""


def _figures(run: Run) -> str:
    metrics, results = run.results["metrics"], run.results
    cards = [
        (percent(scores["acc1"]), f"{label}, {scores['n']:,} images")
        for key, label in SCORES.items()
        if (scores := metrics.get(key)) and scores["n"]
    ]
    cards.append((f"{sum(results['seconds'].values()) / 60:.1f} min", "time in all"))
    cells = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for value, what in cards)
    return f'<dl class="figures">{cells}</dl>'


def _charts(runs: Sequence[Run]) -> str:
    charts = []
    for key, title in _CHARTS.items():
        series = [
            (run.name, [(row["epoch"], row[key]) for row in run.history if row.get(key) is not None])
            for run in runs
        ]
        if any(points for _, points in series):  # a baseline has no epochs
            svg = curves_svg(title, series, share=key.endswith("acc1"))
            charts.append(f"<figure><figcaption>{title}</figcaption>{svg}</figure>")
    if not charts:
        return ""
    names = (f"<li>{_swatch(index)}{escape(run.name)}</li>" for index, run in enumerate(runs))
    legend = f'<ul class="legend">{"".join(names)}</ul>' if len(runs) > 1 else ""
    return f'<h2>Curves</h2>{legend}<div class="charts">{"".join(charts)}</div>'


def _run(run: Run, alone: bool) -> str:
    pictures = "".join(map(_picture, run.pictures))
    info = run.results["run_info"]
    facts = {**info["versions"], **{key: value for key, value in info.items() if key != "versions"}}
    parts = [
        _mapping(run.results),
        f'<h3>Pictures</h3><div class="pictures">{pictures}</div>' if pictures else "",
        f"<h3>Settings</h3><pre>{escape(_yaml(run.results['config']))}</pre>",
        f"<h3>Data</h3><pre>{escape(_yaml(_short(run.results['data'])))}</pre>",
        f"<h3>Machine</h3><pre>{escape(_yaml(facts))}</pre>",
    ]
    body = "".join(parts)
    return body if alone else f"<details><summary>{escape(run.name)}</summary>{body}</details>"


def _picture(path: Path) -> str:
    """Return a PNG file as a figure; its size stands in its header, big-endian at bytes 16 to 24."""
    content = path.read_bytes()
    width, height = (round(_SCALE * int.from_bytes(content[at : at + 4], "big")) for at in (16, 20))
    caption = escape(_CAPTIONS.get(path.stem, path.stem))
    source = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<div><img alt="{caption}" width="{width}" height="{height}" src="{source}"></div></figure>'
    )


def _mapping(results: dict[str, Any]) -> str:
    rows = [
        [
            (escape(row["class"]), row["class"]),
            (escape(_text(row["label"])), row["label"]),
            (_text(row["count"]), row["count"]),
            (percent(row["share"]), row["share"]),
            (percent(row["acc1"]), row["acc1"]),
        ]
        for row in results["mapping_table"]
    ]
    return "<h3>Label mapping</h3>" + _table(
        ["class", "source label", "count", "of its images", "test accuracy"], rows
    )


def _table(headers: Sequence[str], rows: Iterable[Sequence[tuple[str, Any]]]) -> str:
    """Return a table that sorts on click; a cell is its HTML and the value that it sorts by."""
    rows = list(rows)
    numbers = [
        all(row[column][1] is None or isinstance(row[column][1], (int, float)) for row in rows)
        for column in range(len(headers))
    ]
    head = "".join(
        f'<th scope="col"{_number(is_number)}><button>{escape(name)}</button></th>'
        for name, is_number in zip(headers, numbers, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{_number(is_number)} data-value="{escape("" if value is None else str(value))}">{html}</td>'
            for (html, value), is_number in zip(row, numbers, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _swatch(index: int) -> str:
    dashed = " dashed" if index // COLOURS % 2 else ""
    return f'<i class="swatch c{index % COLOURS}{dashed}"></i>'


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _short(data: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of the data without its long lists: classes and few-shot choices."""
    return {key: value for key, value in data.items() if key not in ("class_names", "indices")}


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).strip()
