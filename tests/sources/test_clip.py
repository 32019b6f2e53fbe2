"""Sources made of text: their logits are the libraries' own, and they behave as every source does."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coloured_images
from PIL import Image
from tiny_models import CLIPS, hf_clip, hf_text, open_clip_hf_text, open_clip_resnet
from torch.nn import functional as F

from clipvp import PromptedClassifier, RunConfig, Task, UserError, build_classifier, fit, load_source
from clipvp.config.schema import MappingConfig, OptimConfig, PromptConfig, SourceConfig, TrainConfig
from clipvp.labels.space import LabelSpace
from clipvp.sources.base import PixelsInParts, Source
from clipvp.sources.clip import ClipSource

CLASSES = ["cat", "Big Bird", "trucks", "ship 2"]
TEMPLATES = ["a photo of a {}.", "{}", "This is number one, the {}!"]
TEXTS = [template.replace("{}", name) for template in TEMPLATES for name in CLASSES]
# Short sides both longer and shorter than the canvas; crops that begin on and between two pixels.
SIZES = [(201, 333), (333, 201), (64, 71), (70, 64), (90, 97), (33, 47), (20, 31)]


@pytest.fixture(params=CLIPS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def name(kind, tiny_model) -> str:
    return tiny_model(kind)


@pytest.fixture(scope="session")
def picture():
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))


def folder_of(name: str) -> Path:
    return Path(name.rpartition(":")[2])


def pixels_of(source: Source, images) -> torch.Tensor:
    arrays = np.stack([source.resize(image) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255


class Theirs:
    """A model as its own library runs it: what it sees of an image, and its zero-shot logits."""

    def __init__(self, name: str, canvas=None):
        self.canvas, folder = canvas, str(folder_of(name))
        if name.startswith("hf:"):
            from transformers import AutoImageProcessor, AutoModel, AutoProcessor

            self.model = AutoModel.from_pretrained(folder)
            self.processor = AutoProcessor.from_pretrained(folder)
            self.processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
            self.fast = AutoImageProcessor.from_pretrained(folder, backend="torchvision")
        else:
            import open_clip

            folder = f"local-dir:{folder}"
            self.model, _, self.transform = open_clip.create_model_and_transforms(
                folder, force_image_size=canvas
            )
            self.tokenizer = open_clip.get_tokenizer(folder)
            self.processor = None
        self.model.eval()

    def pixels(self, images) -> torch.Tensor:
        if self.processor is None:
            return torch.stack([self.transform(image) for image in images])
        return self.processor.image_processor(images, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def logits(self, pixels: torch.Tensor, texts: list[str]) -> torch.Tensor:
        if self.processor is not None:
            inputs = self.processor.tokenizer(
                texts, padding="max_length", truncation=True, return_tensors="pt"
            )
            more = {"interpolate_pos_encoding": True} if self.canvas else {}
            return self.model(pixel_values=pixels, **inputs, **more).logits_per_image
        image = self.model.encode_image(pixels, normalize=True)
        text = self.model.encode_text(self.tokenizer(texts), normalize=True)
        logits = self.model.logit_scale.exp() * image @ text.T
        bias = getattr(self.model, "logit_bias", None)
        return logits if bias is None else logits + bias


# What the libraries give


def test_from_the_image_on_logits_are_the_librarys_own(name, picture):
    theirs = Theirs(name)
    source = load_source(name, class_names=CLASSES, templates=TEMPLATES)
    assert source.labels.names == tuple(TEXTS)
    for height, width in SIZES:
        images = [picture.crop((x, 7, x + width, 7 + height)) for x in (30, 200)]
        pixels, expected_pixels = pixels_of(source, images), theirs.pixels(images)
        torch.testing.assert_close(source.normalize(pixels), expected_pixels, rtol=0, atol=1e-5)
        expected = theirs.logits(expected_pixels, TEXTS)
        torch.testing.assert_close(source(pixels), expected, rtol=1e-4, atol=1e-5)
        assert (
            expected.std(0).mean() > 1e-3 and expected.std(1).min() > 1e-2
        )  # different images and texts give different logits


@pytest.mark.parametrize("kind", [kind for kind in CLIPS if kind.startswith("hf")])
def test_transformers_other_image_processor_is_one_step_of_8_bits_away(name, picture):
    source = load_source(name, class_names=CLASSES)
    fast = Theirs(name).fast
    for height, width in SIZES:
        image = picture.crop((30, 7, 30 + width, 7 + height))
        theirs = fast(image, return_tensors="pt")["pixel_values"]
        ours = source.normalize(pixels_of(source, [image]))
        assert (
            (ours - theirs).abs() * source.std * 255
        ).max() < 1.01  # torchvision and Pillow round differently


@pytest.mark.parametrize("canvas", [(48, 48), (32, 48), (64, 16)])
def test_another_canvas_interpolates_the_positions_as_the_library_does(name, canvas):
    source = load_source(name, canvas=canvas, class_names=CLASSES, templates=TEMPLATES)
    assert source.canvas == source.resize.size == canvas
    pixels = torch.rand(2, 3, *canvas)
    expected = Theirs(name, canvas).logits(source.normalize(pixels), TEXTS)
    torch.testing.assert_close(source(pixels), expected, rtol=1e-4, atol=1e-5)


def test_any_canvas_keeps_the_text_and_the_own_canvas_by_number_changes_nothing(name):
    own = load_source(name, class_names=CLASSES)
    pixels = torch.rand(2, 3, *own.canvas)
    again = load_source(name, canvas=own.canvas[0], class_names=CLASSES)
    torch.testing.assert_close(again(pixels), own(pixels), rtol=1e-4, atol=1e-5)
    larger = load_source(name, canvas=64, class_names=CLASSES)
    assert larger.canvas == (64, 64) and torch.equal(larger.text_features, own.text_features)
    assert larger(torch.rand(1, 3, 64, 64)).isfinite().all()


# The label space


def test_labels_are_template_major_and_each_is_its_own_text(name):
    source = load_source(name, class_names=CLASSES, templates=TEMPLATES)
    labels = source.labels
    assert labels.is_text and len(labels) == len(TEMPLATES) * len(CLASSES)
    for index, text in enumerate(labels.names):
        template, which = divmod(index, len(CLASSES))
        assert (labels.wording_of[index], labels.class_of[index]) == (template, which)
        assert text == TEMPLATES[template].replace("{}", CLASSES[which])
    torch.testing.assert_close(source.text_features.norm(dim=1), torch.ones(len(labels)), rtol=0, atol=1e-5)
    for template, text in enumerate(TEMPLATES):
        alone = load_source(name, class_names=CLASSES, templates=[text]).text_features
        rows = source.text_features[template * len(CLASSES) : (template + 1) * len(CLASSES)]
        torch.testing.assert_close(alone, rows, rtol=1e-4, atol=1e-5)


def test_texts_class_by_class_are_a_label_space_too(name):
    texts = {"cat": ["a photo of a {}.", "It purrs."], "Big Bird": ["the {}"], "ship 2": ["a boat", "{}"]}
    labels = LabelSpace.from_texts(texts)
    source = load_source(name, labels=lambda: labels)
    assert source.labels == labels
    plain = load_source(name, class_names=labels.names, templates=["{}"])
    pixels = torch.rand(2, 3, *source.canvas)
    torch.testing.assert_close(source(pixels), plain(pixels), rtol=1e-4, atol=1e-5)


def test_templates_may_be_named_as_in_a_config(tiny_model):
    source = load_source(tiny_model("open_clip_vit"), class_names=CLASSES, templates="paper")
    assert len(source.labels.templates) == 81 and source.labels.names[0] == "This is a photo of a cat."
    assert load_source(tiny_model("open_clip_vit"), class_names=CLASSES).labels.names == tuple(
        f"This is a photo of a {name}." for name in CLASSES
    )


# Frozen, and open to the gradient of the pixels


def test_the_gradient_reaches_the_pixels_and_nothing_else(name):
    source = load_source(name, class_names=CLASSES)
    source.train()
    assert not any(parameter.requires_grad for parameter in source.parameters())
    assert not any(module.training for module in source.modules())
    assert not any(value.is_inference() for value in [*source.buffers(), *source.parameters()])
    pixels = torch.rand(2, 3, *source.canvas, dtype=torch.float32, requires_grad=True)
    F.cross_entropy(source(pixels), torch.tensor([0, 3])).backward()
    assert pixels.grad.isfinite().all() and (pixels.grad.abs().flatten(1).sum(1) > 0).all()
    direction = pixels.grad / pixels.grad.norm()
    step = 1e-2
    with torch.no_grad():
        losses = [
            F.cross_entropy(source(pixels + sign * step * direction), torch.tensor([0, 3]))
            for sign in (1, -1)
        ]
    assert float((losses[0] - losses[1]) / (2 * step)) == pytest.approx(float(pixels.grad.norm()), rel=0.05)


def test_features_are_the_image_towers_and_make_the_logits(name):
    source = load_source(name, class_names=CLASSES)
    pixels = torch.rand(2, 3, *source.canvas)
    features = source.encode(pixels)
    assert features.shape == (2, source.num_features) and features.dtype == torch.float32
    torch.testing.assert_close(source.score(features), source(pixels))
    torch.testing.assert_close(source.headless_network()(source.normalize(pixels)), features)


@pytest.mark.parametrize("way", ["forward", "encode"])
@pytest.mark.filterwarnings("ignore:the border is not shared")  # of a network that is not convolutional
def test_a_shared_border_is_computed_as_plain_pixels_are(way, name):
    source = load_source(name, class_names=CLASSES)
    height, width = source.canvas
    box = (height // 4, width // 4, 3 * height // 4, 3 * width // 4)
    surroundings = torch.rand(1, 3, height, width)
    images = torch.rand(3, 3, height // 2, width // 2)
    pixels = surroundings.repeat(3, 1, 1, 1)
    pixels[:, :, box[0] : box[2], box[1] : box[3]] = images
    border, run = PixelsInParts(surroundings, images, box, (surroundings,)), getattr(source, way)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(run(border), run(pixels), rtol=1e-4, atol=1e-5)


def test_the_text_tower_does_not_stay_in_memory(name):
    source = load_source(name, class_names=CLASSES)
    names = [name for name, _ in source.named_parameters()]
    assert names and not any("token_embedding" in name or "text_model" in name for name in names)


@pytest.mark.parametrize("precision, tolerance", [("bf16", 0.04), ("fp16", 0.01)])
def test_half_precision_is_near_float32(name, precision, tolerance, monkeypatch):
    # A CPU is given float32; without that rule it computes in half precision as a GPU does.
    monkeypatch.setattr("clipvp.sources.load.check_precision", lambda precision, device: precision)
    full = load_source(name, class_names=CLASSES)
    half = load_source(name, class_names=CLASSES, precision=precision)
    assert half.fingerprint == full.fingerprint and torch.equal(half.text_features, full.text_features)
    gradients, features = [], []
    for source in (full, half):
        pixels = torch.rand(2, 3, *source.canvas, generator=torch.Generator().manual_seed(1)).requires_grad_()
        logits = source(pixels)
        assert logits.dtype == torch.float32 and logits.isfinite().all()
        (logits.softmax(1)[:, 0].sum() * 1e-4).backward()  # one image of a large batch
        gradients.append(pixels.grad)
        features.append(source.encode(pixels).detach())
    for one, other, factor in ((*features, 1), (*gradients, 8)):
        assert 0 < (one - other).norm() < factor * tolerance * one.norm()


# Training


def same_predictions(one: PromptedClassifier, other: PromptedClassifier) -> bool:
    images = [np.full((40, 33, 3), value, np.uint8) for value in (10, 90, 200)]
    for ours, theirs in zip(one.predict(images), other.predict(images), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if (a["label"], a["source_label"]) != (b["label"], b["source_label"]):
                return False
            if a["score"] != pytest.approx(b["score"], rel=1e-5):
                return False
    return True


METHODS = {
    "ILM": MappingConfig(),
    "FLM": MappingConfig(refresh="never"),
    "RLM": MappingConfig(kind="random"),
    "running ILM": MappingConfig(statistics="running"),
    "within": MappingConfig(within="class"),
    "identity": MappingConfig(kind="identity"),
}


def run_config(name: str, mapping: MappingConfig, output: Path) -> RunConfig:
    return RunConfig(
        source=SourceConfig(name=name),
        prompt=PromptConfig(kind="border", width=6, space="normalized"),
        mapping=mapping,
        optim=OptimConfig(name="sgd", lr=1.0, schedule="cosine"),
        train=TrainConfig(epochs=2, batch_size=20, progress=False),
        output=str(output),
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_mapping_trains_and_is_the_same_after_saving(method, tiny_model, tiny_task, tmp_path):
    mapping = METHODS[method]
    config = run_config(tiny_model("open_clip_vit"), mapping, tmp_path / "run")
    classifier = build_classifier(config, tiny_task)
    templates = 1 if method == "identity" else 81
    assert len(classifier.source.labels) == 3 * templates
    before = classifier.prompt.delta.detach().clone()
    results = fit(classifier, tiny_task, config).results
    assert not torch.equal(classifier.prompt.delta, before)
    index = classifier.mapping.source_index
    assert torch.equal(classifier.mapping.links().index[:, 0], index)
    assert len(set(index.tolist())) == 3
    if method in ("within", "identity"):
        assert (index % 3).tolist() == [0, 1, 2]
    for row, label in zip(results["mapping_table"], index.tolist(), strict=True):
        assert row["label"] == classifier.source.labels.names[label]
    saved = tmp_path / "run" / "prompt"
    loaded = PromptedClassifier.from_pretrained(saved)
    assert loaded.source.labels == classifier.source.labels
    assert same_predictions(loaded, classifier)
    stored = json.loads((saved / "config.json").read_text())["source"]["labels"]
    assert stored["templates"] == list(classifier.source.labels.templates)
    assert stored["class_names"] == ["red thing", "green thing", "blue thing"]


@pytest.mark.parametrize("kind", [kind for kind in CLIPS if kind != "open_clip_vit"])
def test_every_kind_of_clip_trains(kind, name, tiny_task, tmp_path):
    config = run_config(name, MappingConfig(templates=TEMPLATES), tmp_path / "run")
    classifier = build_classifier(config, tiny_task)
    results = fit(classifier, tiny_task, config).results
    assert classifier.prompt.delta.abs().sum() > 0 and results["metrics"]["test.last"]["n"] == 25
    assert same_predictions(PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt"), classifier)


def test_a_saved_prompt_refuses_other_weights(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    hf_clip(folder, seed=0)
    images = coloured_images(8, 4)
    task = Task.from_dataset(images, images, class_names=CLASSES)
    config = run_config(f"hf:{folder}", MappingConfig(kind="random"), tmp_path / "run")
    build_classifier(config, task).save_pretrained(tmp_path / "prompt")
    assert PromptedClassifier.from_pretrained(tmp_path / "prompt").class_names == CLASSES
    hf_clip(folder, seed=1)
    with pytest.raises(UserError, match="another version of the model"):
        PromptedClassifier.from_pretrained(tmp_path / "prompt")


# QuickGELU


def test_a_quick_gelu_mismatch_names_the_right_config():
    with pytest.raises(UserError, match=r"QuickGELU.*use open_clip:ViT-B-32-quickgelu/openai$"):
        load_source("open_clip:ViT-B-32/openai", class_names=CLASSES)
    with pytest.raises(UserError, match=r"without QuickGELU.*use open_clip:ViT-B-32/laion2b_s34b_b79k$"):
        load_source("open_clip:ViT-B-32-quickgelu/laion2b_s34b_b79k", class_names=CLASSES)


def test_the_config_that_a_mismatch_names_is_right_for_all_of_open_clip():
    import open_clip

    from clipvp.sources.open_clip import _known

    wrong = 0
    for architecture, tag in open_clip.list_pretrained():
        try:
            assert _known(open_clip, f"{architecture}/{tag}", "") == (architecture, tag)
        except UserError as error:
            right = str(error).rpartition("use open_clip:")[2].rpartition("/")[0]
            assert _known(open_clip, f"{right}/{tag}", "") == (right, tag), (architecture, tag)
            wrong += 1
    assert wrong > 20


# Texts that are too long


# How many words "a a a ..." a model takes: its context less the tokens that stand for beginning and end.
WORDS_THAT_FIT = {
    "hf_clip": 77 - 2,
    "hf_siglip": 64 - 1,
    "hf_siglip2": 64 // 2,  # the spaces are tokens too, all but the first
    "open_clip_vit": 77 - 2,
    "open_clip_coca": 76 - 2,
    "open_clip_timm": 32 - 1,
}


def test_a_text_longer_than_the_context_is_named_and_not_cut(kind, name):
    fits = " ".join("a" * WORDS_THAT_FIT[kind])
    source = load_source(name, class_names=[fits, f"{fits[:-2]} b"], templates=["{}"])
    assert not torch.equal(*source.text_features)  # the last word is read
    with pytest.raises(
        UserError, match="1 of 2 texts are longer than the model's context, the first: 'a a a"
    ):
        load_source(name, class_names=[f"{fits} a", "cat"], templates=["{}"])


# Bad input


def test_a_name_given_twice_is_warned_of(tiny_model):
    with pytest.warns(UserWarning, match="0 and 2 are both 'cat'"):
        source = load_source(tiny_model("hf_clip"), class_names=["cat", "dog", "cat"], templates="a {}.")
    logits = source(torch.rand(2, 3, *source.canvas))
    assert torch.equal(logits[:, 0], logits[:, 2]) and not torch.equal(logits[:, 0], logits[:, 1])


@pytest.mark.parametrize(
    "kind, class_names, templates, words",
    [
        ("hf_clip", None, None, "needs class names"),
        ("hf_clip", [], None, "needs class names"),
        ("open_clip_vit", None, None, "needs class names"),
        ("hf_clip", ["cat", " "], None, "is empty"),
        ("hf_clip", "cat", None, "give a list of names"),
        ("hf_clip", ["cat"], ["a photo"], "'a photo' needs exactly one {}"),
        ("hf_clip", ["cat"], ["a {} {}"], "'a {} {}' needs exactly one {}"),
        ("hf_clip", ["cat"], "papr", "did you mean 'paper'"),
        ("hf_classifier", ["cat"], ["a {}"], "closed label set and no text tower"),
        ("timm_classifier", ["cat"], ["a {}"], "closed label set and no text tower"),
    ],
)
def test_wrong_names_and_templates_are_told_in_one_line(kind, class_names, templates, words, tiny_model):
    with pytest.raises(UserError) as error:
        load_source(tiny_model(kind), class_names=class_names, templates=templates)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, words",
    [
        ("open_clip:ViT-B-33/openai", ["no 'ViT-B-33'", "did you mean 'ViT-B-32'"]),
        ("open_clip:ViT-B-32-quickgelu/opena", ["no weights 'opena'", "did you mean 'openai'"]),
        ("open_clip:ViT-B-32-quickgelu", ["no weights ''", "openai"]),
        ("open_clip:local-dir:/no/such/folder", ["/no/such/folder", "open_clip_config.json"]),
        (
            "open_clip:ViT-B-32-quickgelu/openai",
            ["HF_HUB_OFFLINE is set", "`hf download timm/vit_base_patch32_clip_224.openai`"],
        ),
        (
            "open_clip:nllb-clip-base/v1",
            ["`hf download visheratin/nllb-clip-base-oc`", "`hf download facebook/nllb-200-distilled-600M`"],
        ),
        ("open_clip:hf-hub:laion/nothing", ["HF_HUB_OFFLINE is set", "`hf download laion/nothing`"]),
        ("hf:openai/clip-vit-base-patch32", ["`hf download openai/clip-vit-base-patch32`"]),
    ],
)
def test_a_model_that_cannot_be_loaded_is_told_in_one_line(name, words):
    with pytest.raises(UserError) as error:
        load_source(name, class_names=CLASSES)
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message, message


def test_weights_by_tag_take_no_revision():
    with pytest.raises(UserError, match="names its weights by tag or file; use open_clip:hf-hub:ORG/NAME"):
        load_source("open_clip:ViT-B-32-quickgelu/openai", class_names=CLASSES, revision="main")


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def drop_weights(path: Path, prefix: str) -> None:
    from safetensors.torch import load_file, save_file

    kept = {key: value for key, value in load_file(path).items() if not key.startswith(prefix)}
    save_file(kept, path, {"format": "pt"})


DAMAGES = {
    "hf_clip": {
        "cut": (lambda f: cut(f / "model.safetensors"), "a weight file is damaged"),
        "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        "half the weights": (
            lambda f: drop_weights(f / "model.safetensors", "text_model."),
            "lack .* weights",
        ),
        "no tokenizer": (lambda f: [path.unlink() for path in f.glob("token*")], "tokenizer are missing"),
        "no image processor": (lambda f: (f / "preprocessor_config.json").unlink(), "does not load"),
        "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
        "another size": (lambda f: edit(f / "config.json", projection_dim=8), "does not load"),
    },
    "open_clip_vit": {
        "cut": (lambda f: cut(f / "open_clip_model.safetensors"), "a weight file is damaged"),
        "no weights": (lambda f: (f / "open_clip_model.safetensors").unlink(), "could not be loaded"),
        "half the weights": (
            lambda f: drop_weights(f / "open_clip_model.safetensors", "transformer."),
            "Missing key",
        ),
        "no text tower": (
            lambda f: edit(f / "open_clip_config.json", model_cfg={"embed_dim": 8, "vision_cfg": {}}),
            "no text tower",
        ),
        "no JSON": (lambda f: (f / "open_clip_config.json").write_text("{"), "damaged"),
        "a list": (lambda f: (f / "open_clip_config.json").write_text("[]"), "no text tower"),
        "padding": (
            lambda f: edit(f / "open_clip_config.json", preprocess_cfg={"resize_mode": "longest"}),
            "resizes by 'longest'",
        ),
    },
}


@pytest.mark.parametrize("kind, damage", [(kind, damage) for kind in DAMAGES for damage in DAMAGES[kind]])
def test_a_damaged_folder_is_told_in_one_line(kind, damage, tiny_model, tmp_path):
    own = tiny_model(kind)
    folder = shutil.copytree(folder_of(own), tmp_path / "copy")
    spoil, words = DAMAGES[kind][damage]
    spoil(folder)
    with pytest.raises(UserError, match=words) as error:
        load_source(own.replace(str(folder_of(own)), str(folder)), class_names=CLASSES)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message and len(message) < 600, message


def test_a_model_that_is_neither_says_so(tmp_path):
    hf_text(tmp_path)
    with pytest.raises(
        UserError, match="BertModel: neither an image classifier .* nor a model with an image"
    ):
        load_source(f"hf:{tmp_path}", class_names=CLASSES)


def test_a_siglip_without_a_fixed_size_says_so(tmp_path):
    from transformers import Siglip2Config

    Siglip2Config(architectures=["Siglip2Model"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no canvas; .* hf:google/siglip2-base-patch16-224"):
        load_source(f"hf:{tmp_path}", class_names=CLASSES)


def test_a_classifier_on_a_clips_image_tower_is_a_closed_label_set(tmp_path):
    from transformers import CLIPConfig, CLIPForImageClassification, CLIPImageProcessor

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 16},
        text_config={**vision, "vocab_size": 72},
        id2label={0: "hen", 1: "fox", 2: "cow"},
    )
    CLIPForImageClassification(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size=32, crop_size=32).save_pretrained(tmp_path)
    source = load_source(f"hf:{tmp_path}")
    assert source.labels.names == ("hen", "fox", "cow") and not isinstance(source, ClipSource)


def test_open_clip_takes_a_text_tower_from_transformers(tmp_path):
    (tmp_path / "text").mkdir()
    hf_text(tmp_path / "text")
    open_clip_hf_text(tmp_path / "clip", tmp_path / "text")
    name = f"open_clip:local-dir:{tmp_path / 'clip'}"
    source = load_source(name, class_names=CLASSES, templates=TEMPLATES)
    import open_clip

    model = open_clip.create_model(f"local-dir:{tmp_path / 'clip'}").eval()
    tokens = open_clip.tokenizer.HFTokenizer(str(tmp_path / "text"), context_length=48)(TEXTS)
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(source.text_features, expected, rtol=1e-4, atol=1e-5)


# The attention pool of CLIP's ResNets


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("resnet")
    open_clip_resnet(folder)
    return f"open_clip:local-dir:{folder}"


def test_a_resnet_with_attention_pool_is_open_clips_own(resnet):
    import open_clip

    source = load_source(resnet, class_names=CLASSES)
    model = open_clip.create_model(f"local-dir:{folder_of(resnet)}").eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.encode_image(source.normalize(pixels))
        torch.testing.assert_close(source.encode(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("canvas", [32, 96, (64, 128), 80, 63, (65, 100)])
def test_an_attention_pool_is_resized_to_the_canvas_as_open_clip_resizes_a_vit(canvas, resnet):
    from types import SimpleNamespace

    import open_clip
    from open_clip.model import resize_pos_embed

    source = load_source(resnet, class_names=CLASSES, canvas=canvas)
    model = open_clip.create_model(f"local-dir:{folder_of(resnet)}").eval()
    pool, seen = model.visual.attnpool, []
    handle = model.visual.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output))
    pixels = torch.rand(2, 3, *source.canvas)
    with torch.no_grad():
        with contextlib.suppress(RuntimeError):  # open_clip leaves the embedding as it is
            model.visual(source.normalize(pixels))
        handle.remove()
        state = {"visual.positional_embedding": pool.positional_embedding}
        resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=seen[0].shape[2:])))
        pool.positional_embedding = torch.nn.Parameter(state["visual.positional_embedding"])
        expected = model.encode_image(source.normalize(pixels))
        torch.testing.assert_close(source.encode(pixels), expected, rtol=1e-4, atol=1e-5)
    assert source.fingerprint == load_source(resnet, class_names=CLASSES).fingerprint


def test_a_canvas_that_is_too_small_for_an_attention_pool_is_one_line(resnet):
    with pytest.raises(UserError, match="canvas.* 30x64 pixels: it needs 31 a side$"):
        load_source(resnet, class_names=CLASSES, canvas=(30, 64))
    assert load_source(resnet, class_names=CLASSES, canvas=31)(torch.rand(1, 3, 31, 31)).isfinite().all()
