"""The run of ``clipvp train --config quickstart`` by phase, from its own clock and from the one around it."""

from __future__ import annotations

import statistics
import time
from typing import Any

from clipvp.build import build_classifier
from clipvp.config.parse import parse
from clipvp.data.task import load_task
from clipvp.training.fit import fit

from .setting import Setting

CONFIG = "quickstart"
ELSE = "everything else"


def measure_quickstart(setting: Setting) -> dict[str, Any]:
    """Return the seconds of a whole run by phase, imports aside, and its accuracy; nothing is cached before a round."""
    laps = [_run(setting, index) for index in range(setting.config.rounds)]
    phases = {phase: None for lap, _ in laps for phase in lap if phase != ELSE}
    return {
        "quickstart": {
            "rounds": len(laps),
            "seconds_by_phase": {
                phase: statistics.median(lap.get(phase, 0.0) for lap, _ in laps) for phase in (*phases, ELSE)
            },
            "seconds": statistics.median(sum(lap.values()) for lap, _ in laps),
            "acc1": laps[0][1],
        }
    }


def _run(setting: Setting, index: int) -> tuple[dict[str, float], float]:
    """Return the seconds of one run by phase, and its accuracy."""
    folder = setting.folder / f"quickstart {index}"
    options = {"output": folder / "run", "data.cache_dir": folder / "cache", "train.progress": "false"}
    words = [f"--{key}={value}" for key, value in options.items()]
    config, _ = parse("", arguments=["--config", CONFIG, *words])
    start = time.perf_counter()
    task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
    loaded = time.perf_counter()
    classifier = build_classifier(config, task, setting.device)
    built = time.perf_counter()
    results = fit(classifier, task, config, setting.accelerator).results
    end = time.perf_counter()
    seconds = {"loading the task": loaded - start, "loading the source": built - loaded, **results["seconds"]}
    print(f"  {end - start:.1f} s", flush=True)
    return {**seconds, ELSE: end - start - sum(seconds.values())}, results["metrics"]["test.last"]["acc1"]
