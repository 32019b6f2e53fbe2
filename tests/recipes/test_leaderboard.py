"""Tables of results: pages show what the JSON files hold, and the files hold what runs gave, each run once."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from benchmark.config import BenchmarkConfig
from conftest import write_image_folder
from leaderboard import benchmarks, comparisons, differences, figures, pages, pictures, summaries, tables
from leaderboard.outcomes import read_outcomes, write_outcomes
from leaderboard.tables import RESULTS, Table, located, read_places, read_tables
from scipy import stats

import clipvp
from clipvp.cli import parse
from clipvp.registry import UserError
from clipvp.results.correct import pack
from clipvp.results.plots import plot_queries
from clipvp.scoring.significance import over_seeds, over_seeds_and_images

ROOT = Path(__file__).parents[2]
TPE = {"": "tpe_asha", "test_": "tpe"}  # the name of TPE with ASHA in the sweep's file
WRITTEN = "run: python recipes/leaderboard.py --do pages"

# The tables of this repository


def test_marked_tables_are_what_the_files_hold():
    held = {  # without a file no number may be shown
        table.name: pages.markdown(table, read_outcomes(RESULTS / f"{table.name}.json"))
        for table in read_tables()
    }
    held |= (
        benchmarks.benchmark_tables(RESULTS)
        | comparisons.comparison_tables(RESULTS)
        | summaries.summary_tables(RESULTS)
    )
    for path in pages.pages():
        for name, shown in pages.marked(path.read_text(encoding="utf-8")).items():
            assert name in held, f"{path} shows the table {name}, which no file describes"
            assert shown == held[name], f"{path}, {name}; {WRITTEN}"


def test_every_figure_of_a_page_is_one_that_a_kept_file_gives():
    assert figures.problems(pages.pages()) == []


def test_figures_that_no_file_gives_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a 99.1 % b `50 %`, 95 % intervals, three times as fast, arXiv 2211.11635\n"
        "| a row | 7.7 | `8.8` |\n<!-- figures: others/papers -->\n65.5 and 66.5 and 41 % and 42 %\n<!-- end -->\n"
        "<!-- table: features_lite0 -->\n| 1.1 % |\n<!-- end -->\n+3 points (-0.4 to +2.5)\n"
    )
    loose, missing = figures.problems([page])
    assert "99.1, 3, 0.4, 2.5, 7.7: outside" in loose
    assert "66.5, 42: not in others/papers" in missing
    with pytest.raises(UserError, match="no such file"):
        figures.given("others/nothing")


def test_a_table_gives_its_scores_and_the_differences_of_all_pairs():
    outcomes = outcomes_of(cell_of("t", "ilm", [0.4, 0.6]), cell_of("t", "blm", [0.6, 0.7]))
    found = figures.given_by_table(table_of(), outcomes)
    for shown in ("50.0", "50", "65.0", "15.0"):
        assert found.has(shown), shown
    for not_shown in ("9.9", "51", "66.0"):
        assert not found.has(not_shown), not_shown
    low, high = stats.ttest_rel([60, 70], [40, 60]).confidence_interval(0.95)
    assert found.has_range(f"{low:.1f}", f"{high:.1f}") and found.has_range(f"{-high:.1f}", f"{-low:.1f}")
    assert not found.has_range(f"{low:.1f}", f"{high + 0.1:.1f}")


def test_the_command_of_a_benchmark_measures_the_same():
    asked = ["--only", "[step,epoch]", "--batch_size", "128", "--random_weights", "true", "--seconds", "4.5"]
    config, _ = parse("", BenchmarkConfig, asked)
    shown = benchmarks.command(vars(config) | {"json": "there.json", "data": "here"})
    again, _ = parse("", BenchmarkConfig, shlex.split(shown)[2:])
    assert again == config


def test_the_regret_of_the_comparison_follows_from_its_rows():
    held = json.loads((RESULTS / "comparisons/photographs.json").read_text())
    rows = {row["cell"]: row for row in held["rows"]}
    tested = np.array([row["test.best_val"]["values"] for row in rows.values()])
    regret, picks = held["regret"], held["picks"]
    (pick,) = [name for name, row in rows.items() if row["pick"]]
    assert picks["all draws"] == pick
    assert regret["all draws"] == pytest.approx(tested.mean(1).max() - rows[pick]["test.best_val"]["mean"])
    picked = [
        rows[name]["test.best_val"]["values"][draw] for draw, name in enumerate(picks["each draw alone"])
    ]
    assert regret["each draw alone"] == pytest.approx(tested.max(0) - picked)
    assert regret["their mean"] == pytest.approx(np.mean(regret["each draw alone"]))


def test_the_differences_of_the_sweep_follow_from_its_runs():
    held = json.loads((RESULTS / "others/sweep.json").read_text())
    for prefix, words in (("", "validation"), ("test_", "test")):
        tpe, random = ([run[f"{prefix}{kind}"] for run in held["runs"]] for kind in (TPE[prefix], "random"))
        low, high = stats.ttest_rel(tpe, random).confidence_interval(0.95)
        kept = held[f"{words}, tpe_asha minus random"]
        expected = [np.mean(np.subtract(tpe, random)), low, high]
        assert [kept["mean"], kept["low"], kept["high"]] == pytest.approx(expected, abs=1e-6)


def test_a_short_table_of_a_cell_that_no_file_holds_is_refused():
    held = json.loads((RESULTS / "features_lite0.json").read_text())
    (cell,) = [each for each in held["cells"] if (each["task"], each["method"]) == ("GTSRB", "blm")]
    mean = 100 * np.mean([run["scores"]["test.last"] for run in cell["runs"]])
    assert summaries.cell(RESULTS, "features_lite0", "blm", ["GTSRB"]) == f"{mean:.1f}"
    with pytest.raises(UserError, match="features_lite0.json has no dga of GTSRB"):
        summaries.cell(RESULTS, "features_lite0", ["blm", "dga"], "GTSRB")


def test_every_mark_has_its_end():
    for path in pages.pages():
        text = path.read_text(encoding="utf-8")
        assert text.count("<!-- table:") == len(pages.marked(text)), path
        assert text.count("<!-- figures:") == len(figures.marked(text)), path


def test_a_file_belongs_to_its_description():
    for path in RESULTS.glob("*.json"):
        outcomes = json.loads(path.read_text(encoding="utf-8"))
        (table,) = read_tables([path.stem])
        assert outcomes["table"] == table.name and outcomes["base"] == table.base
        for cell in outcomes["cells"]:
            assert cell["values"] == table.values(cell["source"], cell["task"], cell["method"])
            assert {run["seed"] for run in cell["runs"]} <= set(table.seeds)
            assert all(run["environment"] < len(outcomes["environments"]) for run in cell["runs"])


def test_the_files_are_small_and_name_no_path():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    for path in files:
        text = re.sub(r'"bits": "[^"]+"', "", path.read_text(encoding="utf-8"))
        assert not re.search(r'"/|: /|=/|~/', text), path


@pytest.mark.slow
def test_every_run_of_every_table_has_a_config(tmp_path):
    for table in read_tables():
        for run in table.runs(tmp_path, {}):
            if run.seed == table.seeds[0]:
                assert run.config.output == str(run.folder)


# Numbers


def table_of(**more) -> Table:
    given = {"about": "Made up.", "base": {}, "sources": {"a": {}}, "tasks": {"t": {}, "u": {}}}
    return Table("made", **{**given, "methods": {"ilm": {}, "blm": {}}, "reference": "ilm", **more})


def cell_of(task: str, method: str, scores: list[float], splits: list[str] | None = None) -> dict:
    runs = [
        {
            "seed": seed,
            "split": splits[seed] if splits else f"split {seed}",
            "scores": {"test.last": score},
            "seconds": 2.0,
            "trainable": 1234,
            "environment": 0,
        }
        for seed, score in enumerate(scores)
    ]
    return {"source": "a", "task": task, "method": method, "values": {}, "runs": runs}


def outcomes_of(*cells: dict) -> dict:
    return {"environments": [{"device": "a processor", "commit": "1", "versions": {}}], "cells": [*cells]}


def test_numbers_of_a_table_are_scipys():
    ilm, blm = [0.51, 0.55, 0.43, 0.6], [0.61, 0.58, 0.55, 0.63]
    outcomes = outcomes_of(cell_of("t", "ilm", ilm), cell_of("t", "blm", blm), cell_of("u", "blm", [0.25]))
    assert not re.search(r"\d", pages.markdown(table_of(), {"cells": []}))
    lines = pages.markdown(table_of(), outcomes).splitlines()
    ilm_row, blm_row = ([part.strip() for part in line.strip("|").split("|")] for line in lines[2:4])
    test = stats.ttest_rel(blm, ilm)
    low, high = test.confidence_interval(0.95)
    mean = 100 * np.mean(np.subtract(blm, ilm))
    spread = f"{100 * np.mean(blm):.1f} ± {100 * np.std(blm, ddof=1):.1f}"
    assert blm_row[:4] == ["`blm`", "1,234", spread, f"{mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"]
    assert blm_row[4:] == ["25.0 (seeds: 1)", "-"]
    assert ilm_row[3:] == ["", "-", ""]
    assert (
        "7" not in lines[0]
        and "over 4 seeds" in lines[-1]
        and "9 runs of 2 s" in lines[-1]
        and "a processor" in lines[-1]
    )


def test_an_interval_is_over_seeds_and_images_where_the_images_are_kept():
    generator = np.random.default_rng(0)
    right = {name: generator.random((4, 400)) < share for name, share in (("ilm", 0.5), ("blm", 0.8))}
    cells = {
        name: {
            seed: {
                "split": f"split {seed}",
                "test": "same",
                "right": pack(row),
                "scores": {"test.last": row.mean()},
            }
            for seed, row in enumerate(rows)
        }
        for name, rows in right.items()
    }
    found = differences.difference(cells["blm"], cells["ilm"], "test.last")
    assert found == over_seeds_and_images(right["blm"].astype(float) - right["ilm"])
    assert differences.not_zero(cells, "ilm", "test.last") == {"blm"}
    # Twenty methods that differ by chance: Holm's correction leaves none.
    for index in range(20):
        rows = generator.random((4, 400)) < 0.5
        cells[f"chance {index}"] = {
            seed: {**cells["ilm"][seed], "right": pack(row), "scores": {"test.last": row.mean()}}
            for seed, row in enumerate(rows)
        }
    assert differences.not_zero(cells, "ilm", "test.last") == {"blm"}
    cells["blm"][1]["test"] = "another"  # then over seeds alone
    found = differences.difference(cells["blm"], cells["ilm"], "test.last")
    assert found == over_seeds(right["blm"].mean(1) - right["ilm"].mean(1))


def test_runs_on_other_images_are_not_paired():
    other = cell_of("t", "blm", [0.5, 0.6], ["split 0", "another"])
    with pytest.raises(UserError, match="seed 1"):
        pages.markdown(table_of(), outcomes_of(cell_of("t", "ilm", [0.5, 0.6]), other))


def test_a_page_keeps_what_is_not_marked():
    page = "before\n<!-- table: made -->\nold\n<!-- end -->\nafter\n<!-- table: made -->\n<!-- end -->\n"
    new = "before\n<!-- table: made -->\nnew\n<!-- end -->\nafter\n<!-- table: made -->\nnew\n<!-- end -->\n"
    assert pages.filled(page, {"made": "new\n"}) == new == pages.filled(new, {"made": "new\n"})
    with pytest.raises(UserError, match="'made'"):
        pages.filled(page, {})


# Descriptions


def test_places_replace_names_of_tasks_and_models():
    places = {"cifar10": "here/cifar", "net": "there/net"}
    values = {"data.name": "cifar10", "source.name": "timm:local-dir:net", "seed": 1}
    found = located(values, places)
    assert found == {"data.name": "here/cifar", "source.name": "timm:local-dir:there/net", "seed": 1}
    assert located(values, {}) == values
    table = table_of(tasks={"t": {"data.name": "cifar10"}})
    assert read_places(["cifar10=a=b"], [table]) == {"cifar10": "a=b"}
    for wrong in ("cifar11=a", "cifar10", "=a", "cifar10="):
        with pytest.raises(UserError, match="--data"):
            read_places([wrong], [table])


def test_wrong_descriptions_are_one_line(tmp_path):
    good = {"about": "a", "base": {}, "sources": {"a": {}}, "tasks": {"t": {}}, "methods": {"ilm": {}}}
    good |= {"reference": "ilm"}
    wrong = [{**good, "reference": "blm"}, {**good, "methods": {"ilmm": {}}}, {**good, "task": {}}]
    wrong += [{key: value for key, value in good.items() if key != "tasks"}, {**good, "score": "acc"}]
    for values in wrong:
        (tmp_path / "made.yaml").write_text(yaml.safe_dump(values))
        with pytest.raises(UserError) as error:
            read_tables(["made"], tmp_path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--only.*made"):
        read_tables(["mode"], tmp_path)


# Runs


@pytest.fixture
def leaderboard(tiny_timm, tmp_path, monkeypatch, capsys):
    """A function that runs the recipe on a table of its own, in a folder of its own."""
    folder = tmp_path / "results"
    folder.mkdir()
    images = write_image_folder(tmp_path / "pictures", {"train": 24, "test": 12}, 3)
    values = {
        "about": "A small table.",
        "base": {"source.canvas": 32, "prompt.kind": "none", "train.epochs": 1, "train.progress": False},
        "sources": {"tiny": {"source.name": "timm:local-dir:tiny"}},
        "tasks": {"pictures": {"data.name": "pictures"}},
        "methods": {"flm": {}, "means": {"method": "class_means"}},
        "seeds": [0, 1],
        "reference": "flm",
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Page\n<!-- table: small -->\n<!-- end -->\n")
    monkeypatch.setattr(tables, "RESULTS", folder)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    data = f"[pictures={images},tiny={tiny_timm.removeprefix('timm:local-dir:')}]"

    def run(*arguments: str) -> str:
        given = ["--data", data, "--output", str(tmp_path / "runs"), *arguments]
        monkeypatch.setattr(sys, "argv", ["leaderboard.py", *given])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "recipes" / "leaderboard.py"), run_name="__main__")
        return capsys.readouterr().out

    run.folder, run.data = folder, data
    return run


def test_a_table_from_its_description_to_a_page(leaderboard, tmp_path, monkeypatch):
    leaderboard()
    outcomes = json.loads((leaderboard.folder / "small.json").read_text())
    assert [cell["method"] for cell in outcomes["cells"]] == ["flm", "means"]
    for cell in outcomes["cells"]:
        for seed, run in enumerate(cell["runs"]):
            results = tmp_path / "runs" / "small" / f"tiny-pictures-{cell['method']}" / f"seed{seed}"
            results = json.loads((results / "results.json").read_text())
            assert run["seed"] == seed and run["split"] == results["split_hash"]
            assert run["scores"]["test.last"] == round(results["metrics"]["test.last"]["acc1"], 6)
            assert run["trainable"] == results["run_info"]["trainable_parameters"]
    text = (leaderboard.folder / "small.json").read_text()
    assert str(tmp_path) not in text and "indices" not in text
    page = (tmp_path / "README.md").read_text()
    (table,) = read_tables(["small"])
    assert pages.marked(page)["small"] == pages.markdown(table, outcomes)
    assert "`means`" in page and "±" in page

    ran, fit = [], clipvp.fit
    monkeypatch.setattr(clipvp, "fit", lambda *a, **k: ran.append(a[2].output) or fit(*a, **k), raising=False)
    leaderboard()
    assert ran == [] and (leaderboard.folder / "small.json").read_text() == text
    gone = tmp_path / "runs" / "small" / "tiny-pictures-means" / "seed1" / "results.json"
    gone.unlink()  # as if it had been stopped there
    leaderboard("--do=collect")
    assert (leaderboard.folder / "small.json").read_text() == text  # what another machine ran is kept
    leaderboard()
    assert ran == [str(gone.parent)]


def test_the_picture_of_queries_is_the_mean_over_seeds(tmp_path, monkeypatch):
    table, drawn = table_of(tasks={"t": {}}, seeds=[0, 1], picture="queries.png"), {}
    runs = table.runs(tmp_path, {})
    monkeypatch.setattr(pictures, "plot_queries", lambda curves: drawn.update(curves) or plot_queries(curves))
    path = tmp_path / "queries.png"
    assert not pictures.draw_queries(table, runs, path) and not path.exists()
    for run in runs:
        rows = [{"epoch": 1, "queries": 10}, {"epoch": 2, "queries": 20, "val_acc1": 0.2 + 0.4 * run.seed}]
        if run.cell.method == "ilm":  # blm asks no more after its first epoch
            rows.append({"epoch": 3, "queries": 30, "val_acc1": 0.9})
        run.folder.mkdir(parents=True)
        (run.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert pictures.draw_queries(table, runs, path) and path.read_bytes().startswith(b"\x89PNG")
    points = {name: [(row["queries"], row["val_acc1"]) for row in curve] for name, curve in drawn.items()}
    assert points == {"ilm": [(20, pytest.approx(0.4)), (30, 0.9)], "blm": [(20, pytest.approx(0.4))]}


def test_outcomes_of_other_settings_are_not_kept(leaderboard, tmp_path, capsys):
    leaderboard()
    description = leaderboard.folder / "small.yaml"
    description.write_text(
        description.read_text().replace("method: class_means", "method: linear_probe_adam")
    )
    with pytest.raises(SystemExit):
        leaderboard("--do=collect")
    assert "of other settings (" in capsys.readouterr().err
    leaderboard("--do=collect", f"--output={tmp_path / 'elsewhere'}")
    outcomes = json.loads((leaderboard.folder / "small.json").read_text())
    assert [cell["method"] for cell in outcomes["cells"]] == ["flm"]


def test_a_run_that_fails_does_not_stop_the_others(leaderboard, capsys):
    description = leaderboard.folder / "small.yaml"
    description.write_text(description.read_text().replace("flm: {}", "flm: {}\n  zs_lp: {}"))  # of a CLIP
    with pytest.raises(SystemExit) as end:
        leaderboard()
    assert end.value.code == 2 and "2 runs failed" in capsys.readouterr().err
    cells = json.loads((leaderboard.folder / "small.json").read_text())["cells"]
    assert {cell["method"]: len(cell["runs"]) for cell in cells} == {"flm": 2, "means": 2}


@pytest.mark.slow
def test_workers_share_the_runs_and_run_each_once(leaderboard, tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from leaderboard import share; from leaderboard.tables import read_places, read_tables\n"
        "found = read_tables(folder=Path(sys.argv[2]))\n"
        "places = read_places(sys.argv[3].strip('[]').split(','), found)\n"
        "runs = found[0].runs(Path(sys.argv[4]), places)\n"
        "assert share.run_all(runs, Path(sys.argv[4]) / 'locks') == []\n"
    )
    given = [ROOT / "recipes", leaderboard.folder, leaderboard.data, tmp_path / "runs"]
    command = [sys.executable, "-c", code, *map(str, given)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    ran = re.findall(r"^(tiny, pictures, \w+, seed \d): ", "\n".join(printed), re.MULTILINE)
    expected = [f"tiny, pictures, {method}, seed {seed}" for method in ("flm", "means") for seed in (0, 1)]
    assert sorted(ran) == expected


def test_a_file_is_read_as_it_was_written(tmp_path):
    outcomes = {"table": "made", "base": {"a.b": [1]}, **outcomes_of(cell_of("t", "ilm", [0.5, 0.25]))}
    write_outcomes(tmp_path / "made.json", outcomes)
    assert read_outcomes(tmp_path / "made.json") == outcomes
    assert read_outcomes(tmp_path / "none.json") == {"cells": []}
