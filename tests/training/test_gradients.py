"""Gradient rules: estimates equal their formulas, queries are counted and bounded, runs resume to the bit."""

import json

import pytest
import torch
from conftest import closed_source, left_by, trained, write_image_folder
from test_processes import alone, computed, launched, settings_of
from test_resume import stop_after

from clipvp import UserError, build_classifier, fit
from clipvp.config.schema import OptimConfig, TrainConfig
from clipvp.registry import GRADIENTS
from clipvp.training.interrupt import Interrupted
from clipvp.training.optim import ScheduledOptimizer, lr_at

FREE = ["spsa", "random_directions"]
BLACKVIP = {"name": "sgd", "lr": 2.0, "momentum": 0.9, "nesterov": True, "schedule": "power", "power": 0.4}


def rule_of(name: str, seed: int = 0, **settings):
    config = TrainConfig(gradient=name, **settings)
    return GRADIENTS.get(name)(config, seed)


class Problem:
    """A smooth loss of two parameters that notes where it is evaluated."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.parameters = [
            torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
            for shape in ((3, 2), (4,))
        ]
        self.slope = torch.randn(10, generator=generator, dtype=torch.float64)
        self.places, self.values = [], []

    def flat(self) -> torch.Tensor:
        return torch.cat([parameter.flatten() for parameter in self.parameters])

    def __call__(self) -> torch.Tensor:
        w = self.flat()
        value = self.slope @ w + 0.3 * (w**2).sum() + 0.1 * w[0] * w[9]
        self.places.append(w.detach().clone()), self.values.append(value.detach())
        return value

    def estimate(self, rule, step: int = 0) -> torch.Tensor:
        return torch.cat([gradient.flatten() for gradient in rule(self, self.parameters, step)])


def test_spsa_is_its_formula():
    problem, rule = Problem(), rule_of("spsa", radius=0.02, radius_decay=0.2, draws=3)
    start = problem.flat().detach().clone()
    found = problem.estimate(rule, step=6)
    radius, total = 0.02 / 7**0.2, 0
    assert len(problem.places) == rule.evaluations == 6
    for draw in range(3):
        up, down = problem.places[2 * draw], problem.places[2 * draw + 1]
        direction = (up - start) / radius
        torch.testing.assert_close(down, start - radius * direction)
        assert ((direction.abs() > 0.499) & (direction.abs() < 1.001)).all()
        total = total + (problem.values[2 * draw] - problem.values[2 * draw + 1]) / (2 * radius * direction)
    torch.testing.assert_close(found, total / 3)
    assert torch.equal(problem.flat(), start)  # to the bit


def test_random_directions_are_their_formula():
    problem, rule = Problem(), rule_of("random_directions", radius=0.02, draws=4)
    start = problem.flat().detach().clone()
    found = problem.estimate(rule, step=6)
    assert len(problem.places) == rule.evaluations == 5 and torch.equal(problem.places[0], start)
    total = 0
    for place, value in zip(problem.places[1:], problem.values[1:], strict=True):
        total = total + (place - start) / 0.02 * (value - problem.values[0]) / 0.02
    torch.testing.assert_close(found, total / 4)
    assert torch.equal(problem.flat(), start)


@pytest.mark.parametrize("name", FREE)
def test_the_mean_of_many_draws_is_the_gradient(name):
    problem = Problem()
    problem().backward()
    exact = torch.cat([parameter.grad.flatten() for parameter in problem.parameters])
    few, many = (problem.estimate(rule_of(name, draws=draws, radius=1e-3)) - exact for draws in (20, 2500))
    assert many.norm() < 0.12 * exact.norm() and many.norm() < 0.3 * few.norm()


@pytest.mark.parametrize("name", FREE)
def test_directions_are_a_function_of_seed_and_step(name):
    state = torch.get_rng_state()
    first = Problem().estimate(rule_of(name), step=4)
    assert torch.equal(Problem().estimate(rule_of(name), step=4), first)
    assert not torch.equal(Problem().estimate(rule_of(name), step=5), first)
    assert not torch.equal(Problem().estimate(rule_of(name, seed=1), step=4), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_nesterov_is_the_gradient_correction_of_blackvip():
    weight = torch.nn.Parameter(torch.ones(5))
    config = OptimConfig(**BLACKVIP)
    optimizer = ScheduledOptimizer(config, {"prompt": [weight]}, 4, 3)
    w, m = torch.ones(5), torch.zeros(5)
    for step in range(12):
        g = torch.randn(5, generator=torch.Generator().manual_seed(step))
        weight.grad = g.clone()
        optimizer.step(step)
        m = 0.9 * m + g
        w = w - 2.0 / (step + 2) ** 0.4 * (g + 0.9 * m)  # a / (k + 1) ** 0.4 at k = 1, 2, ...
        torch.testing.assert_close(weight.detach(), w)


def test_polynomial_falls_to_zero():
    config = OptimConfig(lr=5.0, schedule="polynomial", power=0.9)
    rates = [lr_at(config, step, 5, 4) for step in range(20)]
    assert rates == pytest.approx([5 * (1 - step / 20) ** 0.9 for step in range(20)])


@pytest.mark.parametrize("name", FREE)
def test_the_loss_falls_as_by_backpropagation(name, config, tiny_task, tmp_path):
    """On 20 logits of each of 60 images, which the prompt does not change: a problem that each rule must solve."""

    def losses(gradient: str) -> list[float]:
        run = config(
            prompt={"kind": "none"},
            mapping={"kind": "linear", "takes": "logits", "standardise": True},
            optim={"lr": 0.05},
            train={"epochs": 25, "gradient": gradient},
            output=str(tmp_path / gradient),
        )
        return [row["train_loss"] for row in trained(run, tiny_task)[1].history]

    exact, found = losses("backpropagation"), losses(name)
    assert found[-1] < 0.5 * found[0] and found[-1] < exact[0]


def test_parts_of_a_step_change_rounding_alone(config, tiny_task, tmp_path):
    deltas = []
    for parts in (1, 3):
        train = {"epochs": 1, "gradient": "spsa", "draws": 2, "gradient_accumulation_steps": parts}
        run = config(train=train, optim={"name": "sgd", "lr": 0.1}, output=str(tmp_path / str(parts)))
        deltas.append(trained(run, tiny_task)[0].prompt.delta.detach())
    assert deltas[0].norm() > 0 and (deltas[1] - deltas[0]).norm() < 0.05 * deltas[0].norm()


# Queries


@pytest.mark.parametrize(
    "train, mapping",
    [
        ({"gradient": "backpropagation"}, {}),
        ({"gradient": "spsa", "draws": 2}, {"refresh": 2}),
        ({"gradient": "spsa", "draws": 2, "max_queries": 1000}, {}),
        ({"gradient": "random_directions", "draws": 2}, {"statistics": "running"}),
    ],
)
def test_queries_are_the_images_that_the_source_sees(train, mapping, config, tiny_task, tmp_path):
    run = config(train={"eval_every": 2, **train}, mapping=mapping, prompt={"share_border": False})
    classifier = build_classifier(run, tiny_task)
    seen = []
    classifier.source.network.register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0]))
    )
    results = fit(classifier, tiny_task, run).results
    queries = results["queries"]
    assert queries["total"] == sum(seen) == sum(count for key, count in queries.items() if key != "total")
    factor = {"backpropagation": 1, "spsa": 4, "random_directions": 3}[train["gradient"]]
    counted = 1 if mapping else 3
    counted = 2 if mapping.get("refresh") == 2 else counted
    if "max_queries" not in train:
        expected = {"training": 3 * 60 * factor, "counting": counted * 60, "validating": 2 * 18}
        assert {key: queries[key] for key in expected} == expected
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["queries"] == queries["total"] - queries["testing"]
    saved = json.loads((tmp_path / "run" / "prompt" / "config.json").read_text())
    assert saved["results"]["queries"] == queries
    assert (
        f"{queries['total']:,} queries to the source, answers from the disk included"
        in (tmp_path / "run" / "prompt" / "README.md").read_text()
    )


@pytest.mark.parametrize("limit", [142, 143, 241, 242, 500])
def test_training_ends_within_its_queries(limit, config, tiny_task, tmp_path):
    train = {"gradient": "spsa", "draws": 2, "max_queries": limit, "epochs": 9}
    _, result = trained(config(train=train), tiny_task)
    queries, rows = result.results["queries"], result.history
    used = queries["total"] - queries["testing"]
    assert used <= limit and used == rows[-1]["queries"]
    # Neither a step nor a next epoch, with its counting and its validation, would have fitted in.
    assert used + 64 > limit or (queries["training"] % 240 == 0 and used + 60 + 64 + 18 > limit)
    assert "val_acc1" in rows[-1] and result.results["best_epoch"] is not None


def test_queries_that_do_not_allow_a_step_are_refused(config, tiny_task, tmp_path):
    with pytest.raises(
        UserError, match="max_queries: 141 does not allow a first step: it takes 64, .* 60, .* 18"
    ):
        trained(config(train={"gradient": "spsa", "draws": 2, "max_queries": 141}), tiny_task)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_outputs_that_are_computed_once_are_queries_once(config, tiny_task):
    run = config(prompt={"kind": "none"}, mapping={"kind": "linear", "takes": "logits"})
    assert trained(run, tiny_task)[1].results["queries"] == {"total": 103, "features": 103}


def test_a_limit_below_outputs_that_are_computed_once_is_refused_before_they_are(config, tiny_task, tmp_path):
    run = config(prompt={"kind": "none"}, mapping={"kind": "linear", "takes": "logits"})
    run.train.max_queries = 102
    classifier = build_classifier(run, tiny_task)
    classifier.source.network.register_forward_hook(lambda *given: pytest.fail("it was asked"))
    with pytest.raises(
        UserError, match="max_queries: 102 does not allow this run: it asks about all its 103 images"
    ):
        fit(classifier, tiny_task, run)
    assert not (tmp_path / "run").exists()


def test_a_rule_that_miscounts_is_found(config, tiny_task, monkeypatch):
    monkeypatch.setattr(
        GRADIENTS.get("spsa"), "evaluations", property(lambda self: 3, lambda self, value: None)
    )
    with pytest.raises(TypeError, match="'spsa' says 3 evaluations and made 10"):
        trained(config(train={"gradient": "spsa"}), tiny_task)


@pytest.mark.parametrize("name", FREE)
def test_stopped_and_resumed_is_never_stopped(name, config, tiny_task, tmp_path, monkeypatch):
    settings = {"optim": BLACKVIP, "train": {"gradient": name, "draws": 1, "max_queries": 480}}
    trained(config(output=str(tmp_path / "whole"), **settings), tiny_task)
    whole = left_by(tmp_path / "whole")
    for step in (4, 6):
        output = str(tmp_path / f"stopped-{step}")
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(Interrupted):
                trained(config(output=output, **settings), tiny_task)
        trained(config(output=output, resume="auto", **settings), tiny_task)
        assert left_by(tmp_path / f"stopped-{step}") == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", FREE)
def test_two_processes_give_the_bits_of_one(name, tiny_timm, tmp_path):
    images = write_image_folder(tmp_path / "images", {"train": 55, "val": 11, "test": 29}, 3)
    more = [f"--train.gradient={name}", "--train.draws=2", "--train.max_queries=1000", "--optim.name=sgd"]
    more += ["--optim.nesterov=true", "--optim.lr=2"]
    one, two = (settings_of(images, tiny_timm, tmp_path / place, "exact") + more for place in ("one", "two"))
    alone([*one, "--train.gradient_accumulation_steps=2"])
    launched(2, two)
    assert computed(tmp_path / "two") == computed(tmp_path / "one")
    assert computed(tmp_path / "one")[0]["queries"]["training"] > 0


# Wrong input


def test_a_source_without_gradient_names_the_rules_that_work(config, tiny_task, tmp_path):
    run = config()
    classifier = build_classifier(run, tiny_task)
    classifier.source.gives_gradient = False
    with pytest.raises(UserError) as error:
        fit(classifier, tiny_task, run)
    assert (
        "gives none; allowed: random_directions, spsa" in str(error.value) and not (tmp_path / "run").exists()
    )
    assert closed_source(torch.nn.Identity(), 3).gives_gradient


@pytest.mark.parametrize(
    "values, message",
    [
        ({"gradient": "spas"}, "unknown gradient rule 'spas'; did you mean 'spsa'"),
        ({"gradient": "spsa", "radius": 0}, "train.radius: 0"),
        ({"gradient": "spsa", "draws": 0}, "train.draws: 0"),
        ({"gradient": "spsa", "radius_decay": -1}, "train.radius_decay: -1"),
        ({"draws": 3}, "draws is a key of random_directions, spsa"),
        ({"max_queries": 0}, "train.max_queries: 0"),
        ({"max_queries": 9, "average": 2}, "train.average: 2 does not go with train.max_queries"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**values)
