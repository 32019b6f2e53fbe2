"""A source behind HTTP: each image is sent as PNG, and probabilities of the service's labels come back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.schema import SourceConfig
from ..files import cache_root
from ..images import Resize
from ..labels.space import LabelSpace
from ..registry import UserError, check_positive
from .answers import AnswerStore, image_key
from .base import Preprocessing
from .black_box import BlackBoxSource, label_space, logits_of
from .service import Limits, Service


@dataclass
class HttpConfig(SourceConfig):
    """A service that classifies images, such as ``clipvp serve``.

    Args:
        label_names: The labels that the service is known to have, a list or a file; it is refused if it has others.
        timeout: Seconds to wait for a connection, and for the whole answer after a request.
        retries: Further tries after one that fails, each after twice the time.
        per_request: Most images in one request; fewer if the service says so.
        per_second: Most images a second that a process sends; no limit when empty.
        token_variable: Environment variable with a token, sent as Authorization: Bearer.
        answers: Folder of kept answers; answers in the user's cache folder when empty.
    """

    label_names: str | list[str] | None = None
    timeout: float = 30.0
    retries: int = 6
    per_request: int = 32
    per_second: float | None = None
    token_variable: str | None = None
    answers: str | None = None

    def __post_init__(self):
        super().__post_init__()
        for key in ("timeout", "per_request", "per_second"):
            check_positive(f"source.{key}", getattr(self, key))
        check_positive("source.retries", self.retries, zero=True)


class _Asked:
    """Pixels in [0, 1], float32 (B, 3, H, W), to logits (B, S), from kept answers or from the service.

    Requests are cut from the images before known ones are left out, so that a resumed run sends what is missing in the
    same requests: a service may round otherwise in other company.
    """

    def __init__(self, service: Service, store: AnswerStore, per_request: int):
        self.service, self.store, self.per_request = service, store, per_request

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if not np.isfinite(pixels).all():
            raise UserError(
                "the prompted pixels are not finite, so they are not sent; try a smaller optim.lr"
            )
        images = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        rows = [
            self._rows(images[at : at + self.per_request]) for at in range(0, len(images), self.per_request)
        ]
        found = np.concatenate(rows) if rows else np.zeros((0, len(self.service.labels)), np.float32)
        return logits_of(found)

    def _rows(self, images: np.ndarray) -> np.ndarray:
        keys = [image_key(image) for image in images]
        known = self.store.get(keys)
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in known}
        if missing:
            # Clients with one store take turns, so that none sends what another is waiting for.
            with self.store.turn():
                known |= self.store.get(list(missing))
                missing = {key: image for key, image in missing.items() if key not in known}
                if missing:
                    rows = self.service.probabilities(list(missing.values()))
                    self.store.put(dict(zip(missing, rows, strict=True)))
                    known |= self.store.get(list(missing))
        return np.stack([known[key] for key in keys])


def load_http(
    model: str,
    *,
    name: str,
    canvas,
    precision: str,
    revision: str | None,
    local_files_only: bool = False,
    label_names: str | Sequence[str] | None = None,
    timeout: float = 30.0,
    retries: int = 6,
    per_request: int = 32,
    per_second: float | None = None,
    token_variable: str | None = None,
    answers: str | None = None,
    **_,
) -> BlackBoxSource:
    """Load ``http://HOST:PORT``, ``https://HOST`` or ``http:URL``."""
    url = name if model.startswith("//") else model
    if local_files_only:
        raise UserError(f"source.local_files_only: {name!r} is a service, which needs the network")
    if revision:
        raise UserError(f"source.revision: {name!r} is a service, which has no revisions")
    token = os.environ.get(token_variable) if token_variable else None
    if token_variable and not token:
        raise UserError(f"source.token_variable: the environment has no {token_variable}")
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError(
            f"source.token_variable: {token_variable} holds no token; give visible ASCII characters alone"
        )
    service = Service(url, Limits(timeout, retries, per_second, token))
    labels = LabelSpace(tuple(service.labels))
    if label_names is not None:
        known = label_space("source.label_names", label_names).names
        if known != labels.names:
            raise UserError(f"the service {service.url} {_differ(known, labels.names)}")
    try:
        resize = (
            Resize.from_dict(service.resize)
            if service.resize
            else Resize(service.size, "crop", 1.0, "bicubic")
        )
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"the service {service.url} gives a resize that makes no sense: {error}") from error
    preprocessing = Preprocessing(resize, (0.0,), (1.0,)).at(canvas or service.size)
    known = hashlib.sha256(json.dumps([service.model, service.labels]).encode()).hexdigest()[:16]
    place = hashlib.sha256(f"{service.url}\n{known}".encode()).hexdigest()[:24]
    folder = Path(answers).expanduser() if answers else cache_root() / "answers"
    most = min(per_request, service.most_images or per_request)
    asked = _Asked(service, AnswerStore(folder / f"{place}.sqlite"), most)
    return BlackBoxSource(
        asked, labels, preprocessing, known, name=name, revision=revision, precision=precision
    )


def _differ(known: Sequence[str], found: Sequence[str]) -> str:
    """Return in words how the labels of a service differ from those that it is known to have."""
    if len(known) != len(found):
        return f"has {len(found)} labels, and source.label_names {len(known)}"
    place = next(place for place, pair in enumerate(zip(known, found, strict=True)) if pair[0] != pair[1])
    return f"has the label {found[place]!r} at place {place}, and source.label_names {known[place]!r}"
