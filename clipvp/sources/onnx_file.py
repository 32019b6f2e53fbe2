"""A source in an ONNX file, run by onnxruntime: it gives logits, and neither gradient nor features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..config.schema import SourceConfig
from ..images import Resize
from ..labels.space import LabelSpace
from ..registry import UserError
from .base import Preprocessing
from .black_box import BlackBoxSource, are_probabilities, check_file, label_space, logits_of

_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass
class OnnxConfig(SourceConfig):
    """A model in an ONNX file. What its metadata says (class_names, preprocessing, mean, std; JSON) need not be given.

    Args:
        label_names: Names of the outputs: a list, or a file with one name a line.
        mean: Mean of the pixels' channels in [0, 1], of a model that takes floats.
        std: Their standard deviation; with mean [0] and std [1] the model gets pixels in [0, 1].
    """

    label_names: str | list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


class _Input(NamedTuple):
    """What a file's input takes; the batch and sides are None where it takes any."""

    name: str
    type: type
    channels_last: bool
    batch: int | None
    size: tuple[int | None, int | None]


class _Session:
    """A file's model: pixels float32 (B, 3, H, W) to its first output (B, S)."""

    def __init__(self, path: Path, name: str):
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"source {name!r} needs onnxruntime: pip install 'clipvp[export]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [each for each in wanted if each in onnxruntime.get_available_providers()]
        self.name = name
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's own types
            raise UserError(f"source {name!r} cannot be read: {_line(error)}") from error
        self.input = _input(self.session, name)
        self.metadata = self.session.get_modelmeta().custom_metadata_map

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if not len(pixels):
            return np.zeros(
                (0, *self._run(np.zeros_like(pixels, shape=(1, *pixels.shape[1:]))).shape[1:]), np.float32
            )
        if self.input.type is np.uint8:
            pixels = np.clip(np.rint(pixels * 255), 0, 255)
        pixels = pixels.astype(self.input.type)
        size = self.input.batch or len(pixels)
        return np.concatenate([self._run(pixels[at : at + size]) for at in range(0, len(pixels), size)])

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        count, batch = len(pixels), self.input.batch
        pixels = pixels.astype(self.input.type)
        if batch and count < batch:
            pixels = np.concatenate([pixels, np.zeros((batch - count, *pixels.shape[1:]), pixels.dtype)])
        if self.input.channels_last:
            pixels = pixels.transpose(0, 2, 3, 1)
        try:
            found = self.session.run(None, {self.input.name: np.ascontiguousarray(pixels)})[0]
        except Exception as error:
            raise UserError(f"source {self.name!r} fails on its pixels: {_line(error)}") from error
        if found.ndim != 2 or len(found) != len(pixels) or not np.issubdtype(found.dtype, np.floating):
            raise UserError(
                f"source {self.name!r}: its first output is {found.dtype} {found.shape} for {len(pixels)} images, not "
                "one row of scores an image"
            )
        if np.isnan(found[:count]).any():
            raise UserError(f"source {self.name!r} answers with NaN")
        return found[:count].astype(np.float32)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _input(session: Any, name: str) -> _Input:
    inputs = session.get_inputs()
    shape = inputs[0].shape if inputs else []
    said = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
    if len(inputs) != 1 or len(shape) != 4 or inputs[0].type not in _TYPES or 3 not in (shape[1], shape[3]):
        raise UserError(
            f"source {name!r}: its inputs are {said}; give a model with one input of images, uint8 or float, "
            "(batch, 3, height, width) or (batch, height, width, 3)"
        )
    last = shape[1] != 3
    batch, *sides = (side if isinstance(side, int) and side > 0 else None for side in shape)
    size = (sides[0], sides[1]) if last else (sides[1], sides[2])
    return _Input(inputs[0].name, _TYPES[inputs[0].type], last, batch, size)


