"""Which runs a comparison has: names, folders and groups; wrong names are told before anything is run."""

import pytest

from clipvp.comparison.methods import DEFAULT_METHODS, read_method
from clipvp.comparison.plan import make_plan
from clipvp.config.schema import RunConfig
from clipvp.presets import methods
from clipvp.registry import UserError
from clipvp.results.compare import grid, short_names


def plan(tmp_path, **given):
    values = {"methods": [], "tasks": [], "sources": [], "vary": {}, "seeds": [0, 1], "output": tmp_path}
    return make_plan(RunConfig(), **{**values, **given})


def test_the_default_methods_are_there():
    assert set(DEFAULT_METHODS) <= set(methods())
    assert read_method("linear_probe")["mapping.kind"] == "logistic"


def test_every_method_task_source_and_seed_is_one_run(tmp_path):
    found = plan(
        tmp_path,
        methods=["linear_probe", "blm"],
        tasks=["digits", "mnist5k"],
        sources=["offline:lite0", "offline:lite2"],
        vary={"data.shots": [4, 16]},
    )
    assert len(found.jobs) == 16 and not found.chosen
    jobs = [job for row in found.jobs.values() for job in row]
    assert len({job.folder for job in jobs}) == len(jobs) == 32
    job = found.jobs["blm mnist5k lite2 data.shots=4"][1]
    config = job.config
    assert (config.data.name, config.source.name, config.data.shots) == ("mnist5k", "offline:lite2", 4)
    assert (config.mapping.kind, config.seed, config.resume) == ("blm", 1, "auto")
    assert job.folder == tmp_path / "blm_mnist5k_lite2_data.shots=4" / "seed1"
    assert job.cell.group == "mnist5k, data.shots=4"
    assert len({row[0].cell.group for row in found.jobs.values()}) == 4


def test_one_task_and_one_source_do_not_lengthen_the_names(tmp_path):
    found = plan(tmp_path, methods=["blm"], tasks=["digits"], sources=["offline:lite0"])
    assert list(found.jobs) == ["blm"] and found.jobs["blm"][0].cell.group == ""
    assert list(plan(tmp_path, vary={"optim.lr": [1]}).jobs) == ["optim.lr=1"]
    chosen = plan(tmp_path)
    assert chosen.chosen and list(chosen.jobs) == list(DEFAULT_METHODS)


def test_names_that_would_be_alike_are_written_whole():
    assert short_names(["a:b/x", "c:d/x", "e"]) == {"a:b/x": "a:b/x", "c:d/x": "c:d/x", "e": "e"}
    (cell, _) = grid({}, {}, sources=["timm:local-dir:C:\\net?", "b"])
    assert not set('\\/:*?"<>| ') & set(cell.folder)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"methods": ["linear_prob"]}, "did you mean 'linear_probe'"),
        ({"methods": ["blm", "blm"]}, "--methods: blm is given twice"),
        ({"seeds": [1, 1]}, "--seeds: 1 is given twice"),
        ({"seeds": []}, "--seeds is empty"),
        ({"vary": {"optim.lr": []}}, "optim.lr has no values"),
        ({"vary": {"optim.lrr": [1]}}, "optim.lrr"),
        ({"vary": {"seed": [1, 2]}}, "--vary: seed is set by the comparison; give seeds with --seeds"),
        ({"vary": {1: [1]}}, "--vary: 1 is not a dotted key"),
        ({"vary": {"optim.lr": 0.1}}, "--vary: optim.lr: 0.1 is not a list of values; give .0.1."),
        ({"vary": {"optim.name": "adam"}}, "--vary: optim.name: 'adam' is not a list of values; give .adam."),
        ({"vary": ["optim.lr"]}, "is not dotted keys with lists of values"),
        ({"vary": {"optim.lr": [0.1, 1, 0.1]}}, "--vary: optim.lr=0.1 is given twice"),
        ({"vary": {"optim.lr": [0.1, "0.1"]}}, "--vary: optim.lr=0.1 is given twice"),
        (
            {"tasks": ["digits"], "vary": {"data.name": ["digits", "mnist5k"]}},
            "--tasks and --vary both set data.name; give all values in one of them",
        ),
        (
            {"sources": ["offline:lite0"], "vary": {"source.name": ["offline:lite0", "offline:lite2"]}},
            "--sources and --vary both set source.name",
        ),
    ],
)
def test_what_is_wrong_is_told_first(given, message, tmp_path):
    with pytest.raises(UserError, match=message):
        plan(tmp_path, **given)
    assert list(tmp_path.iterdir()) == []


def test_two_names_of_one_folder_are_told_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    for name in ("x/own.yaml", "x-own.yaml"):
        (tmp_path / name).write_text("mapping: {kind: linear}")
    with pytest.raises(UserError, match="'x/own.yaml' and 'x-own.yaml' would share the folder x-own.yaml"):
        plan(tmp_path, methods=["x/own.yaml", "x-own.yaml"])
    # Two groups whose picked prompts would be in one folder.
    with pytest.raises(
        UserError, match="'data.name=a b' and 'data.name=a#b' would share the folder best/data"
    ):
        plan(tmp_path, methods=["blm"], vary={"data.name": ["a b", "a#b"]})


@pytest.mark.parametrize(
    "text, message",
    [
        ("- blm", "not sections with keys"),
        ("mapping: [", "cannot be decoded"),
        ("mapping: {kind: blmm}", "did you mean 'blm'"),
        ("mapping: blm", "mapping"),
        ("seed: 1", "own.yaml': seed is set by the comparison"),
    ],
)
def test_a_wrong_file_of_a_method_is_one_line(text, message, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        plan(tmp_path, methods=[str(tmp_path / "own.yaml")])
    with pytest.raises(UserError, match="none.yaml' cannot be read"):
        plan(tmp_path, methods=[str(tmp_path / "none.yaml")])


def test_methods_with_a_protocol_of_their_own_are_a_group_of_their_own(tmp_path):
    """They learn from other images, so that no difference to the others is paired."""
    found = plan(tmp_path, methods=["clip_lora", "linear_probe", "blm"], tasks=["digits", "mnist5k"])
    groups = {name: row[0].cell.group for name, row in found.jobs.items()}
    assert groups == {
        f"{method} {task}": f"{task}, train.protocol={protocol}"
        for method, protocol in (("clip_lora", "paper"), ("linear_probe", "val"), ("blm", "val"))
        for task in ("digits", "mnist5k")
    }
    same = plan(tmp_path, methods=["clip_lora", "blm"], vary={"train.protocol": ["val"]})
    assert {row[0].cell.group for row in same.jobs.values()} == {"train.protocol=val"}
