"""The configs of prompts of other papers resolve with their method's file, and say what the papers say."""

from pathlib import Path

import pytest

from clipvp.config.parse import parse

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
EXPECTED = {  # method, prompt, canvas of the config, optimiser, rate, epochs
    "smm_resnet18": ("smm", "smm", 224, "adam", 0.01, 200),
    "smm_vit_b32": ("smm", "smm", 384, "adam", 0.01, 200),
    "lor_vp_vit_b32": ("lor_vp", "low_rank", 224, "sgd", 0.02, 20),
    "auto_vp_resnet18": ("auto_vp", "scaled", 224, "adam", 0.001, 200),
    "vp_clip_vit_b32": ("vp", "border", 224, "sgd", 40.0, 1000),
    "evp_clip_vit_b32": ("evp", "padding", 224, "normalized_sgd", 70.0, 1000),
}


def test_there_is_a_file_for_each_and_no_other():
    assert {path.stem for path in (CONFIGS / "prompts").glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_config_resolves(name):
    method, kind, canvas, optimiser, lr, epochs = EXPECTED[name]
    files = [CONFIGS / "methods" / f"{method}.yaml", CONFIGS / "prompts" / f"{name}.yaml"]
    config, _ = parse("a test", arguments=[f"--config={file}" for file in files])
    assert (config.prompt.kind, config.source.canvas) == (kind, canvas)
    assert (config.optim.name, config.optim.lr) == (optimiser, lr)
    assert (config.train.epochs, config.train.protocol) == (epochs, "paper")
    assert getattr(config.prompt, "squash", False) == (method in ("smm", "lor_vp"))  # as their papers test


@pytest.mark.parametrize("method", ["smm", "lor_vp"])
def test_a_method_alone_squashes_as_its_paper(method):
    config, _ = parse("a test", arguments=[f"--config={CONFIGS / 'methods' / method}.yaml"])
    assert config.prompt.squash


def test_the_mask_network_of_a_vit_keeps_its_rate():
    files = [CONFIGS / "methods" / "smm.yaml", CONFIGS / "prompts" / "smm_vit_b32.yaml"]
    config, _ = parse("a test", arguments=[f"--config={file}" for file in files])
    mask = config.optim.group("prompt.mask")
    assert (mask.lr, mask.schedule, config.optim.group("prompt").schedule) == (0.001, "constant", "multistep")
