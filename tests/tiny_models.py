"""Small, randomly initialised models in the layouts of the hub: each function fills a folder as its library does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

SIZE, PATCH = 32, 8
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def _spread(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every weight a size that makes the logits differ between images and between texts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                fan_in = weight[0].numel()
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 / fan_in**0.5)
            elif "logit" not in name:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


# transformers


def _bytes() -> list[str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def _clip_tokenizer(context: int):
    """CLIP's tokenizer without merges: every letter is a token."""
    from transformers import CLIPTokenizer

    letters = _bytes()
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=context), vocabulary


def hf_clip(folder: Path, seed: int = 0, context: int = 77) -> None:
    """CLIPModel, CLIPImageProcessor and CLIPTokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer, vocabulary = _clip_tokenizer(context)
    ends = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    text = {**TEXT, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": context}
    config = CLIPConfig(
        text_config={**text, "pad_token_id": ends["eos_token_id"]},
        vision_config={**VISION, "image_size": SIZE, "patch_size": PATCH},
        projection_dim=16,
    )
    _spread(CLIPModel(config), seed).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


WORDS = "this is a photo of the small big red green blue cat dog bird plane ship truck number one two three"


def _fast_tokenizer(folder: Path, **settings) -> None:
    """Write the files of a plain tokenizer: lower case, letters and a few words, an end after every text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,"]
    pieces += [(f"▁{word}", -4.0) for word in [*WORDS.split(), "b"]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    values = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def _gemma_tokenizer(folder: Path, **settings) -> None:
    """Write the tokenizer files of a SigLIP 2: Gemma's, here without merges, so that every letter is a token."""
    from transformers import GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127))]
    vocabulary = {word: index for index, word in enumerate(words)}
    options = {"padding_side": "right", "add_bos_token": False, "add_eos_token": True}
    GemmaTokenizer(vocab=vocabulary, merges=[], **options, **settings).save_pretrained(folder)


