"""What a benchmark is. No torch here, so that ``--help`` and a refused value cost nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from clipvp.registry import UserError, check_choice, check_positive

PARTS = {
    "step": "a training step and a counting pass over one batch against the bare frozen network",
    "memory": "peak memory of a step against the bare one",
    "epoch": "an epoch by phase against the bare network and against the same epoch written the textbook way",
    "data": "decoding, reading what is decoded, and batches, without a network",
    "text": "loading a CLIP with its texts to be encoded, and with their embeddings on disk",
    "assignment": "greedy assignment against a loop over the whole matrix",
    "architectures": "a step of several architectures at several image sizes, with random weights",
    "text_bank": "texts as many as SUN397 and ImageNet need: encoded, read again, pooled for a batch",
    "sharing": "a step of several architectures, images and frames: plain, border shared, core apart, core kept",
    "profile": "where the time of the same steps goes: convolutions, windows that are copied, pooling, the rest",
    "quickstart": "the run of clipvp train --config quickstart by phase",
}
ON_REQUEST = ("architectures", "sharing", "text_bank", "profile", "quickstart")
BY_FRAME = ("sharing", "profile")
BY_ARCHITECTURE = ("architectures", *BY_FRAME)
ARCHITECTURES = (
    "resnet18",
    "resnet50",
    "resnet50_clip",
    "resnext50_32x4d",
    "tf_efficientnet_lite0",
    "mobilenetv2_100",
    "vgg16",
    "convnext_tiny",
    "densenet121",
    "vit_base_patch32_224",
)
IMAGE_SIZES = (32, 64, 128, 160, 192)
FRAMES = (8, 16, 30)


@dataclass
class BenchmarkConfig:
    """What is measured, and for how long.

    Args:
        only: The parts to measure, one or a list; without those that measure other models (architectures,
            sharing, text_bank, profile, quickstart) when empty.
        source: The frozen model, see ``clipvp.load_source``.
        random_weights: Build the source, a timm architecture, without its weights: no download, the same time.
        canvas: Side in pixels of the source's input; the model's own when empty.
        prompt: padding (an image of image_size inside the canvas) or border (a frame on an image that fills it).
        image_size: Side in pixels of the image inside the canvas (padding).
        width: Width in pixels of the frame on the image (border); 30 when empty.
        batch_size: Images a step.
        precision: Arithmetic of the frozen part (fp32, bf16, fp16).
        compile: Compile the bare network, and ours where the border is not shared, for fixed shapes.
        keep_core: Keep what no prompt pixel reaches for our epochs, as ``train.keep_core: memory`` does; the time that
            takes and its bytes an image are measured beside them.
        keep_memory: Keep freed memory for the next map, as runs on a CPU do; false gives it back, as processes do by
            default. For the bare network and the textbook's epoch too.
        device: cpu or cuda; cuda where there is one when empty.
        data: The task of the epoch and the data path; JPEG files made on the spot when empty.
        images: Training images of an epoch; a fifth as many are scored.
        classes: Classes of the images made on the spot.
        workers: Processes that load images for the textbook epoch.
        seconds: Time for a part, or for an architecture; a part ends before the round that would
            exceed it. The parts profile and quickstart take their rounds alone.
        rounds: Rounds that are measured even if they take longer.
        architectures: timm's names of the architectures to compare.
        image_sizes: Image sizes at which the architectures are compared.
        frames: Widths in pixels of the frames on the image for which sharing is measured.
        json: File to write the results to, renewed after each part, and after each architecture of it.
    """

    only: str | list[str] | None = None
    source: str = "offline:lite0"
    random_weights: bool = False
    canvas: int | None = None
    prompt: str = "padding"
    image_size: int = 32
    width: int | None = None
    batch_size: int = 64
    precision: str = "fp32"
    compile: bool = False
    keep_core: bool = False
    keep_memory: bool = True
    device: str | None = None
    data: str | None = None
    images: int = 512
    classes: int = 10
    workers: int = 2
    seconds: float = 60.0
    rounds: int = 3
    architectures: list[str] = field(default_factory=lambda: list(ARCHITECTURES))
    image_sizes: list[int] = field(default_factory=lambda: list(IMAGE_SIZES))
    frames: list[int] = field(default_factory=lambda: list(FRAMES))
    json: str | None = None

    def __post_init__(self):
        for part in self.parts:
            check_choice("only", part, PARTS)
        check_choice("prompt", self.prompt, ["padding", "border"])
        check_choice("precision", self.precision, ["fp32", "bf16", "fp16"])
        if self.device is not None:
            check_choice("device", self.device, ["cpu", "cuda"])
        check_positive("seconds", self.seconds)
        least = {"image_size": 1, "batch_size": 1, "rounds": 1, "canvas": 1, "width": 1}
        least |= {"images": 5, "classes": 2, "workers": 0}
        numbers = [(name, getattr(self, name), limit) for name, limit in least.items()]
        numbers += [(name, value, 1) for name in ("image_sizes", "frames") for value in getattr(self, name)]
        for name, value, limit in numbers:
            if value is not None and value < limit:
                raise UserError(f"{name}: {value} is not allowed; give a whole number >= {limit}")
        if self.width is not None and self.prompt != "border":
            raise UserError(
                f"width: {self.width} is not allowed with prompt {self.prompt}; give prompt border"
            )
        if self.keep_core and "epoch" not in self.parts:
            parts = ", ".join(self.parts)
            raise UserError(
                f"keep_core: true is not allowed without the part epoch; add epoch to only, which is {parts}"
            )
        for part in self.parts:
            self._check_lists(part)

    def _check_lists(self, part: str) -> None:
        if part in BY_ARCHITECTURE and not self.architectures:
            raise UserError(f"architectures: [] is not allowed with the part {part}; give one or more")
        if part == "architectures" and not self.image_sizes:
            raise UserError(f"image_sizes: [] is not allowed with the part {part}; give one or more")
        if part in BY_FRAME and not self.image_sizes and not self.frames:
            raise UserError(
                f"image_sizes and frames: [] is not allowed for both with the part {part}; give one or more of one"
            )

    @property
    def parts(self) -> list[str]:
        if not self.only:
            return [part for part in PARTS if part not in ON_REQUEST]
        return [self.only] if isinstance(self.only, str) else list(self.only)
