"""A label space of tens of thousands of texts: counted a batch at a time, in the memory of the counts alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak memory of a process is read where Linux tells it"
)

# Peak memory is a process's, so the measured part runs in one of its own.
MEASURE = """
import json, sys, time, torch
from clipvp.mappings.assignment import assign_greedy, assign_within, count_matrix

torch.set_num_threads(1)
templates, num_classes, num_images, batch = map(int, sys.argv[1:])
S, T, D = templates * num_classes, num_classes, 64
generator = torch.Generator().manual_seed(0)
texts, images = (
    torch.nn.functional.normalize(torch.randn(n, D, generator=generator), dim=1) for n in (S, num_images)
)
targets = torch.randint(0, T, (num_images,), generator=generator)

def peak():  # of this program alone; what getrusage tells begins with the memory of the process that started it
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

spent = 0.0
def batches():
    global spent
    for start in range(0, num_images, batch):
        began = time.thread_time()
        logits = 100 * images[start : start + batch] @ texts.T
        spent += time.thread_time() - began
        yield logits, targets[start : start + batch]

next(batches())
spent, before, began = 0.0, peak(), time.thread_time()
counts = count_matrix(batches(), S, T)
greedy, within = assign_greedy(counts), assign_within(counts)
seconds = time.thread_time() - began - spent
more = peak() - before

# The definition, an image at a time.
expected = torch.zeros(S, T, dtype=torch.int64)
for image, target in zip(images[:500], targets[:500].tolist()):
    expected[int((texts @ image).argmax()), target] += 1
first = count_matrix([(100 * images[:500] @ texts.T, targets[:500])], S, T)
print(json.dumps({
    "seconds": seconds,
    "megabytes": more,
    "total": int(counts.sum()),
    "same": bool((first == expected).all()),
    "classes": counts.sum(0).tolist() == targets.bincount(minlength=T).tolist(),
    "distinct": len(set(greedy.tolist())) == T,
    "largest": int(counts[greedy, torch.arange(T)].max()) == int(counts.max()),
    "own": (within % T).tolist() == list(range(T)),
}))
"""


def measure(*sizes: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, sizes)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(found: dict, num_images: int) -> None:
    assert found["total"] == num_images
    assert all(found[law] for law in ("same", "classes", "distinct", "largest", "own")), found


def test_counting_needs_the_counts_and_one_batch_of_logits():
    templates, num_classes, num_images = 81, 50, 8000
    found = measure(templates, num_classes, num_images, 128)
    check(found, num_images)
    # All logits at once would be 130 MB; the counts are 1.6, a batch of logits is 2.
    assert 1 < found["megabytes"] < 40, found


@pytest.mark.slow
def test_the_label_space_of_sun397():
    found = measure(81, 397, 16_000, 128)
    check(found, 16_000)
    print(f"S = 32157, T = 397: {found['seconds']:.2f} s of one core, {found['megabytes']:.0f} MB more")
    assert 100 < found["megabytes"] < 500, found
