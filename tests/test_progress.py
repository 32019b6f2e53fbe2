"""How long a run takes is said once, before its first epoch is over, and where no bar says it."""

import pytest

from clipvp import progress
from clipvp.progress import Estimate, Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(monkeypatch):
    found: list[str] = []
    monkeypatch.setattr(Progress, "line", lambda self, text: found.append(text))
    return found


def test_a_run_of_several_epochs_is_estimated_once(clock, lines):
    estimate = Estimate(Progress(True), steps=100, epochs=10)
    estimate.begin(0)
    clock[0] += 2
    estimate.step(10, 10)
    assert lines == []  # too early to say
    clock[0] += 4
    estimate.step(30, 10)  # 6 seconds for 30 steps: 20 an epoch, 200 for ten
    assert lines == ["about 20 s of steps an epoch, 3 min for the 10 to come"]
    clock[0] += 9
    estimate.step(60, 10)
    assert len(lines) == 1


def test_a_run_that_goes_on_counts_its_own_steps(clock, lines):
    estimate = Estimate(Progress(True), steps=100, epochs=10)
    estimate.begin(50)
    clock[0] += 10
    estimate.step(60, 2)
    assert lines == ["about 100 s of steps an epoch, 3 min for the 2 to come"]


def test_without_a_bar_each_kind_of_phase_is_told_once(clock, lines):
    shown = Progress(True)
    for epoch in (1, 2):
        with shown.bar(200, f"epoch {epoch}/2 counting") as bar:  # pytest's output is no terminal
            bar.advance(20)
            clock[0] += 10
            bar.advance(80)
            clock[0] += 10
            bar.advance(100)
    assert lines == ["epoch 1/2 counting: 50 %, about 10 s to go"]


def test_of_many_quick_epochs_one_a_second_is_printed(clock, lines):
    few, many = Progress(True), Progress(True)
    for epoch in range(1, 51):
        few.epoch(f"few {epoch}", 50, epoch == 50)
    assert len(lines) == 50
    for epoch in range(1, 102):
        clock[0] += 0.125
        many.epoch(f"many {epoch}", 102, False)
    assert lines[50:] == [f"many {epoch}" for epoch in range(1, 102, 8)]
    many.epoch("many 102", 102, True)
    assert lines[-1] == "many 102"
