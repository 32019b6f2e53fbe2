"""Freed memory is kept for the next map, or given back, as it is by default."""

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


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries do as they like")
def test_kept_memory_is_not_taken_again():
    page_faults = {
        how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True).stdout)
        for how in ("keep", "give back")
    }
    assert page_faults["keep"] < page_faults["give back"] / 3
