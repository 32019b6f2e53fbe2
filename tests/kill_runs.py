"""Kill a run at random moments, each time going on from what it left: python tests/kill_runs.py --help.

Everything is imported once; each attempt is a fork of this process, so that moments of work are hit, not of starting.
"""

import argparse
import json
import mmap
import os
import random
import signal
import sys
import time

from clipvp import build_classifier, fit, load_task
from clipvp.config.parse import parse
from clipvp.progress import Clock

PHASES = ["data", "core", "counting", "training", "validating", "saving", "testing"]
_FINISHED = 255


def attempt(arguments: list[str], now: mmap.mmap) -> None:
    """Train in this process; ``now`` tells the one that watches which phase is entered, and how many were."""
    enter = Clock.__call__

    def told(clock, phase):
        now[0], now[1] = PHASES.index(phase), (now[1] + 1) % 256
        return enter(clock, phase)

    Clock.__call__ = told
    config, _ = parse("an attempt", arguments=[*arguments, "--resume=auto"])
    task = load_task(config.data, seed=config.seed)
    fit(build_classifier(config, task), task, config)
    now[0] = _FINISHED


def launch(arguments: list[str]) -> tuple[int, mmap.mmap]:
    now = mmap.mmap(-1, 2)
    now[0] = _FINISHED - 1  # no phase yet
    child = os.fork()
    if child == 0:
        try:
            attempt(arguments, now)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return child, now


def killed_in(arguments: list[str], phase: str, entries: int, delay: float) -> str | None:
    """Kill a run so many seconds after it entered a phase for the n-th time; return where it was, None if it ended."""
    child, now = launch(arguments)
    seen, last = 0, now[1]
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if now[1] != last:
            last = now[1]
            seen += PHASES[now[0]] == phase if now[0] < len(PHASES) else 0
        if seen >= entries:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return PHASES[now[0]] if now[0] < len(PHASES) else None
        time.sleep(1e-4)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options, arguments = parser.parse_known_args()
    chance = random.Random(options.seed)
    hit: dict[str, int] = {}
    for kill in range(options.kills):
        # Testing comes at the end of a run; then there is nothing else left to be killed in.
        phase = "testing" if kill >= options.kills - 2 else PHASES[kill % (len(PHASES) - 1)]
        entries = 1 if phase in ("data", "core", "testing") else chance.randint(1, 2)
        delay = chance.uniform(0, 0.004 if phase == "saving" else 0.02)
        where = killed_in(arguments, phase, entries, delay)
        if where is None:
            sys.exit(f"kill {kill + 1}: the run ended before it entered {phase} {entries} times")
        hit[where] = hit.get(where, 0) + 1
    child, now = launch(arguments)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit("the last attempt did not end well")
    print(json.dumps(hit))


if __name__ == "__main__":
    main()
