"""A service that classifies images over HTTP with a saved prompt; docs/pages/black_box.md has the protocol.

It asks for no password. It answers on this machine alone unless told otherwise.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .cpu import float32_default
from .files import digest
from .images import ImageError, to_rgb
from .model import PromptedClassifier
from .registry import UserError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

MOST_CONNECTIONS = 64  # above it, a client is told to come back
_NEEDS = "serve needs starlette and uvicorn: pip install 'clipvp[serve]'"


@dataclass(frozen=True)
class Bounds:
    """The most that a request may hold.

    Args:
        images: Images.
        bytes: Bytes of its body.
        batch_size: Images that the model gets at a time.
    """

    images: int = 256
    bytes: int = 64 << 20
    batch_size: int = 64


class _Refused(Exception):
    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Classifying:
    """What the service does, without HTTP.

    Args:
        classifier: The model.
        bounds: Of a request.

    Attributes:
        images, requests: How many were answered.
    """

    def __init__(self, classifier: PromptedClassifier, bounds: Bounds):
        self.resize, self.device = classifier.resize, classifier.device
        self.model = (classifier.fold() if classifier.source.labels.is_text else classifier).eval()
        self.labels, self.bounds = list(classifier.class_names), bounds
        parts = (classifier.prompt, classifier.mapping)
        built = [[part.kind, part.settings] for part in parts]
        # Clients keep answers by this name, so it stands for all that decides them.
        values = json.dumps([classifier.source.fingerprint, self.labels, built], sort_keys=True)
        self.name = digest(classifier.trained_state(), values)[:16]
        self.images = self.requests = 0
        self._lock = threading.Lock()

    def info(self) -> dict[str, Any]:
        size, most = list(self.resize.size), self.bounds.images
        return {
            "model": self.name,
            "labels": self.labels,
            "size": size,
            "resize": self.resize.to_dict(),
            "most_images": most,
        }

    def health(self) -> dict[str, Any]:
        return {"status": "ok", "model": self.name, "images": self.images, "requests": self.requests}

    def answer(self, body: bytes) -> dict[str, Any]:
        """Return the answer to the body of a request.

        Raises:
            _Refused: The body is not what it should be.
        """
        pixels = [self._pixels(place, text) for place, text in enumerate(self._texts(body))]
        with self._lock:  # one batch at a time, so that memory is bounded
            found = self._probabilities(np.stack(pixels))
            self.images, self.requests = self.images + len(pixels), self.requests + 1
        return {"model": self.name, "probabilities": found}

    def _texts(self, body: bytes) -> list[str]:
        try:
            images = json.loads(body)["images"]
        except (ValueError, KeyError, TypeError, RecursionError):
            images = None
        if not isinstance(images, list) or not images or not all(isinstance(text, str) for text in images):
            raise _Refused(400, 'give {"images": [...]}, each a file in base64')
        if len(images) > self.bounds.images:
            raise _Refused(413, f"{len(images)} images, at most {self.bounds.images} are allowed")
        return images

    def _pixels(self, place: int, text: str) -> np.ndarray:
        """Return an image as uint8 (h, w, 3); one of the right size is taken as it is."""
        reading = self.resize.reading
        try:
            content = base64.b64decode(text, validate=True)
        except ValueError as error:  # characters beyond ASCII are not a binascii.Error
            raise _Refused(400, f"image {place} is not in base64") from error
        try:
            rgb = to_rgb(
                content,
                f"image {place}",
                bits=reading.bits,
                background=reading.background,
                report=lambda line: None,
            )
            return np.array(rgb) if (rgb.height, rgb.width) == self.resize.size else self.resize(rgb)
        except ImageError as error:
            raise _Refused(400, str(error)) from error

    @float32_default()
    @torch.no_grad()
    def _probabilities(self, images: np.ndarray) -> list[list[float]]:
        rows: list[list[float]] = []
        for part in torch.from_numpy(images).split(self.bounds.batch_size):
            pixels = part.permute(0, 3, 1, 2).to(self.device, torch.float32) / 255
            rows += self.model(pixels).softmax(1).tolist()
        return rows


def application(classifying: Classifying) -> Starlette:
    """Return the service as an ASGI application: GET /info and /health, POST /classify."""
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse
        from starlette.routing import Route
    except ImportError as error:
        raise UserError(_NEEDS) from error

    async def info(request: Request) -> JSONResponse:
        return JSONResponse(classifying.info())

    async def health(request: Request) -> JSONResponse:
        return JSONResponse(classifying.health())

    async def classify(request: Request) -> JSONResponse:
        try:
            body = await _body(request, classifying.bounds.bytes)
            return JSONResponse(await run_in_threadpool(classifying.answer, body))
        except _Refused as refused:
            return JSONResponse({"error": str(refused)}, status_code=refused.status)
        except ClientDisconnect:  # nobody reads the answer
            return JSONResponse({"error": "the client has gone"}, status_code=400)
        except UserError as error:  # such as a source behind an address that is down
            return JSONResponse({"error": str(error)}, status_code=500)

    return Starlette(
        routes=[
            Route("/info", info, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Route("/classify", classify, methods=["POST"]),
        ]
    )


async def _body(request: Request, most: int) -> bytes:
    """Return the body of a request, which is read no further than allowed."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise _Refused(413, f"the request is larger than {most} bytes")
    return bytes(body)


@contextlib.contextmanager
def _usable(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} --port {port} cannot be used: {error}") from error


def serve(load: Callable[[], PromptedClassifier], host: str, port: int, bounds: Bounds) -> None:
    """Answer requests until the process is asked to stop.

    Args:
        load: Loads the model, once the address is known to be free.
        host: The address to answer at.
        port: Its port; 0 takes a free one.
        bounds: Of a request.

    Raises:
        UserError: A package is missing, or the address cannot be used.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise UserError(_NEEDS) from error

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with _usable(host, port):
            listening.bind((host, port))
        classifier = load()
        app = application(Classifying(classifier, bounds))
        with _usable(host, port):
            listening.listen(MOST_CONNECTIONS)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        print(f"{len(classifier.class_names)} classes at {address}; stop with Ctrl-C", flush=True)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, limit_concurrency=MOST_CONNECTIONS, lifespan="off"
        )
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn stops, and then raises the signal once more
            uvicorn.Server(config).run(sockets=[listening])
