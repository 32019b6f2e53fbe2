"""A process of its own that loads sources from a hub: the hub client reads its settings when it is imported.

As a program it reads a job a line, {"name", "token", "options"}, and answers a line; ``Client`` starts and asks it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


class Client:
    """A process that loads.

    Args:
        environment: Its whole environment.
        noise: Where its standard error goes.
    """

    def __init__(self, environment: dict[str, str], noise: Path):
        self.noise, self.heard = noise, 0
        with noise.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def load(self, name: str, token: str = "", **options) -> dict:
        """Return {"logits", "fingerprint", "names"} or {"error"} of a load, with "seconds" and "noise"."""
        self.process.stdin.write(json.dumps({"name": name, "token": token, "options": options}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        noise = self.noise.read_text()
        new, self.heard = noise[self.heard :], len(noise)
        if not line:
            raise RuntimeError(f"the client ended: {new}")
        return {**json.loads(line), "noise": new}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def scores(source) -> list[float]:
    """Return the logits of one picture, the same for every source of a canvas."""
    import torch

    height, width = source.canvas
    return source(torch.linspace(0, 1, 3 * height * width).view(1, 3, height, width))[0].tolist()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints is noise
    from clipvp import UserError, load_source

    for line in sys.stdin:
        job, start, answer = json.loads(line), time.monotonic(), {}
        os.environ["HF_TOKEN"] = job["token"]
        try:
            source = load_source(job["name"], **job["options"])
            answer = {
                "logits": scores(source),
                "fingerprint": source.fingerprint,
                "names": source.labels.names,
            }
        except UserError as error:
            answer = {"error": str(error)}
        answer["seconds"] = time.monotonic() - start
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
