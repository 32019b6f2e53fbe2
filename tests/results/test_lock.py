"""One run at a time writes a folder, and a run that was killed is in nobody's way."""

import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from clipvp import Task, build_classifier, fit
from clipvp.registry import UserError
from clipvp.results.folder import RESULTS, RunFolder, claim_output

RECIPES = Path(__file__).parents[2] / "recipes"
HOLD = """
import sys, time
from clipvp.results.folder import RunFolder
RunFolder(sys.argv[1]).claim(resume=False, overwrite=True)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_another_run_writes_is_refused(holder, tmp_path):
    run = RunFolder(tmp_path / "run")
    for options in ({"resume": False, "overwrite": True}, {"resume": True, "overwrite": False}):
        with pytest.raises(UserError, match="another run writes to '.*run' now"):
            run.claim(**options)
    assert holder.poll() is None


@pytest.mark.parametrize("recipe", ["train", "finetune", "base_to_new"])
def test_a_recipe_is_refused_before_anything_is_read(recipe, holder, tmp_path):
    command = [sys.executable, str(RECIPES / f"{recipe}.py"), "--output", str(tmp_path / "run")]
    command += ["--overwrite", "true", "--data.name", "no-such-task"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == (
        f"error: output: another run writes to '{tmp_path / 'run'}' now; choose another folder, or wait for its end\n"
    )


def test_a_killed_run_is_in_nobodys_way(holder, tmp_path):
    holder.kill()
    holder.wait()
    run = RunFolder(tmp_path / "run")
    run.claim(resume=False, overwrite=False)
    run.release()
    assert not (tmp_path / "run").exists()


def test_a_process_may_claim_what_it_holds(tmp_path):
    outer, inner = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run" / ".." / "run")
    for run in (outer, inner):
        run.claim(resume=False, overwrite=False)
    (tmp_path / "run" / "file").write_text("")
    inner.release()
    assert names(tmp_path / "run") == [".lock", "file"]
    outer.release()
    outer.release()
    assert names(tmp_path / "run") == ["file"]


def test_a_refused_claim_holds_nothing(tmp_path):
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(UserError, match="holds a run already"):
        RunFolder(tmp_path).claim(resume=False, overwrite=False)
    assert names(tmp_path) == [RESULTS]


def test_training_holds_its_folder_and_gives_it_back(config, tiny_task, monkeypatch):
    config, task, seen = config(), tiny_task, []
    tensors = Task.tensors

    def look(self, *given, **options):
        seen.append((Path(config.output) / ".lock").exists())
        return tensors(self, *given, **options)

    monkeypatch.setattr(Task, "tensors", look)
    fit(build_classifier(config, task), task, config)
    assert seen and all(seen) and ".lock" not in names(Path(config.output))
    with pytest.raises(UserError, match="holds a run already"):
        fit(build_classifier(config, task), task, config)
    assert ".lock" not in names(Path(config.output))


def test_a_file_system_without_locks_refuses_nobody(tmp_path, monkeypatch):
    def no_lock(self, *given, **options):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", no_lock)
    run = RunFolder(tmp_path / "run")
    with pytest.warns(UserWarning, match="is not guarded against a second run"):
        run.claim(resume=False, overwrite=False)
    run.release()


def test_processes_of_one_launch_claim_together(config, monkeypatch):
    config = config()
    monkeypatch.setenv("WORLD_SIZE", "2")
    claim_output(config)
    assert not Path(config.output).exists()
