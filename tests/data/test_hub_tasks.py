"""Registered tasks from a hub over real HTTP: routes, revisions and configurations as ``datasets`` asks for them."""

import json
import subprocess
import sys

import pytest
from hub_data import files_of, parquet_files
from hub_server import Hub

from clipvp.data.catalog import TASK_TABLE

pytestmark = pytest.mark.slow

LOAD = """
import json, sys
from clipvp import UserError, load_task

found = {}
for name in sys.argv[1:]:
    try:
        task = load_task(name)
        found[name] = {**task.describe(), "pixels": task.test.item(0)[:4].hex()}
    except UserError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


def test_tasks_of_the_hub_load_at_their_revision(tmp_path):
    names = [name for name, entry in TASK_TABLE.items() if entry.repo]
    with Hub() as hub:
        commits = {}
        for name in names:
            repo, files = files_of(name)
            commits[name] = hub.commit(repo, files, branch=TASK_TABLE[name].revision, kind="datasets")
        hub.commit("someone/script", {"script.py": b"raise SystemExit('run')"}, kind="datasets")
        hub.commit("someone/cifar", parquet_files("cifar10"), kind="datasets")
        environment = hub.environment(tmp_path / "home", CLIPVP_CACHE=str(tmp_path / "clipvp"))
        asked = [*names, "someone/script", "someone/cifar"]
        done = subprocess.run(
            [sys.executable, "-c", LOAD, *asked], env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr[-2000:]
        log = [path for method, path, status in hub.log if method == "GET" and status == 200]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in names:
        entry = TASK_TABLE[name]
        assert isinstance(found[name], dict), found[name]
        assert found[name]["num_classes"] == entry.num_classes and found[name]["revision"] == entry.revision
        assert any(commits[name] in path for path in log)
        assert found[name]["pixels"] in ("89504e47", "52494646")  # a PNG, a WebP: not decoded on the way
    assert found["someone/cifar"]["class_names"][:2] == ["airplane", "automobile"]
    assert "made by a script of its own" in found["someone/script"]
