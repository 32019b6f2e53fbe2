"""BlackVIP's coordinator: its formula, what is saved, and what trains without gradient."""

import pytest
import timm
import torch
from conftest import trained
from timm.models._hub import save_for_hf
from torch.nn import functional as F

from clipvp import PromptedClassifier, UserError, build_classifier
from clipvp.artifact.pictures import save_pictures
from clipvp.export import export_onnx
from clipvp.mappings.statistic import Counts
from clipvp.prompts.coordinator import CoordinatorPrompt


@pytest.fixture
def encoder(tiny_timm_vit) -> str:
    return tiny_timm_vit.removeprefix("timm:")


@pytest.fixture
def prompt(encoder) -> CoordinatorPrompt:
    return CoordinatorPrompt((32, 32), encoder, 0.4, (0.5, 0.25, 0.2))


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_pixels_are_the_formula(prompt, encoder):
    network = timm.create_model(encoder, pretrained=True, num_classes=0).eval()
    size = network.pretrained_cfg["input_size"][1:]
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = network((F.interpolate(images(), size, mode="bilinear", antialias=True) - mean) / std)
        joined = torch.cat([features, prompt.trigger.expand(3, -1)], 1)
        assert joined.shape == (3, 32 * 49)
        picture = prompt.decoder(joined.view(3, 32, 7, 7))
        assert picture.shape == (3, 3, 224, 224) and picture.std() > 0.01
        picture = F.interpolate(picture, (32, 32), mode="bilinear", antialias=True)
        scale = 0.4 * torch.tensor([0.5, 0.25, 0.2]).view(3, 1, 1)
        expected = (images() + scale * picture).clamp(0, 1)
        torch.testing.assert_close(prompt(images()), expected, rtol=1e-4, atol=1e-5)
    assert (prompt.trigger >= 0).all() and (prompt.trigger <= 0.1).all()


def test_the_seed_of_the_run_draws_the_start(encoder, config, tiny_task):
    def start(seed):
        run = config(prompt={"kind": "coordinator", "encoder": encoder}, seed=seed)
        prompt = build_classifier(run, tiny_task).prompt
        again = CoordinatorPrompt(**prompt.settings)
        assert all(torch.equal(*pair) for pair in zip(prompt.parameters(), again.parameters(), strict=True))
        return torch.cat([value.detach().flatten() for value in prompt.parameters()])

    assert torch.equal(start(5), start(5)) and not torch.equal(start(5), start(6))


def test_an_encoder_whose_features_are_wider_than_its_map_fits(tmp_path):
    network = timm.create_model("mobilenetv3_small_050", num_classes=10)
    assert network.head_hidden_size != network.num_features
    save_for_hf(network, tmp_path)
    prompt = CoordinatorPrompt((32, 32), f"local-dir:{tmp_path}", 0.4, (1, 1, 1))
    assert prompt(images()).shape == (3, 3, 32, 32)


def test_an_image_does_not_depend_on_its_batch(prompt):
    with torch.no_grad():
        torch.testing.assert_close(prompt(images())[1:2], prompt(images()[1:2]), rtol=1e-4, atol=1e-5)


def test_features_of_the_same_images_are_computed_once(prompt):
    calls = []
    prompt._encoder[0].register_forward_hook(lambda *given: calls.append(1))
    batch = images()
    first = prompt(batch)
    assert torch.equal(prompt(batch), first) and len(calls) == 1
    batch[0] = 0  # written to
    assert not torch.equal(prompt(batch), first) and len(calls) == 2
    prompt(images())
    assert len(calls) == 3


def test_what_inference_mode_made_is_not_kept(prompt):
    batch = images()
    with torch.no_grad():
        expected = prompt(batch)
    with torch.inference_mode():
        made = images()
        torch.testing.assert_close(prompt(made), expected)
        made[0] = 0  # nothing tells that it was written to
        assert not torch.equal(prompt(made), expected)
        fresh = images(2)
        prompt(batch), prompt(fresh)
    with torch.no_grad():
        torch.testing.assert_close(prompt(fresh), expected[:2])  # an inference tensor outside of the mode
    later = images()
    with torch.inference_mode():
        prompt(later)
    prompt(later).sum().backward()  # no feature that was made under inference_mode


def test_it_is_exported_for_any_number_of_images(encoder, config, tiny_task, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    run = config(prompt={"kind": "coordinator", "encoder": encoder, "share_border": False})
    classifier = build_classifier(run, tiny_task).eval()
    classifier.mapping.fit(Counts.from_matrix(torch.ones(20, 3, dtype=torch.int64)))
    assert export_onnx(classifier, tmp_path / "model.onnx") <= 1e-4
    assert torch.equal(
        classifier.prompt(images()), classifier.prompt(images())
    )  # nothing is left of the export


def test_gradients_reach_trigger_and_decoder_alone(prompt):
    prompt(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in prompt.parameters())
    assert set(prompt.parameter_groups()) == {"prompt.trigger", "prompt.decoder"}
    assert prompt.num_trainable() == sum(value.numel() for value in prompt.state_dict().values())
    assert not any(parameter.requires_grad for parameter in prompt._encoder[0].parameters())


def test_it_trains_by_spsa_and_is_loaded_without_the_encoder_in_its_file(
    encoder, config, tiny_task, tmp_path
):
    run = config(
        prompt={"kind": "coordinator", "encoder": encoder},
        optim={"name": "sgd", "lr": 0.01, "nesterov": True, "schedule": "power"},
        train={"gradient": "spsa", "draws": 1, "epochs": 1},
    )
    start = build_classifier(run, tiny_task).prompt.trigger.detach().clone()
    classifier, result = trained(run, tiny_task)
    assert not torch.equal(classifier.prompt.trigger, start)
    written = save_pictures(result, classifier, tiny_task)
    assert "masks.png" in written and "prompt.png" not in written
    assert "](masks.png)" in (tmp_path / "run" / "prompt" / "README.md").read_text(encoding="utf-8")
    loaded = PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt")
    with torch.no_grad():
        assert torch.equal(loaded(images()), classifier.eval()(images()))
    assert (tmp_path / "run" / "prompt" / "model.safetensors").stat().st_size < 100_000


def test_wrong_encoders_are_refused(encoder):
    with pytest.raises(UserError, match="prompt.encoder: 'vit_hugest' cannot be loaded by timm") as error:
        CoordinatorPrompt((32, 32), "vit_hugest", 0.4, (1, 1, 1))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="has weights .*, and the prompt was made for 0123"):
        CoordinatorPrompt((32, 32), encoder, 0.4, (1, 1, 1), weights="0123")
