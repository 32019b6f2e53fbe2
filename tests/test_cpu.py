"""Freed memory is kept or returned to the system, and importing open_clip does not change the environment."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import sys
import torch
from clipvp.cpu import keep_freed_memory

keep_freed_memory(sys.argv[1] == "keep")

def work():
    maps = torch.ones(10 << 20)  # 40 MiB
    for _ in range(10):
        maps = maps + 1

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only for the GNU C library")
def test_kept_memory_is_not_requested_again():
    page_faults = {
        how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True).stdout)
        for how in ("keep", "give back")
    }
    assert page_faults["keep"] < page_faults["give back"] / 3


IMPORT = """
import os
from clipvp.cpu import import_open_clip

print(import_open_clip().__name__, os.environ.get("TOKENIZERS_PARALLELISM"))
"""


@pytest.mark.parametrize("value", [None, "true"])
def test_importing_open_clip_keeps_the_environment(value):
    environment = {name: text for name, text in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment |= {} if value is None else {"TOKENIZERS_PARALLELISM": value}
    done = subprocess.run([sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["open_clip", str(value)], done.stderr
