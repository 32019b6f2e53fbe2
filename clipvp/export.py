"""A classifier as one ONNX file: from uint8 images to scores of the target classes, the frozen source included.

Each exported file is run by onnxruntime and compared with the classifier before it is written.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .cpu import float32_default
from .files import write_atomic
from .model import PromptedClassifier
from .registry import UserError
from .sources.origin import public_name

LARGEST = 3 << 29  # bytes of weights in the file itself; with everything else it must stay below 2 GiB
TOLERANCE = 1e-4  # of a probability, or of a logit as a share of the largest
INPUT, OUTPUTS = "images", {True: "logits", False: "probabilities"}


class _Graph(nn.Module):
    """uint8 images (B, h, w, 3) to logits or probabilities (B, T)."""

    def __init__(self, classifier: PromptedClassifier, logits: bool):
        super().__init__()
        self.classifier, self.logits = classifier, logits

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        logits = self.classifier(pixels)
        return logits if self.logits else logits.softmax(1)


@float32_default()
@torch.no_grad()
def export_onnx(classifier: PromptedClassifier, path: str | Path, logits: bool = False) -> float:
    """Write a classifier as an ONNX file and compare it with onnxruntime's results.

    Its input is ``images``, uint8 (B, h, w, 3), RGB, any B, already brought to the prompt's image size as
    ``classifier.resize`` does; its output is (B, T). The metadata holds ``class_names`` and ``preprocessing`` (JSON).
    An ONNX file cannot be larger than 2 GB: of more weights, these are in a file beside it, whose name ends in
    .onnx.data, and both are needed.

    Args:
        classifier: On the CPU, in fp32, and made with ``share_border=False``.
        path: Ends in .onnx.
        logits: Give target logits instead of probabilities.

    Returns:
        The largest difference found.

    Raises:
        UserError: A package is missing, the network cannot be exported, or the two differ by more than 1e-4.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise UserError(f"{str(path)!r} does not end in .onnx")
    if not classifier.source.gives_gradient:
        raise UserError(
            f"source {classifier.source.name!r} is not computed by torch, so a prompt on it cannot be exported"
        )
    if classifier.share_border:
        raise ValueError("make the classifier with share_border=False: a graph holds whole maps")
    if classifier.source.precision != "fp32" or classifier.device.type != "cpu":
        raise ValueError("a classifier is exported on the CPU in fp32")
    onnx, onnxruntime = _packages()
    classifier = classifier.fold()
    graph, images = _Graph(classifier, logits).eval(), _images(classifier, 2)
    wanted = OUTPUTS[logits]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, path.name)  # the file of the weights is found by its name
        try:
            with _quiet():
                program = torch.onnx.export(
                    graph,
                    (images,),
                    dynamo=True,
                    input_names=[INPUT],
                    output_names=[wanted],
                    dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=1 << 16)}},
                    verbose=False,
                )
                values = program.model.graph.initializers.values()
                program.save(file, external_data=sum(value.const_value.nbytes for value in values) > LARGEST)
        except Exception as error:  # the exporter raises many types
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"source {classifier.source.name!r} cannot be exported: {reason}") from error
        model = onnx.load(file, load_external_data=False)
        texts = {
            "class_names": classifier.class_names,
            "preprocessing": classifier.resize.to_dict(),
            "source": public_name(classifier.source.name),
        }
        for key, value in texts.items():
            model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
        file.write_bytes(model.SerializeToString())
        batches = [_images(classifier, count) for count in (1, 2, 5)]
        try:
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            found = [session.run(None, {INPUT: batch.numpy()})[0] for batch in batches]
        except Exception as error:  # onnxruntime's types have no public base
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"source {classifier.source.name!r}: onnxruntime cannot run the exported file: {reason}; it was not "
                "written"
            ) from error
        worst = max(_difference(*pair) for pair in zip(found, map(graph, batches), strict=True))
        if not worst <= TOLERANCE:
            raise UserError(
                f"the exported file differs from the classifier by {worst:.1e}, more than {TOLERANCE}; "
                "it was not written"
            )
        _put(file, path)
    return worst


def _packages():
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401, torch's exporter needs it
    except ImportError as error:
        raise UserError(
            f"export needs {error.name}, which is missing: pip install 'clipvp[export]'"
        ) from error
    return onnx, onnxruntime


def _images(classifier: PromptedClassifier, count: int) -> Tensor:
    """Return smooth images and noise, uint8 (count, h, w, 3), the same ones each time."""
    h, w = classifier.prompt.image_size
    generator = torch.Generator().manual_seed(count)
    noise = torch.rand(count, 3, h, w, generator=generator)
    smooth = nn.functional.interpolate(noise[:, :, :4, :4], size=(h, w), mode="bilinear")
    mixed = torch.where(torch.arange(count).view(-1, 1, 1, 1) % 2 == 0, smooth, noise)
    return (mixed * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _difference(found: np.ndarray, expected: Tensor) -> float:
    scale = max(1.0, float(expected.abs().max()))
    return float((torch.from_numpy(found) - expected).abs().max()) / scale


def _put(file: Path, path: Path) -> None:
    """Copy an ONNX file to ``path``, and the file of its weights, where it has one, beside it: both or neither."""
    weights = file.with_name(f"{file.name}.data")

    def write(aside: Path) -> None:
        shutil.copyfile(file, aside)
        if weights.exists():
            write_atomic(path.with_name(weights.name), partial(shutil.copyfile, weights))

    write_atomic(path, write)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's messages, but not its errors."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