def _sentencepiece_tokenizer(folder: Path, **settings) -> None:
    """Write the tokenizer files of a SigLIP: a sentencepiece model."""
    import sentencepiece

    words = WORDS.split()
    with open(folder / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(words[i:] + words[:i]) for i in range(len(words))]),
            model_writer=file,
            vocab_size=64,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            user_defined_symbols=["▁a", "▁b"],
            minloglevel=2,
        )
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    values = {**tokens, "tokenizer_class": "SiglipTokenizer", "model_input_names": ["input_ids"], **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def hf_siglip(folder: Path, seed: int = 0, context: int = 64, newer: bool = False) -> None:
    """SiglipModel with a logit bias; ``newer`` is a SigLIP 2 of fixed size, with its other tokenizer."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    text = {**TEXT, "vocab_size": 100, "max_position_embeddings": context, "projection_size": 32}
    config = SiglipConfig(
        text_config={**text, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**VISION, "image_size": SIZE, "patch_size": PATCH},
    )
    model = _spread(SiglipModel(config), seed)
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-7.5)
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    if newer:
        _gemma_tokenizer(folder, model_max_length=context)
    else:
        _sentencepiece_tokenizer(folder, model_max_length=context)


def hf_classifier(folder: Path, seed: int = 0) -> None:
    """ViTForImageClassification of five labels."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    names = ["tench, Tinca tinca", "goldfish", "crane, bird", "crane, machine", "ice cream"]
    config = ViTConfig(**VISION, image_size=SIZE, patch_size=PATCH, id2label=dict(enumerate(names)))
    _spread(ViTForImageClassification(config), seed).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


def hf_dinov2(folder: Path, seed: int = 0) -> None:
    """Dinov2ForImageClassification of five labels."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2ForImageClassification

    size = {"hidden_size": 32, "mlp_ratio": 2, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Dinov2Config(**size, image_size=SIZE, patch_size=PATCH, num_labels=5)
    _spread(Dinov2ForImageClassification(config), seed).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    ).save_pretrained(folder)


def hf_text(folder: Path) -> None:
    """BertModel and a tokenizer: neither a classifier of images nor a CLIP."""
    from transformers import BertConfig, BertModel

    _spread(BertModel(BertConfig(**TEXT, vocab_size=72)), 0).save_pretrained(folder)
    _fast_tokenizer(folder)


# timm


def timm_classifier(folder: Path, seed: int = 0) -> None:
    """A vision transformer of timm's own tests with seven labels."""
    _save_timm(folder, seed, "test_vit", img_size=SIZE)


def timm_swin(folder: Path, seed: int = 0) -> None:
    """A Swin transformer of two stages."""
    sizes = {"window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
    _save_timm(folder, seed, "swin_tiny_patch4_window7_224", img_size=SIZE, **sizes)


def timm_convolutional(name: str) -> Callable[..., None]:
    """Return what saves a convolutional network of timm's own tests."""
    return lambda folder, seed=0: _save_timm(folder, seed, name)


def _save_timm(folder: Path, seed: int, name: str, **arguments) -> None:
    import timm
    from timm.models import save_for_hf

    model = _spread(timm.create_model(name, num_classes=7, **arguments), seed)
    model.pretrained_cfg["input_size"] = (3, SIZE, SIZE)
    config = {"num_classes": 7, "label_names": [f"kind {i}" for i in range(7)]}
    save_for_hf(model, folder, config, safe_serialization=True, model_args={"num_classes": 7, **arguments})


# open_clip


def _save_open_clip(folder: Path, config: dict, preprocessing: dict, seed: int) -> None:
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    custom = config.pop("custom_text", False)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = (open_clip.CoCa if "multimodal_cfg" in config else kind)(**config)
    _spread(model, seed)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        if getattr(model, "logit_bias", None) is not None:
            model.logit_bias.fill_(-6.25)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {**config, "custom_text": True} if custom else config
    values = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(values))


OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def open_clip_vit(folder: Path, seed: int = 0, quick_gelu: bool = True) -> None:
    """The CLIP of the first paper, a ViT and a transformer, with open_clip's own tokenizer."""
    config = {
        "embed_dim": 16,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": PATCH},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    _save_open_clip(folder, config, {**OPENAI, "interpolation": "bicubic", "resize_mode": "shortest"}, seed)


def open_clip_resnet(folder: Path, seed: int = 0) -> None:
    """The CLIP of the first paper with a ResNet, whose last layer is an attention pool."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 64,
            "layers": [1, 1, 1, 1],
            "width": 8,
            "head_width": 16,
            "patch_size": None,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    _save_open_clip(folder, config, {**OPENAI, "interpolation": "bicubic"}, seed)


def open_clip_timm(folder: Path, seed: int = 0) -> None:
    """A CLIP whose image tower is timm's, with a bias and a squashing preprocessing, as SigLIP has them."""
    config = {
        "embed_dim": 16,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 160,
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "token",
            "timm_proj": "linear",
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 72,
            "hf_tokenizer_name": "someone/elsewhere",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 16,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
    }
    _save_open_clip(folder, config, {**HALF, "interpolation": "bilinear", "resize_mode": "squash"}, seed)
    _fast_tokenizer(folder)


def open_clip_coca(folder: Path, seed: int = 0) -> None:
    """A CoCa: a CLIP whose image tower gives its tokens beside the pooled feature."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": SIZE,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": PATCH,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": {
            "context_length": 76,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 2,
            "embed_cls": True,
            "output_tokens": True,
        },
        "multimodal_cfg": {
            "context_length": 76,
            "vocab_size": 64,
            "width": 16,
            "heads": 2,
            "layers": 1,
            "attn_pooler_heads": 2,
        },
        "custom_text": True,
    }
    _save_open_clip(folder, config, {**OPENAI, "interpolation": "random"}, seed)


def open_clip_hf_text(folder: Path, text_folder: Path, text_repository: str | None = None) -> None:
    """A CLIP whose text tower is from transformers: its configuration and tokenizer lie elsewhere."""
    text = {
        "hf_model_name": str(text_folder),
        "hf_model_pretrained": False,
        "hf_tokenizer_name": str(text_folder),
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
        "context_length": 48,
    }
    vision = {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": PATCH}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    _save_open_clip(folder, config, HALF, 0)
    path = folder / "open_clip_config.json"
    path.write_text(path.read_text().replace(str(text_folder), text_repository or str(text_folder)))


MODELS: dict[str, tuple[str, Callable[..., None]]] = {
    "hf_clip": ("hf:", hf_clip),
    "hf_siglip": ("hf:", hf_siglip),
    "hf_siglip2": ("hf:", lambda folder, seed=0: hf_siglip(folder, seed, newer=True)),
    "open_clip_vit": ("open_clip:local-dir:", open_clip_vit),
    "open_clip_timm": ("open_clip:local-dir:", open_clip_timm),
    "open_clip_coca": ("open_clip:local-dir:", open_clip_coca),
    "hf_classifier": ("hf:", hf_classifier),
    "timm_classifier": ("timm:local-dir:", timm_classifier),
}
CLIPS = [kind for kind in MODELS if "classifier" not in kind]
# More families, for tests of all of them.
MORE: dict[str, tuple[str, Callable[..., None]]] = {
    "open_clip_resnet": ("open_clip:local-dir:", open_clip_resnet),
    "timm_swin": ("timm:local-dir:", timm_swin),
    "timm_resnet": ("timm:local-dir:", timm_convolutional("test_resnet")),
    "timm_convnext": ("timm:local-dir:", timm_convolutional("test_convnext")),
    "timm_efficientnet": ("timm:local-dir:", timm_convolutional("test_efficientnet")),
    "hf_dinov2": ("hf:", hf_dinov2),
}


def make(kind: str, folder: Path, seed: int = 0) -> str:
    """Fill a folder with a model of one kind and return the source's name."""
    scheme, save = (MODELS | MORE)[kind]
    folder.mkdir(parents=True, exist_ok=True)
    save(folder, seed=seed)
    return f"{scheme}{folder}"
