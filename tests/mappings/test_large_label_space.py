"""A label space of tens of thousands of texts: the memory of counting grows with the images, not with S x T."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak memory of a process is read where Linux tells it"
)

# Peak memory is a process's, so the measured part runs in one of its own.
BEGIN = """
import itertools, json, sys, time, torch
from clipvp.mappings.assignment import assign_greedy, assign_within
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.mappings.statistic import Counts, gather

torch.set_num_threads(1)
templates, T, num_images, batch = map(int, sys.argv[1:])
S = templates * T
generator = torch.Generator().manual_seed(0)
targets = torch.randint(0, T, (num_images,), generator=generator)

def peak():  # of this program alone; what getrusage tells begins with the memory of the process that started it
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

spent = 0.0
"""
END = """
for outputs, _ in itertools.islice(batches(), 50):  # what batches of logits take is not counted
    outputs.argmax(1)
del outputs
spent, before, began = 0.0, peak(), time.thread_time()
counts = gather(Counts(S, T), batches())
greedy, within = assign_greedy(counts), assign_within(counts, torch.arange(S) % T)
mapping = FrequencyMapping(S, T)
mapping.fit(counts)
links = mapping.links()
again = Counts(S, T)
again.add_tensors(counts.tensors())  # as a checkpoint or another process would
seconds = time.thread_time() - began - spent
more = peak() - before

cells = torch.stack(counts.cells)
print(json.dumps({
    "seconds": seconds,
    "megabytes": more,
    "total": int(counts.by_class().sum()),
    "definition": definition(),
    "classes": counts.by_class().tolist() == targets.bincount(minlength=T).tolist(),
    "distinct": len(set(greedy.tolist())) == T,
    "largest": int(counts.at(greedy, torch.arange(T)).max()) == int(cells[2].max()),
    "own": (within % T).tolist() == list(range(T)),
    "mapping": links.index[:, 0].tolist() == greedy.tolist(),
    "stored": bool((torch.stack(again.cells) == cells).all()),
}))
"""
# Logits as a CLIP makes them, and the definition of the first counts, an image at a time.
COSINES = """
D = 64
texts, images = (
    torch.nn.functional.normalize(torch.randn(n, D, generator=generator), dim=1) for n in (S, num_images)
)

def batches():
    global spent
    for start in range(0, num_images, batch):
        began = time.thread_time()
        logits = 100 * images[start : start + batch] @ texts.T
        spent += time.thread_time() - began
        yield logits, targets[start : start + batch]

def definition():
    expected = torch.zeros(S, T, dtype=torch.int64)
    for image, target in zip(images[:500], targets[:500].tolist()):
        expected[int((texts @ image).argmax()), target] += 1
    first = gather(Counts(S, T), [(100 * images[:500] @ texts.T, targets[:500])])
    return bool((first.rows(torch.arange(S)) == expected).all())
"""
# One batch of logits, whose top-1 labels are planted: what a network gives is of no matter here.
PLANTED = """
planted = (torch.rand(num_images, generator=generator) ** 2 * S).long()
planted[:1000] = 7  # a label that takes many images
logits = torch.zeros(batch, S)

def batches():
    for start in range(0, num_images, batch):
        top = planted[start : start + batch]
        rows = torch.arange(len(top))
        logits[rows, top] = 1
        yield logits[: len(top)], targets[start : start + batch]
        logits[rows, top] = 0

def definition():
    expected, sums = (planted * T + targets).unique(return_counts=True)
    return bool((cells[0] * T + cells[1] == expected).all() and (cells[2] == sums).all())
"""


def measure(logits: str, *sizes: int) -> dict:
    program = [sys.executable, "-c", BEGIN + logits + END, *map(str, sizes)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(found: dict, num_images: int) -> None:
    assert found["total"] == num_images
    laws = ("definition", "classes", "distinct", "largest", "own", "mapping", "stored")
    assert all(found[law] for law in laws), found


def test_counting_needs_less_than_the_dense_table_and_one_batch_of_logits():
    templates, num_classes, num_images = 81, 250, 3000
    found = measure(COSINES, templates, num_classes, num_images, 64)
    check(found, num_images)
    # All logits at once would be 243 MB, the table of counts 41 MB, and the cells that are seen 0.05 MB.
    assert found["megabytes"] < 20, found


@pytest.mark.slow
def test_imagenet_with_81_templates_takes_less_than_100_megabytes():
    found = measure(PLANTED, 81, 1000, 100_000, 16)
    check(found, 100_000)
    print(f"S = 81000, T = 1000: {found['seconds']:.2f} s of one core, {found['megabytes']:.0f} MB more")
    assert found["megabytes"] < 100, found  # the dense table would take 648 MB


@pytest.mark.slow
def test_the_label_space_of_sun397():
    found = measure(COSINES, 81, 397, 16_000, 128)
    check(found, 16_000)
    print(f"S = 32157, T = 397: {found['seconds']:.2f} s of one core, {found['megabytes']:.0f} MB more")
    assert found["megabytes"] < 20, found  # the dense table would take 102 MB
