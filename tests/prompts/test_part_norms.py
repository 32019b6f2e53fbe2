"""A mask network's batch norms: equal parts, equal bits, whoever computes them; they train in steps alone."""

import pytest
import torch
from conftest import small_task, trained
from torch import nn

from clipvp import PromptedClassifier, build_classifier, fit
from clipvp.config.schema import PromptConfig
from clipvp.prompts.part_norm import PartNorm
from clipvp.prompts.smm import SMMPrompt
from clipvp.training.gradients import Backpropagation


@pytest.fixture
def smm(config):
    """A function that makes the config of a run with SMM."""

    def made(**sections):
        run = config(**sections)
        run.prompt = PromptConfig(kind="smm", patch_size=4, channels=[4, 4])
        return run

    return made


def norms_of(classifier):
    return [module for module in classifier.modules() if isinstance(module, PartNorm)]


def test_running_statistics_are_those_of_torchs_norms_given_the_parts_in_order(smm, monkeypatch):
    seen, forward = [], PartNorm.forward

    def watched(self, maps):
        if self.training:
            seen.append((self, maps.detach().clone()))
        return forward(self, maps)

    monkeypatch.setattr(PartNorm, "forward", watched)
    classifier, _ = trained(smm(train={"epochs": 2, "gradient_accumulation_steps": 3}), small_task())
    for norm in norms_of(classifier):
        plain = nn.BatchNorm2d(4).train()
        inputs = [maps for own, maps in seen if own is norm]
        assert len(inputs) == 2 * 4 * 3  # steps alone: neither counting nor scoring
        for maps in inputs:
            plain(maps)
        torch.testing.assert_close(norm.running_mean, plain.running_mean)
        torch.testing.assert_close(norm.running_var, plain.running_var)


def test_a_gradient_rule_that_asks_again_changes_the_statistics_once(smm, monkeypatch):
    task, state, once = small_task(), [], Backpropagation.__call__
    for again in (1, 3):

        def asked(self, loss, *more, again=again):
            found = once(self, loss, *more)
            for _ in range(again - 1):
                loss()
            return found

        run = smm(overwrite=True, train={"epochs": 1})
        classifier = build_classifier(run, task)
        with monkeypatch.context() as patch:
            patch.setattr(Backpropagation, "__call__", asked)
            patch.setattr(Backpropagation, "evaluations", again)
            fit(classifier, task, run)
        state.append(classifier.trained_state())
    assert all(torch.equal(value, state[1][name]) for name, value in state[0].items())


@pytest.mark.parametrize("gradient", [{}, {"gradient": "spsa", "draws": 1}])
def test_more_parts_than_images_leave_the_statistics_whole(gradient, smm, monkeypatch):
    updates, update = [], PartNorm.update

    def watched(self, taken):
        updates.append(int(taken[-1]))
        update(self, taken)

    monkeypatch.setattr(PartNorm, "update", watched)
    # 60 images: a last step of one
    run = smm(train={"epochs": 1, "batch_size": 59, "gradient_accumulation_steps": 4, **gradient})
    classifier, _ = trained(run, small_task())
    assert updates == 5 * [1, 1] + 3 * [0, 0]  # two norms; five parts have images
    for norm in norms_of(classifier):
        assert norm.running_mean.isfinite().all() and (norm.running_var > 0).all()


def test_a_mask_lets_the_prompt_act_on_some_images_alone(tmp_path):
    """The source answers 'bright' where the lower half is bright. The prompt must brighten dark-topped images alone."""
    from conftest import closed_source, small_config

    from clipvp import Task
    from clipvp.mappings.identity import IdentityMapping

    class Lower(nn.Module):
        def forward(self, pixels):
            value = 4 * pixels[:, :, 8:].mean((1, 2, 3))
            return torch.stack([-value, value], 1)

    generator = torch.Generator().manual_seed(0)

    def images(count):
        pairs = []
        for index in range(count):
            pixels = torch.full((16, 16, 3), 128.0)
            pixels[:8] = 220.0 if index % 2 else 40.0
            pixels += 10 * torch.randn(16, 16, 3, generator=generator)
            pairs.append((pixels.clamp(0, 255).to(torch.uint8).numpy(), index % 2))
        return pairs

    names = ["label 0", "label 1"]
    task = Task.from_dataset(images(64), images(32), val=images(16), class_names=names)
    accuracy = {}
    for kind in ("smm", "full"):
        source = closed_source(Lower(), 2, canvas=(16, 16))
        run = small_config("test", tmp_path / kind, optim={"lr": 0.03}, train={"epochs": 15})
        if kind == "smm":
            prompt = SMMPrompt((16, 16), (0.5,) * 3, (0.5,) * 3, 8, seed=0)
        else:
            from clipvp.prompts.full import FullPrompt

            prompt = FullPrompt((16, 16))
        classifier = PromptedClassifier(prompt, source, IdentityMapping(2, 2, [0, 1]), names)
        accuracy[kind] = fit(classifier, task, run).results["metrics"]["test.last"]["acc1"]
    assert accuracy["smm"] > 0.9 and accuracy["full"] < 0.7
