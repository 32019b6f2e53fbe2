"""The command line: what was typed becomes the config, and what is wrong is one line and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clipvp.cli import parse, user_errors
from clipvp.config.schema import DataConfig, RunConfig
from clipvp.config.values import from_dict, to_dict
from clipvp.registry import UserError
from clipvp.results.folder import config_yaml

RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = [path for path in sorted((RECIPES / "configs").rglob("*.yaml")) if path.parent.name != "sweeps"]


def typed(*arguments: str, **options) -> RunConfig:
    return parse("a test", arguments=[str(a) for a in arguments], **options)[0]


def refused(capsys, *arguments: str, **options) -> str:
    """Return the one line that a refused command line prints."""
    with pytest.raises(SystemExit) as end:
        typed(*arguments, **options)
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


OVERRIDES = [
    [],
    ["--seed", "3", "--output", "runs/a b"],
    ["--source.canvas", "64", "--prompt.kind", "border", "--prompt.width", "4"],
    ["--source.canvas", "[32, 48]", "--prompt.kind", "patch", "--prompt.patch_position", "[1, 2]"],
    ["--mapping.refresh", "never", "--data.shots", "null", "--optim.milestones", "[0.1]"],
    ["--mapping.refresh=2", "--optim.lr=1e-3", "--train.progress", "false"],
    ["--config", str(RECIPES / "configs" / "quickstart.yaml"), "--train.epochs", "2"],
]


YAML = """
output: 2026-11-25
data: {name: 1e5, revision: 1234567, label_column: 07, class_names: {1: one, no: Norway, 3.10: off}}
mapping: {class_names: [1, yes, 2026-11-25], templates: ~}
source: {revision: 1e7}
"""


def test_texts_are_read_as_they_are_written(tmp_path):
    (tmp_path / "a.yaml").write_text(YAML)
    config = typed("--config", tmp_path / "a.yaml")
    assert config.output == "2026-11-25" and config.source.revision == "1e7"
    assert (config.data.name, config.data.revision, config.data.label_column) == ("1e5", "1234567", "07")
    assert config.data.class_names == {"1": "one", "no": "Norway", "3.10": "off"}
    assert config.mapping.class_names == ["1", "yes", "2026-11-25"] and config.mapping.templates is None
    assert (
        typed("--data.class_names", "{1: one, no: Norway, 3.10: off}").data
        == typed("--data.class_names={1: one, no: Norway, 3.10: off}").data
    )
    given = typed("--data.class_names", "{1: one, no: Norway, 3.10: off}", "--source.revision", "1234567")
    assert given.data.class_names == config.data.class_names and given.source.revision == "1234567"
    python = from_dict({"data": {"class_names": {1: "one", 2: "two"}, "revision": 1234567}})
    assert python.data.class_names == {"1": "one", "2": "two"} and python.data.revision == "1234567"
    again = tmp_path / "again.yaml"
    again.write_text(config_yaml(config))
    assert typed("--config", again) == config


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_config_in_any_encoding_with_a_mark(encoding, tmp_path):
    (tmp_path / "a.yaml").write_text("data:\r\n  name: Übung\r\n", encoding=encoding)
    assert typed("--config", tmp_path / "a.yaml").data.name == "Übung"


@pytest.mark.parametrize("text", ["#ffffff", "#1", "#x: y"])
def test_a_text_that_begins_with_a_number_sign_is_no_comment(text, tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"data": {"background": text, "folder": text}}))
    for given in (["--data.folder", text], [f"--data.folder={text}"], ["--config", str(tmp_path / "a.yaml")]):
        assert typed(*given).data.folder == text
    assert from_dict({"data": {"name": text, "folder": text}}).data == DataConfig(name=text, folder=text)


def test_nothing_typed_is_the_defaults():
    assert typed() == RunConfig()


def test_dotted_overrides_are_the_config_of_python():
    config = typed(*OVERRIDES[2], *OVERRIDES[4])
    values = {
        "source": {"canvas": 64},
        "prompt": {"kind": "border", "width": 4},
        "mapping": {"refresh": "never"},
        "optim": {"milestones": [0.1]},
    }
    assert config == from_dict(values)


@pytest.mark.parametrize("overrides", OVERRIDES, ids=lambda arguments: " ".join(arguments)[-40:])
def test_print_config_reads_as_the_same_config(overrides, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        typed(*overrides, "--print_config")
    assert not end.value.code
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert typed("--config", tmp_path / "printed.yaml") == typed(*overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_config_that_a_run_leaves_reads_as_the_same_config(path, tmp_path):
    config = typed("--config", path)
    assert config == from_dict(yaml.safe_load(path.read_text()))
    (tmp_path / "config.yaml").write_text(config_yaml(config))
    assert typed("--config", tmp_path / "config.yaml") == config


def test_what_is_typed_later_rules(tmp_path):
    for name, lr in (("a", 1.0), ("b", 2.0)):
        (tmp_path / f"{name}.yaml").write_text(f"optim: {{lr: {lr}}}\ntrain: {{epochs: {int(lr)}}}")
    files = ["--config", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml"]
    assert typed(*files).optim.lr == 2.0
    assert typed(*files, "--optim.lr", "3").optim.lr == 3.0
    mixed = typed("--optim.lr", "3", "--config", tmp_path / "a.yaml")
    assert mixed.optim.lr == 1.0 and mixed.train.epochs == 1


def test_a_recipes_own_defaults_give_way_to_what_is_typed():
    defaults = {"optim.lr": 0.7, "output": "runs/mine"}
    assert typed(defaults=defaults).optim.lr == 0.7
    assert typed(defaults=defaults).output == "runs/mine"
    assert typed("--optim.lr", "2", defaults=defaults).optim.lr == 2.0
    assert typed(defaults=defaults).optim.schedule == RunConfig().optim.schedule


def test_options_beyond_the_config_come_back():
    def extend(parser):
        parser.add_argument("--seeds", type=list[int], default=[0])

    config, options = parse("a test", arguments=["--seeds", "[1, 2]", "--seed", "5"], extend=extend)
    assert options["seeds"] == [1, 2] and config.seed == 5


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--promt.kind", "border"], ["unknown key 'promt.kind'", "did you mean 'prompt.kind'"]),
        (["--prompt.kid", "border"], ["unknown key 'prompt.kid'", "did you mean 'prompt.kind'"]),
        (["--nonsense=1"], ["unknown key 'nonsense'", "--help"]),
        (["stray"], ["'stray' belongs to no key"]),
        (["--prompt.kind", "bordr"], ["unknown prompt 'bordr'", "did you mean 'border'"]),
        (["--mapping.kind", "frequncy"], ["unknown mapping 'frequncy'", "did you mean 'frequency'"]),
        (["--train.epochs", "two"], ["train.epochs", "'two'", "a whole number"]),
        (["--train.epochs", "0"], ["train.epochs", "> 0"]),
        (["--optim.lr", "nan"], ["optim.lr", "nan", "finite"]),
        (["--optim.milestones", "[a]"], ["optim.milestones", "'a'"]),
        (["--source.canvas", "big"], ["source.canvas", "'big'", "a whole number or a list"]),
        (["--resume", "yes"], ["resume", "auto, never"]),
        (["--train.progress", "maybe"], ["train.progress", "maybe"]),
        (["--seed"], ["--seed"]),
        (["--config", "no_such.yaml"], ["no_such.yaml"]),
    ],
)
def test_what_is_wrong_is_one_line_that_says_what_is_right(arguments, words, capsys):
    line = refused(capsys, *arguments)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "content, words",
    [
        ("sorce: {name: x}", ["unknown key 'sorce.name'", "did you mean 'source.name'"]),
        ("source: {nam: x}", ["unknown key 'source.nam'", "did you mean 'source.name'"]),
        ("source: 3", ["source", "3"]),
        ("train: {epochs: many}", ["train.epochs", "'many'"]),
        ("prompt: {kind: squiggle}", ["unknown prompt 'squiggle'", "padding"]),
        ("[1, 2", ["config"]),
        ("- 1", ["config"]),
        ("just text", ["config"]),
    ],
)
def test_a_config_file_that_is_wrong(content, words, capsys, tmp_path):
    (tmp_path / "a.yaml").write_text(content)
    line = refused(capsys, "--config", str(tmp_path / "a.yaml"))
    assert all(word in line for word in words), line


def test_a_config_file_of_bytes(capsys, tmp_path):
    (tmp_path / "a.yaml").write_bytes(bytes(range(128, 256)))
    assert "decode" in refused(capsys, "--config", str(tmp_path / "a.yaml"))


def test_user_errors_are_one_line_on_the_first_process_and_code_2_on_all(capsys, monkeypatch):
    for rank, printed in (("0", "error: two lines\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as end, user_errors():
            raise UserError("two\nlines")
        assert end.value.code == 2 and capsys.readouterr().err == printed


def test_other_errors_pass_as_they_are():
    with pytest.raises(ZeroDivisionError), user_errors():
        raise ZeroDivisionError


# The recipes themselves


def run(recipe: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(RECIPES / f"{recipe}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, env=environment)


@pytest.mark.parametrize(
    "recipe, arguments, words",
    [
        ("train", ["--prompt.knd", "border"], ["did you mean 'prompt.kind'"]),
        ("train", ["--resume", "yes"], ["auto, never"]),
        ("finetune", ["--optim.name", "adm"], ["did you mean 'adam'"]),
        ("finetune", ["--trian.epochs", "1"], ["did you mean 'train.epochs'"]),
        ("evaluate", [], ["--prompt", "runs/quickstart/prompt"]),
        ("evaluate", ["--prompt", "x", "--split", "tets"], ["did you mean 'test'"]),
        ("compare", ["--methods", "[ilm, fml]"], ["'fml'", "did you mean 'flm'"]),
        ("compare", ["--vary", "{optim.lrr: [1]}"], ["'optim.lrr'"]),
        ("compare", ["--vary", "{optim.lr: [fast]}"], ["optim.lr", "'fast'"]),
    ],
)
def test_a_recipe_refuses_in_one_line_and_leaves_nothing(recipe, arguments, words, tmp_path):
    done = run(recipe, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def test_a_recipes_defaults_are_the_papers(tmp_path):
    for recipe, section, expected in [
        ("finetune", "optim", {"lr": 1e-4, "weight_decay": 5e-4, "schedule": "cosine_epoch"}),
    ]:
        values = yaml.safe_load(run(recipe, "--print_config", cwd=tmp_path).stdout)
        assert {key: values[section][key] for key in expected} == expected


def test_an_output_folder_that_holds_a_run_is_told_before_anything_is_loaded(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text("{}")
    done = run("train", "--output", "old", "--source.name", "no:such", "--data.name", "nosuch", cwd=tmp_path)
    assert done.returncode == 2 and "'old' holds a run already" in done.stderr
    assert (tmp_path / "old" / "results.json").read_text() == "{}"


def test_sections_of_other_programs_parse_alike():
    from dataclasses import dataclass, field

    @dataclass
    class Small:
        """A program.

        Args:
            data: The task.
            more: A number.
        """

        data: DataConfig = field(default_factory=DataConfig)
        more: int = 1

    config, _ = parse("a test", Small, ["--data.name", "digits", "--more", "2"])
    assert config.data.name == "digits" and config.more == 2
    assert to_dict(config)["data"]["val"] == DataConfig().val
