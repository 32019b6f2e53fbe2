"""The runs of a table are shared out over workers; one that fails does not end the others."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from leaderboard import share

from clipvp import RunConfig, UserError


def run_of(folder: Path):
    config = RunConfig(output=str(folder))
    return SimpleNamespace(
        cell=SimpleNamespace(config=config), config=config, folder=folder, name=f"a table, {folder.name}"
    )


def test_a_run_that_fails_or_has_no_memory_does_not_end_the_others(tmp_path, monkeypatch):
    runs = [run_of(tmp_path / "table" / "cell" / f"seed{seed}") for seed in range(4)]
    errors = {
        "seed0": torch.cuda.OutOfMemoryError("CUDA out of memory."),
        "seed1": UserError("the loss turned NaN"),
        "seed2": MemoryError(),
    }
    ran = []

    def run_cell(config):
        ran.append(Path(config.output).name)
        if ran[-1] in errors:
            raise errors[ran[-1]]
        return {"metrics": {"test.last": {"acc1": 0.5}}, "seconds": {"training": 1.0}}

    monkeypatch.setattr(share, "run_cell", run_cell)
    failed = share.run_all(runs, tmp_path / "locks")
    assert ran == ["seed0", "seed1", "seed2", "seed3"] and len(failed) == 3
    assert failed[0].startswith("a table, seed0: out of memory; ") and "(CUDA out of memory.)" in failed[0]
    assert failed[1] == "a table, seed1: the loss turned NaN" and failed[2].endswith("(MemoryError)")
    errors["seed0"] = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        share.run_all(runs, tmp_path / "locks")
