"""The page of runs: made from their files alone, with any names, one file without network, tables that sort."""

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from conftest import photo
from hypothesis import given
from hypothesis import strategies as st

from clipvp import RunConfig, UserError
from clipvp.config.values import to_dict
from clipvp.results.page import write_page
from clipvp.results.page.curves import chart, nice_ticks, whole_ticks
from clipvp.results.page.read import differing, read_runs
from clipvp.results.page.scatter import cells_of, cost_charts, shots_chart
from clipvp.results.tables import CAPTIONS, MAPPING_COLUMNS, SCORES

NASTY = "<img src=x onerror=alert(1)> & \"q\" 'é' </script>"


def make_run(
    folder, acc1: float, seed: int = 0, epochs: int = 3, split: str = "hash", numbers: int = 0, **overrides
):
    config = to_dict(RunConfig(seed=seed))
    config["optim"] |= overrides
    score = {"acc1": acc1, "acc5": None, "mean_per_class_recall": acc1 / 2, "n": 40}
    none = {"acc1": None, "acc5": None, "mean_per_class_recall": None, "n": 0}
    table = [
        {"class": NASTY, "label": "tench", "index": 0, "count": 3, "share": 0.3, "acc1": acc1},
        {"class": "two", "label": None, "index": -1, "count": None, "share": None, "acc1": None},
        {"class": "ten", "label": "drake", "index": 9, "count": 20, "share": 0.9, "acc1": 1.0},
        {
            "class": "several",
            "label": "<i>teal",
            "index": 4,
            "count": 2,
            "share": 0.4,
            "acc1": 0.5,
            "links": [{"label": "<i>teal", "weight": 0.625}, {"label": "eel", "weight": 0.25}],
        },
    ]
    results = {
        "task": "digits",
        "seed": seed,
        "num_train": 300,
        "split_hash": f"{split}{seed}",
        "metrics": {"test.last": score, "test.best_val": none, "val.best": none},
        "mapping_table": table,
        "seconds": {"training": 90.0},
        "run_info": {"versions": {"torch": "2"}, "device": "cpu", "trainable_parameters": numbers},
        "data": {"class_names": [NASTY], "from": "here"},
        "config": config,
    }
    (folder / "plots").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    rows = [{"epoch": e + 1, "train_loss": 1 / (e + 1), "train_acc1": e / 10} for e in range(epochs)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    photo(8, 8).save(folder / "plots" / "prompt.png")
    return folder


@pytest.fixture
def runs(tmp_path):
    return [
        make_run(tmp_path / "a & b", 0.5),
        make_run(tmp_path / "c" / "seed1", 0.75, seed=1, lr=0.5),
        make_run(tmp_path / NASTY.replace("/", "_"), 0.25),
    ]


class Reader(HTMLParser):
    """What a page would load, the tags that it leaves open, and the texts of its table cells."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.tags, self.cells = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "srcset", "data", "action")]
        assert not any(key.startswith("on") for key, _ in attributes)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in ("meta", "link", "img", "input", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "circle", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def read(path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.mark.parametrize("number", [1, 3])
def test_a_page_is_one_whole_file_that_loads_nothing(number, runs, tmp_path):
    path = write_page(runs[:number], None if number == 1 else tmp_path / "all.html")
    assert path == (runs[0] / "report.html" if number == 1 else tmp_path / "all.html")
    text, reader = path.read_text(encoding="utf-8"), read(path)
    assert text.startswith("<!DOCTYPE html>")
    assert reader.open == [] and reader.tags.count("script") == 1
    assert all(address.startswith("data:") for address in reader.loads)
    assert reader.tags.count("img") == number
    assert text.count(f'alt="{CAPTIONS["prompt"]}" width="4" height="4"') == number
    assert "50.0 %" in text and "NaN" not in text and "None" not in text


def test_every_text_is_escaped(runs, tmp_path):
    path = write_page(runs, tmp_path / "all.html")
    text, reader = path.read_text(encoding="utf-8"), read(path)
    assert NASTY not in text and "<img src=x" not in text and "<i>" not in text
    assert reader.cells.count(NASTY) == 3  # once in the mapping table of each run
    name = NASTY.replace("/", "_")
    assert reader.cells.count(name) == 2  # in the tables of the scores and of the settings
    shown = [*re.findall(r"<title>(.*?)</title>", text), *re.findall(r"<summary>(.*?)</summary>", text)]
    assert [html.unescape(part) for part in shown].count(name) == 3  # two curves, and the details


def test_the_mapping_table_has_the_names_and_values_of_the_results(runs):
    cells = read(write_page(runs[:1])).cells
    assert cells[:5] == list(MAPPING_COLUMNS.values())
    rows = [cells[start : start + 5] for start in range(5, 25, 5)]
    assert rows == [
        [NASTY, "tench", "3", "30.0 %", "50.0 %"],
        ["two", "-", "-", "-", "-"],
        ["ten", "drake", "20", "90.0 %", "100.0 %"],
        ["several", "<i>teal (0.62), eel (0.25)", "2", "40.0 %", "50.0 %"],
    ]


def test_a_run_without_epochs_and_without_labels(runs):
    folder = runs[0]
    results = json.loads((folder / "results.json").read_text())
    results["mapping_table"] = [{**row, "label": None, "index": -1} for row in results["mapping_table"][:3]]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").unlink()
    reader = read(write_page([folder]))
    assert "svg" not in reader.tags and MAPPING_COLUMNS["label"] not in reader.cells
    assert reader.open == [] and reader.cells[0] == MAPPING_COLUMNS["class"]


def test_a_comparison_shows_each_run_and_what_differs(runs, tmp_path):
    text = write_page(runs, tmp_path / "all.html").read_text(encoding="utf-8")
    for name in ("a &amp; b", "c/seed1", "75.0 %", "optim.lr", SCORES["test.last"]):
        assert name in text
    assert "split hashes differ" not in text  # seeds draw their own images
    other = make_run(tmp_path / "other", 0.5, split="other")
    assert "split hashes differ" in write_page([*runs, other], tmp_path / "all.html").read_text(
        encoding="utf-8"
    )
    assert dict(differing(read_runs(runs))) == {"optim.lr": [0.01, 0.5, 0.01], "seed": [0, 1, 0]}


def test_a_folder_without_a_run_is_an_error(runs, tmp_path):
    with pytest.raises(UserError, match="results.json is missing; did you mean '.*/c/seed1'?"):
        write_page([tmp_path])
    with pytest.raises(UserError, match="results.json is missing$"):
        write_page([runs[0] / "plots"])
    with pytest.raises(UserError, match="given twice"):
        write_page([runs[0], runs[0]])
    (runs[0] / "metrics.jsonl").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        write_page([runs[0]])
    (runs[1] / "results.json").write_text("[]")
    with pytest.raises(UserError, match="not those of a run"):
        write_page([runs[1]])


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_enclose_their_values(low, span):
    high = low + span
    ticks = nice_ticks(low, high)
    slack = 1e-6 * (ticks[1] - ticks[0])
    assert ticks[0] <= low + slack and high - slack <= ticks[-1] and 2 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))


@given(st.integers(1, 3000), st.integers(0, 3000))
def test_epochs_are_named_by_whole_numbers(first, more):
    ticks = whole_ticks(first, first + more)
    assert len(ticks) <= 10 and all(first <= tick <= first + more for tick in ticks)


@pytest.mark.parametrize("value", [0.0, 0.919, 1.0])
def test_an_axis_of_shares_stays_between_0_and_100_percent(value):
    ticks = [
        float(text.removesuffix(" %")) for _, text in chart("accuracy", [("x", [(1, value)])], True).y_ticks
    ]
    assert len(ticks) > 1 and 0 <= ticks[0] <= 100 * value <= ticks[-1] <= 100


def test_one_epoch_and_one_value_make_a_chart():
    found = chart("accuracy", [("x", [(1, 0.5)]), ("empty", [])], share=True)
    one, empty = found.lines
    assert (
        len(one.points) == len(one.dots) == 1
        and empty.points == []
        and "50 %" in dict(found.y_ticks).values()
    )
    assert [text for _, text in found.x_ticks] == ["1"]


@pytest.mark.parametrize("share", [True, False])
def test_a_curve_is_a_straight_map_of_its_values(share):
    epochs, values = range(1, 41), [0.1 + 0.02 * epoch for epoch in range(40)]
    (line,), y_ticks, x_ticks = chart("loss", [("run", [*zip(epochs, values, strict=True)])], share)[1:4]
    assert line.dots == [] and [x for x, _ in line.points] == sorted(x for x, _ in line.points)
    low, high, scale = y_ticks[0], y_ticks[-1], 100 if share else 1
    start, end = (float(text.removesuffix(" %")) / scale for _, text in (low, high))
    for (_, y), value in zip(line.points, values, strict=True):
        assert y == pytest.approx(low[0] + (high[0] - low[0]) * (value - start) / (end - start), abs=0.2)
    assert {text for _, text in x_ticks} <= {str(epoch) for epoch in epochs}


CLICKS = """
<script>
const table = document.querySelector("table");
const read = (column) => [...table.tBodies[0].rows].map((row) => row.cells[column].innerText.trim());
const heads = [...table.tHead.rows[0].cells];
const score = heads.findIndex((head) => head.innerText.startsWith("test, last"));
const seen = [];
for (const column of [score, score, 0, 0]) {
  heads[column].querySelector("button").click();
  seen.push([heads[column].getAttribute("aria-sort"), ...read(column)]);
}
const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
const pictures = [...document.images].map((image) => image.naturalWidth);
document.title = JSON.stringify({ seen, wide, pictures });
</script>
"""


@pytest.fixture
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        without = pytest.fail if os.environ.get("CI") else pytest.skip
        without("the page is not opened: neither chromium nor google-chrome is installed")
    return found


def test_in_a_browser_the_table_sorts_and_nothing_complains(chromium, runs, tmp_path):
    path = write_page(runs, tmp_path / "all.html")
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", CLICKS + "</body>"), encoding="utf-8")
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    switches += " disable-component-update disable-sync dump-dom enable-logging=stderr window-size=500,900"
    command = [
        chromium,
        *(f"--{switch}" for switch in switches.split()),
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))
    down, up, names, back = found["seen"]
    assert down == ["descending", "75.0 %", "50.0 %", "25.0 %"]
    assert up == ["ascending", "25.0 %", "50.0 %", "75.0 %"]
    assert names[0] == "ascending" and back[0] == "descending" and names[1:] == back[:0:-1]
    assert found["pictures"] == [8, 8, 8]
    assert not found["wide"]  # the page itself never scrolls sideways


# Many runs


def test_seeds_are_one_cell_with_its_mean_and_the_front_joins_the_best(tmp_path):
    folders = [
        make_run(tmp_path / name / f"seed{seed}", acc1 + 0.02 * seed, seed=seed, numbers=numbers, lr=lr)
        for name, acc1, numbers, lr in (
            ("cheap", 0.5, 0, 1.0),
            ("bad", 0.4, 100, 2.0),
            ("dear", 0.7, 10_000, 3.0),
        )
        for seed in (0, 1)
    ]
    runs = read_runs(folders)
    cells = cells_of(runs)
    assert [(cell.name, cell.places) for cell in cells] == [
        ("cheap", [0, 1]),
        ("bad", [2, 3]),
        ("dear", [4, 5]),
    ]
    numbers, seconds = cost_charts(runs, cells)
    assert [mark.text for mark in numbers.marks] == ["cheap: 51.0 %", "bad: 41.0 %", "dear: 71.0 %"]
    cheap, bad, dear = (mark.mean for mark in numbers.marks)
    assert cheap[0] < bad[0] < dear[0] and dear[1] < cheap[1] < bad[1]  # the page's y grows downwards
    [(look, _, corners)] = numbers.lines
    assert look == "front" and corners == [cheap, (dear[0], cheap[1]), dear]
    assert dict((text, x) for x, text in numbers.x_ticks)["0"] == cheap[0]
    assert seconds.title == "Accuracy against seconds to train" and shots_chart(runs, cells) is None


def test_accuracy_by_shots_is_a_line_through_the_means(tmp_path):
    folders = []
    for shots in (4, 1, 16):
        for seed in (0, 1):
            folder = make_run(
                tmp_path / f"probe_{shots}" / f"seed{seed}", 0.1 * shots**0.5 + 0.1 * seed, seed=seed
            )
            results = json.loads((folder / "results.json").read_text())
            results["config"]["data"]["shots"] = shots
            (folder / "results.json").write_text(json.dumps(results))
            folders.append(folder)
    runs = read_runs(folders)
    found = shots_chart(runs, cells_of(runs))
    [(_, places, points)] = found.lines
    assert sorted(places) == list(range(6)) and [text for _, text in found.x_ticks] == ["1", "4", "16"]
    xs = [x for x, _ in points]
    assert xs == sorted(xs) and xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert found.marks[0].text.endswith(": 15.0 %")


def test_the_folder_of_a_comparison_is_all_its_runs(runs, tmp_path):
    grid = tmp_path / "grid"
    for name in ("a", "b"):
        make_run(grid / name / "seed0", 0.5, lr=0.1 if name == "a" else 0.2)
    (grid / "compare.json").write_text("[]")
    assert [run.name for run in read_runs([grid])] == ["a/seed0", "b/seed0"]
    assert write_page([grid]) == grid / "report.html"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "compare.json").write_text("[]")
    with pytest.raises(UserError, match="empty' holds no finished run"):
        write_page([tmp_path / "empty"])


FILTERS = """
<script>
const shown = () => [...document.querySelectorAll("table")[0].tBodies[0].rows]
  .filter((row) => getComputedStyle(row).display !== "none").map((row) => row.cells[0].innerText.trim());
const words = document.querySelector("#filter"), seen = [];
const enter = (text) => { words.value = text; words.dispatchEvent(new Event("input")); };
const look = () => seen.push([shown(), document.querySelector("#count").textContent,
  [...document.querySelectorAll("details")].filter((part) => part.offsetParent !== null).length]);
look();
enter("optim.lr=0.2"); look();
enter("");
document.querySelectorAll("table")[0].tBodies[0].rows[0].querySelector("input").click();
document.querySelector("#chosen").click(); look();
document.title = JSON.stringify(seen);
</script>
"""


def test_in_a_browser_runs_are_filtered_and_chosen(chromium, tmp_path):
    folders = [make_run(tmp_path / name, 0.5, lr=lr) for name, lr in (("a", 0.1), ("b", 0.2), ("c", 0.2))]
    path = write_page(folders, tmp_path / "all.html")
    path.write_text(
        path.read_text(encoding="utf-8").replace("</body>", FILTERS + "</body>"), encoding="utf-8"
    )
    switches = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking dump-dom"
    )
    command = [
        chromium,
        *(f"--{switch}" for switch in switches.split()),
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))
    assert found == [
        [["a", "b", "c"], "3 of 3 runs", 3],
        [["b", "c"], "2 of 3 runs", 2],
        [["a"], "1 of 3 runs", 1],
    ]
