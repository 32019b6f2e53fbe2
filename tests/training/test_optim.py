"""The learning rate of a step equals what torch's own schedulers give, step by step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvp.config.schema import OptimConfig
from clipvp.training.optim import build_optimizer, lr_at


def by_torch(make, lr, steps_per_epoch, epochs, per_step) -> list[float]:
    """Return the rate of each step as a scheduler of torch sets it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make(optimizer), []
    for _ in range(epochs):
        for _ in range(steps_per_epoch):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if per_step:
                scheduler.step()
        if not per_step:
            scheduler.step()
    return rates


def ours(config, steps_per_epoch, epochs) -> list[float]:
    return [lr_at(config, step, steps_per_epoch, epochs) for step in range(steps_per_epoch * epochs)]


STEPS, EPOCHS = st.integers(1, 7), st.integers(2, 60)
LAWS = settings(max_examples=40, deadline=None)


@LAWS
@given(STEPS, EPOCHS, st.lists(st.floats(0.5, 1), max_size=3), st.sampled_from([0.1, 0.5]))
def test_multistep_is_torchs(steps, epochs, milestones, gamma):
    config = OptimConfig(lr=0.3, schedule="multistep", milestones=milestones, gamma=gamma)
    places = [int(share * epochs) for share in milestones]
    expected = by_torch(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, places, gamma), 0.3, steps, epochs, False
    )
    assert ours(config, steps, epochs) == pytest.approx(expected, rel=1e-9)


@LAWS
@given(STEPS, EPOCHS)
def test_cosine_is_torchs_stepped_each_step(steps, epochs):
    expected = by_torch(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps * epochs), 40, steps, epochs, True
    )
    assert ours(OptimConfig(lr=40, schedule="cosine"), steps, epochs) == pytest.approx(expected, abs=1e-9)


@LAWS
@given(STEPS, EPOCHS)
def test_cosine_epoch_is_torchs_stepped_each_epoch(steps, epochs):
    expected = by_torch(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs), 0.1, steps, epochs, False
    )
    rates = ours(OptimConfig(lr=0.1, schedule="cosine_epoch"), steps, epochs)
    assert rates == pytest.approx(expected, abs=1e-12)


def test_the_papers_settings_over_200_epochs():
    config = OptimConfig()  # Adam 0.01, x 0.1 at 50 % and 72 %
    rates = [lr_at(config, epoch, 1, 200) for epoch in range(200)]
    assert rates == pytest.approx([0.01] * 100 + [0.001] * 44 + [0.0001] * 56)


def test_a_run_of_one_epoch_keeps_its_rate():
    assert ours(OptimConfig(lr=0.5, schedule="multistep"), 4, 1) == [0.5] * 4


def test_constant_is_constant():
    assert set(ours(OptimConfig(lr=0.2, schedule="constant"), 3, 5)) == {0.2}


@pytest.mark.parametrize("schedule", ["multistep", "cosine", "cosine_epoch", "constant"])
def test_warm_up_rises_in_a_line_and_the_schedule_takes_over(schedule):
    config = OptimConfig(lr=1.0, schedule=schedule, warmup=0.2)
    rates = ours(config, 5, 10)  # 50 steps, 10 of them warm-up
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[10:], rates[11:], strict=False))
    if schedule == "cosine":
        bare = [lr_at(OptimConfig(lr=1.0, schedule=schedule), step, 1, 40) for step in range(40)]
        assert rates[10:] == pytest.approx(bare)
    assert all(0 <= rate <= 1 for rate in rates)


@pytest.mark.parametrize(
    "name, kind, expected",
    [
        ("adam", torch.optim.Adam, {"lr": 0.3, "weight_decay": 0.01}),
        ("adamw", torch.optim.AdamW, {"lr": 0.3, "weight_decay": 0.01}),
        ("sgd", torch.optim.SGD, {"lr": 0.3, "weight_decay": 0.01, "momentum": 0.7}),
    ],
)
def test_optimisers_are_torchs_with_the_configs_values(name, kind, expected):
    config = OptimConfig(name=name, lr=0.3, momentum=0.7, weight_decay=0.01)
    optimizer = build_optimizer(config, [torch.nn.Parameter(torch.ones(2))])
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in expected} == expected
