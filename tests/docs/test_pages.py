"""The pages of the site and the README: their commands and Python blocks run, their links lead somewhere.

A block that is not run has a comment before it that says why: ``<!-- not run: REASON -->``. Blocks of a page run in
their order in one folder, with few images and epochs.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_image_folder

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
BLOCK = re.compile(r"^(<!-- not run[^\n]*\n)?```(bash|python)\n(.*?)^```", flags=re.S | re.M)
# Verbs that train, and what makes them quick; a later option overrides an earlier one.
LITTLE = "--train.batch_size 8 --data.max_test 12 --source.canvas 72"
TRAIN = f"--train.epochs 1 --data.max_train 24 --data.shots null {LITTLE}"
QUICK = {
    "train": TRAIN,
    "base_to_new": TRAIN,
    "compare": f"--methods [class_means] --seeds [0] --data.shots 4 {LITTLE}",
}


def runnable(page: Path) -> list[tuple[str, str]]:
    """Return language and text of the blocks of a page that are run, in their order."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, text) for reason, language, text in found if not reason]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/pages/")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_that_are_not_run_say_why(page):
    for reason, _, _ in BLOCK.findall(page.read_text(encoding="utf-8")):
        assert not reason or re.fullmatch(r"<!-- not run: \w.{8,} -->\n", reason), reason


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith(("#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_method_has_a_page():
    methods = {path.stem for path in (ROOT / "recipes" / "configs" / "methods").glob("*.yaml")}
    pages = {path.stem for path in (ROOT / "docs" / "pages" / "methods").glob("*.md")} - {"index"}
    assert methods | {"ares"} == pages  # which is a command
    index = (ROOT / "docs" / "pages" / "methods" / "index.md").read_text(encoding="utf-8")
    assert {name for name in methods if f"`{name}`" not in index} == set()


def test_commands_with_descriptions_have_no_templates_beside_them():
    """The quick start's 81 templates would be one more group, or most of a class's texts."""
    from clipvp.config.parse import parse

    found = []
    for page in PAGES:
        for _, language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in text.replace("\\\n", " ").splitlines() if language == "bash" else []:
                if line.startswith("clipvp train") and ("mapping.texts" in line or "waffle" in line):
                    config, _ = parse("", arguments=shlex.split(line, comments=True)[2:])
                    found.append((page.name, config.mapping.templates))
    assert len(found) > 4 and not [name for name, templates in found if templates is not None]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which the commands of a page find the data that they name, and ``clipvp`` and ``python``."""
    write_image_folder(tmp_path / "path" / "to", {"photos": 36}, 3)
    photos = tmp_path / "path" / "to" / "photos"
    for number, name in enumerate(["bird", "cat", "dog"]):
        (photos / f"class{number}").rename(photos / name)
    rows = [
        f"photos/{path.relative_to(photos).as_posix()},{path.parent.name}" for path in photos.rglob("*.png")
    ]
    (tmp_path / "path" / "to" / "labels.csv").write_text("\n".join(["path,label", *sorted(rows)]))
    (tmp_path / "bin").mkdir()
    for name, module in {
        "clipvp": "-m clipvp",
        "python": "",
        "accelerate": "-m accelerate.commands.accelerate_cli",
    }.items():
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(text: str) -> list[str]:
    """Return the commands of a bash block, those that train with options that make them quick."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [line for line in lines if line.strip() and not line.startswith("#")]
    more = [" ".join(quick for verb, quick in QUICK.items() if verb in line.split()[:9]) for line in found]
    return [f"{line.partition('  #')[0]} {options}" for line, options in zip(found, more, strict=True)]


def run_bash(text: str, capsys) -> None:
    """Run a bash block; commands of clipvp in this process, which saves loading torch anew."""
    from clipvp.cli.main import main

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for command in commands(text):
        words = shlex.split(command, comments=True)
        if words[0] == "export":
            continue
        with capsys.disabled():
            print(f"\n$ {command}", flush=True)
        if words[0] == "clipvp":
            try:
                main(words[1:])
            except SystemExit as end:
                assert not end.code, f"{command}: {capsys.readouterr().err[-2000:]}"
        else:
            done = subprocess.run(
                ["bash", "-c", command], capture_output=True, text=True, timeout=400, env=environment
            )
            assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"


# The plug-ins of this page are run by tests/test_extend.py.
OTHERS = {"extend"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if runnable(page) and name_of(page) not in OTHERS], ids=name_of
)
def test_the_blocks_of_a_page_run(page, folder, capsys):
    names: dict = {}
    for language, text in runnable(page):
        if language == "bash":
            run_bash(text, capsys)
        else:
            exec(compile(text, f"{page.name}", "exec"), names)  # noqa: S102, a page of this project


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the site is built where the extra docs is installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    command += ["-f", str(ROOT / "docs" / "mkdocs.yml"), "-d", str(tmp_path / "site")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fit" in (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
