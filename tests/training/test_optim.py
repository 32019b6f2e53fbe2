"""Rates and steps equal those of torch's own schedulers and optimisers, for each group of parameters."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvp.config.schema import OptimConfig
from clipvp.registry import UserError
from clipvp.training.optim import ScheduledOptimizer, lr_at


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
    own = {"momentum": 0.7} if name == "sgd" else {}
    config = OptimConfig(name=name, lr=0.3, weight_decay=0.01, **own)
    optimizer = ScheduledOptimizer(config, {"prompt": [torch.nn.Parameter(torch.ones(2))]}, 1, 1).optimizer
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in expected} == expected


# Steps


KINDS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
SHAPES = {"prompt": [(3, 4)], "mapping": [(5,), (2, 2)]}


def parameters(seed: int = 0) -> dict[str, list[torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        for name, shapes in SHAPES.items()
    }


def set_gradients(groups, step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for own in groups.values():
        for parameter in own:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def same(one, other) -> bool:
    return all(torch.equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_one_group_takes_torchs_own_steps_to_the_bit(name):
    steps, epochs = 3, 4
    config = OptimConfig(name=name, lr=0.3, weight_decay=0.02, schedule="constant")
    ours, theirs = ({"prompt": parameters()["prompt"]} for _ in range(2))
    scheduled = ScheduledOptimizer(config, ours, steps, epochs)
    more = {"momentum": 0.9} if name == "sgd" else {}
    plain = KINDS[name](theirs["prompt"], lr=0.3, weight_decay=0.02, **more)
    for step in range(steps * epochs):
        set_gradients(ours, step), set_gradients(theirs, step)
        scheduled.step(step)
        plain.step()
        assert same(ours, theirs)
        assert all(parameter.grad is None for parameter in ours["prompt"])


OWN = {
    "rate": {"lr": 0.004},
    "schedule": {"schedule": "constant", "weight_decay": 0.1},
    "all": {"lr": 3.0, "schedule": "multistep", "milestones": [0.25, 0.5], "gamma": 0.3, "warmup": 0.1},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("own", OWN)
def test_two_groups_take_the_steps_of_two_optimisers(name, own):
    """Each group has the rates and settings of a run of its own."""
    steps, epochs = 5, 8
    shared = {"lr": 0.05, "weight_decay": 0.01, "schedule": "cosine"}
    config = OptimConfig(name=name, **shared, groups={"mapping": OWN[own]})
    alone = {
        "prompt": OptimConfig(name=name, **shared),
        "mapping": OptimConfig(name=name, **{**shared, **OWN[own]}),
    }
    ours, theirs = parameters(), parameters()
    scheduled = ScheduledOptimizer(config, ours, steps, epochs)
    more = {"momentum": 0.9} if name == "sgd" else {}
    plain = {
        group: KINDS[name](theirs[group], lr=settings.lr, weight_decay=settings.weight_decay, **more)
        for group, settings in alone.items()
    }
    for step in range(steps * epochs):
        set_gradients(ours, step), set_gradients(theirs, step)
        rates = {group: lr_at(settings, step, steps, epochs) for group, settings in alone.items()}
        assert scheduled.rates(step) == rates
        scheduled.step(step)
        for group, optimizer in plain.items():
            optimizer.param_groups[0]["lr"] = rates[group]
            optimizer.step()
        assert same(ours, theirs)
    assert own == "rate" or rates["prompt"] != rates["mapping"]


def test_the_rate_of_a_step_does_not_depend_on_the_steps_before():
    """A run that goes on in the middle needs nothing but the step."""
    config = OptimConfig(lr=0.5, schedule="cosine", groups={"mapping": {"lr": 0.1, "warmup": 0.5}})
    ours, theirs = parameters(), parameters()
    one, other = (ScheduledOptimizer(config, groups, 4, 5) for groups in (ours, theirs))
    for step in range(7):
        set_gradients(ours, step), one.step(step)
    other.optimizer.load_state_dict(copy.deepcopy(one.optimizer.state_dict()))
    for name in ours:
        for a, b in zip(ours[name], theirs[name], strict=True):
            b.data.copy_(a)
    for step in range(7, 20):
        set_gradients(ours, step), set_gradients(theirs, step)
        one.step(step), other.step(step)
    assert same(ours, theirs)


def test_an_unknown_group_is_one_clear_error():
    config = OptimConfig(groups={"maping": {"lr": 0.1}})
    with pytest.raises(UserError) as error:
        ScheduledOptimizer(config, parameters(), 1, 1)
    message = str(error.value)
    assert "\n" not in message
    assert message == (
        "optim.groups: nothing trains in a group 'maping'; did you mean 'mapping'? allowed: prompt, mapping"
    )


@pytest.mark.parametrize(
    "group, words",
    [
        ({"rate": 0.1}, "optim.groups.mapping: unknown value 'rate'; .*lr"),
        ({"momentum": 0.1}, "optim.groups.mapping: unknown value 'momentum'"),
        ({"name": "sgd"}, "optim.groups.mapping: unknown value 'name'"),
        ({"lr": -1.0}, "optim.groups.mapping: optim.lr: -1.0 is not allowed"),
        ({"schedule": "cosin"}, "optim.groups.mapping: optim.schedule: .*did you mean 'cosine'"),
        (0.1, "optim.groups.mapping: 0.1 is not a section with keys"),
    ],
)
def test_a_wrong_setting_of_a_group_is_told_by_its_key(group, words):
    with pytest.raises(UserError, match=words) as error:
        OptimConfig(groups={"mapping": group})
    assert "\n" not in str(error.value)


@LAWS
@given(STEPS, EPOCHS, st.integers(1, 30), st.sampled_from(["cosine", "constant"]))
def test_warm_up_in_steps_rises_linearly_and_cosine_follows(steps, epochs, warmup, schedule):
    rates = ours(OptimConfig(lr=40, schedule=schedule, warmup_steps=warmup), steps, epochs)
    after = len(rates) - warmup
    expected = [40 * (step + 1) / warmup for step in range(min(warmup, len(rates)))]
    expected += [
        20 * (1 + math.cos(math.pi * step / after)) if schedule == "cosine" else 40 for step in range(after)
    ]
    assert rates == pytest.approx(expected)


def test_warm_up_is_a_share_or_a_number_of_steps():
    with pytest.raises(UserError, match="optim.warmup and optim.warmup_steps both"):
        OptimConfig(warmup=0.1, warmup_steps=10)
    with pytest.raises(UserError, match="optim.warmup_steps: -1 is not allowed"):
        OptimConfig(warmup_steps=-1)


def test_a_normalised_step_has_the_length_of_the_rate_for_each_tensor():
    generator = torch.Generator().manual_seed(0)
    values = [
        torch.nn.Parameter(torch.randn(3, 4, 5, generator=generator)),
        torch.nn.Parameter(torch.zeros(2)),
    ]
    before = [value.detach().clone() for value in values]
    scheduled = ScheduledOptimizer(
        OptimConfig(name="normalized_sgd", lr=7, schedule="constant"), {"prompt": values}, 2, 2
    )
    assert scheduled.whole_canvas
    values[0].grad = 1e-6 * torch.randn(3, 4, 5, generator=generator)
    values[1].grad = torch.zeros(2)
    expected = before[0] - 7 * values[0].grad / (values[0].grad.norm() + 1e-10)
    scheduled.step(0)
    torch.testing.assert_close(values[0].detach(), expected)
    assert torch.equal(values[1], before[1])  # no gradient, no step
    with pytest.raises(UserError, match="optim.weight_decay: 0.1 is not used by normalized_sgd"):
        OptimConfig(name="normalized_sgd", weight_decay=0.1)