def load_onnx(
    model: str,
    *,
    name: str,
    canvas,
    precision: str,
    revision: str | None,
    label_names: str | Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **_,
) -> BlackBoxSource:
    """Load ``onnx:FILE``, such as a file that ``clipvp export`` wrote."""
    path = Path(model)
    check_file(name, path)
    if revision:
        raise UserError(f"source.revision: {name!r} is a file, which has no revisions")
    session = _Session(path, name)
    saved = _metadata(session, "preprocessing") or {}
    resize = _resize(session, name, canvas, saved)
    normalisation = _normalisation(session, name, mean, std)
    preprocessing = Preprocessing(resize, *normalisation)
    first = _first(session, preprocessing)
    answers_probabilities = are_probabilities(first)
    labels = _labels(session, label_names, first.shape[1])

    def answer(pixels: np.ndarray) -> np.ndarray:
        found = session(pixels)
        return logits_of(found) if answers_probabilities else found

    fingerprint = _fingerprint(path)
    return BlackBoxSource(
        answer, labels, preprocessing, fingerprint, name=name, revision=revision, precision=precision
    )


def _first(session: _Session, preprocessing: Preprocessing) -> np.ndarray:
    """Return what the model says of a grey image and of noise."""
    height, width = preprocessing.resize.size
    shape = (1, 3, 1, 1)
    try:
        noise = np.random.default_rng(0).random((2, 3, height, width), dtype=np.float32)
        noise[0] = 0.5
        return session(
            (noise - np.reshape(preprocessing.mean, shape).astype(np.float32))
            / np.reshape(preprocessing.std, shape).astype(np.float32)
        )
    except MemoryError as error:
        raise UserError(
            f"source.canvas: images of {height}x{width} pixels for {session.name!r} do not fit into memory"
        ) from error


def _labels(session: _Session, given: str | Sequence[str] | None, count: int) -> LabelSpace:
    if given is not None:
        return label_space("source.label_names", given, count)
    names, key = _metadata(session, "class_names"), f"source {session.name!r}: its metadata 'class_names'"
    if names is None:
        return LabelSpace(tuple(f"label {place}" for place in range(count)))
    if not isinstance(names, list):
        raise UserError(f"{key} is not a list of names")
    return label_space(key, names, count)


def _fingerprint(path: Path) -> str:
    """Return a hash of the file, and of the file of its weights if it has one; 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for each in (path, path.with_name(f"{path.name}.data")):
        if each.is_file():
            with open(each, "rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _metadata(session: _Session, key: str) -> Any:
    text = session.metadata.get(key)
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise UserError(f"source {session.name!r}: its metadata {key!r} is not JSON: {error}") from error


def _resize(session: _Session, name: str, canvas: Sequence[int] | None, saved: Any) -> Resize:
    try:
        own = Resize.from_dict(saved) if saved else None
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"source {name!r}: its metadata 'preprocessing' is damaged: {error}") from error
    fixed = session.input.size
    size = tuple(canvas) if canvas is not None else own.size if own and None in fixed else fixed
    if None in size:
        raise UserError(f"source.canvas: {name!r} takes images of any size; give one")
    if any(side is not None and side != given for side, given in zip(fixed, size, strict=True)):
        raise UserError(
            f"source.canvas: {name!r} takes {fixed[0]}x{fixed[1]} pixels, not {size[0]}x{size[1]}"
        )
    rule = own or Resize(size, "crop", 1.0, "bicubic")
    return Resize(size, rule.rule, rule.crop_pct, rule.interpolation, rule.half, rule.reading)


def _normalisation(session: _Session, name: str, mean: Any, std: Any) -> tuple[tuple, tuple]:
    """Return mean and std of what the model is given; 0 and 1 of a model that takes bytes."""
    given = {"mean": mean or _metadata(session, "mean"), "std": std or _metadata(session, "std")}
    if session.input.type is np.uint8:
        if mean or std:
            raise UserError(f"source.mean: {name!r} takes bytes, which it normalises itself")
        return (0.0,), (1.0,)
    missing = [key for key, values in given.items() if values is None]
    if missing:
        raise UserError(
            f"source.{missing[0]}: {name!r} takes floats and does not say how they are normalised; give source.mean "
            "and source.std ([0] and [1] for pixels in [0, 1])"
        )
    try:
        return tuple(map(float, given["mean"])), tuple(map(float, given["std"]))
    except (TypeError, ValueError) as error:
        raise UserError(f"source {name!r}: its mean and std are not lists of numbers: {error}") from error
