"""The client of a service that classifies images over HTTP, see docs/pages/black_box.md for the protocol."""

from __future__ import annotations

import base64
import http.client
import io
import json
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
from PIL import Image

from ..registry import UserError
from .black_box import TOLERANCE, are_probabilities
from .connection import REDIRECTS, opener

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between two tries: twice as long each time
LARGEST_ANSWER = 1 << 28  # bytes
# A service may round each probability to four digits; their sum then differs from 1 by half a digit for each label.
ROUNDING, MOST_ROUNDING = 5e-5, 0.1
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Limits:
    """How a client asks.

    Args:
        timeout: Seconds to wait for a connection, and for the whole answer after a request.
        retries: Further tries after a failed one.
        per_second: Most images a second; no limit when None.
        token: Sent as ``Authorization: Bearer``; none when None.
    """

    timeout: float = 30.0
    retries: int = 6
    per_second: float | None = None
    token: str | None = None


class _Retry(Exception):
    """A try failed for a reason that may pass."""

    def __init__(self, reason: str, after: float | None = None):
        super().__init__(reason)
        self.after = after


class Service:
    """One service.

    Args:
        url: http:// or https://, without a query.
        limits: How it is asked.

    Attributes:
        labels: The names of what it scores.
        size: (h, w) of the images that it wants.
        resize: How images are brought to that size, as ``Resize.to_dict`` has it; empty if it does not say.
        model: What it calls its model; empty if it does not say.
        most_images: The most that it takes in a request; None if it does not say.

    Raises:
        UserError: The address is none, the service cannot be reached, or what it says of itself makes no sense.
    """

    def __init__(self, url: str, limits: Limits):
        self.url, self.limits, self._next = url.rstrip("/"), limits, 0.0
        try:
            parts = urlsplit(self.url)
            _ = parts.port, self.url.encode("ascii"), (parts.hostname or "").encode("idna")
        except ValueError as error:  # a UnicodeError too
            raise UserError(f"source.name: {url!r} is no address: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(f"source.name: {url!r} is no address of a service; give http://HOST:PORT/PATH")
        if parts.username or parts.password:
            raise UserError("source.name: an address holds no password; put it into source.token_variable")
        # A proxy of this machine does not know the machine's own addresses.
        own = [urllib.request.ProxyHandler({})] if parts.hostname in _LOOPBACK else []
        self._opener = opener(*own)
        info = self._ask("info", None)
        self.labels, self.size = _labels(self.url, info), _size(self.url, info)
        self.resize = info.get("resize") or {}
        self.model = str(info.get("model") or "")
        self.most_images = _most_images(self.url, info)
        self._answered = self.model  # the model that has answered so far

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return a row of probabilities (B, S) float32 for each image, uint8 (h, w, 3), in one request.

        Raises:
            UserError: The service cannot be reached, refuses, or answers with something else.
        """
        body = {"images": [base64.b64encode(png(image)).decode("ascii") for image in images]}
        answer = self._ask("classify", body, len(images))
        return self._check(answer, len(images))

    def _check(self, answer: dict[str, Any], count: int) -> np.ndarray:
        rows, where = answer.get("probabilities"), f"the service {self.url}"
        self._check_model(answer)
        if not isinstance(rows, list) or len(rows) != count or not all(isinstance(row, list) for row in rows):
            raise UserError(
                f"{where} was sent {count} images and did not answer with {count} rows of probabilities"
            )
        for row in rows:
            if len(row) != len(self.labels):
                raise UserError(
                    f"{where} says that it has {len(self.labels)} labels, and answers with {len(row)} numbers an image"
                )
        try:
            found = np.array(rows, np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where} answers with probabilities that are no numbers: {error}") from error
        sums, allowed = found.sum(1), TOLERANCE + min(MOST_ROUNDING, ROUNDING * len(self.labels))
        if not are_probabilities(found, allowed):
            odd = found[~np.isfinite(sums) | (found < 0).any(1) | (abs(sums - 1) > allowed)][0]
            shown = (
                "NaN or infinity"
                if not np.isfinite(odd).all()
                else f"{odd.min():g} to {odd.max():g}, sum {odd.sum():g}"
            )
            raise UserError(f"{where} answers with numbers that are no probabilities: {shown}")
        return (found / sums[:, None]).astype(np.float32)

    def _check_model(self, said: dict[str, Any]) -> None:
        """Refuse another model than the one so far. One that is named in the answers alone is known from the first."""
        found = str(said.get("model") or self._answered)
        if self._answered and found != self._answered:
            raise UserError(
                f"the service {self.url} changed its model: it was {self._answered!r}, and is {found!r}"
            )
        self._answered = found

    def _check_restarted(self) -> None:
        """Refuse a service that came back with another model, other labels or another size."""
        info, where = self._try("info", None), f"the service {self.url}"
        labels, size = _labels(self.url, info), _size(self.url, info)
        if len(labels) != len(self.labels):
            raise UserError(
                f"{where} changed its labels: there were {len(self.labels)}, and are {len(labels)}"
            )
        for place, (was, now) in enumerate(zip(self.labels, labels, strict=True)):
            if was != now:
                raise UserError(
                    f"{where} changed its labels: the one at place {place} was {was!r}, and is {now!r}"
                )
        if size != self.size:
            raise UserError(f"{where} changed its size: it was {self.size}, and is {size}")
        self._check_model(info)

    def _ask(self, path: str, body: dict[str, Any] | None, images: int = 0) -> dict[str, Any]:
        """Return the service's JSON object, after as many tries as allowed; ``images`` are in the body."""
        wait = FIRST_WAIT
        for left in range(self.limits.retries, -1, -1):
            try:
                if images and left < self.limits.retries:
                    self._check_restarted()
                self._keep_to_rate(images)
                return self._try(path, body)
            except _Retry as failed:
                if not left:
                    tries = self.limits.retries + 1
                    raise UserError(
                        f"the service {self.url} did not answer in {tries} {'tries' if tries > 1 else 'try'}: {failed}"
                    ) from failed
                if left == self.limits.retries:
                    warnings.warn(
                        f"the service {self.url} did not answer ({failed}); trying again", stacklevel=2
                    )
                time.sleep(min(LONGEST_WAIT, wait if failed.after is None else failed.after))
                wait *= 2
        raise AssertionError

    def _keep_to_rate(self, images: int) -> None:
        """Wait until so many images more are within ``per_second``; a try that fails has sent its images too."""
        if self.limits.per_second and images:
            now = time.monotonic()
            time.sleep(max(0.0, self._next - now))
            self._next = max(now, self._next) + images / self.limits.per_second

    def _try(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Accept": "application/json"}
        if self.limits.token:
            headers["Authorization"] = f"Bearer {self.limits.token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", content, headers)
        try:
            with self._opener.open(request, timeout=self.limits.timeout) as response:
                text = response.read(LARGEST_ANSWER + 1)
        except urllib.error.HTTPError as error:
            if error.code in REDIRECTS:
                new = urljoin(request.full_url, error.headers.get("Location") or "")
                raise UserError(
                    f"the service {self.url} redirects {path} to {new!r}, which is not followed; if you trust that "
                    "address, give it as source.name"
                ) from error
            reason = f"{path} gave {error.code} {_said(error)}".strip()
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _Retry(reason, _after(error)) from error
            raise UserError(f"the service {self.url} refuses: {reason}") from error
        except TimeoutError as error:
            raise _Retry(f"no answer within {self.limits.timeout:g} s") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Retry(f"no answer within {self.limits.timeout:g} s") from error
            raise _Retry(str(reason) or type(reason).__name__) from error
        if len(text) > LARGEST_ANSWER:
            raise UserError(f"the service {self.url} answers with more than {LARGEST_ANSWER >> 20} MB")
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the service {self.url} does not answer in JSON: {text[:60]!r}") from error
        if not isinstance(answer, dict):
            raise UserError(f"the service {self.url} answers with {str(answer)[:60]}, not a JSON object")
        return answer


def png(image: np.ndarray) -> bytes:
    """Return an image, uint8 (h, w, 3), as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=1)
    return file.getvalue()


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(1 << 16))["error"])[:300]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return str(error.reason)


def _after(error: urllib.error.HTTPError) -> float | None:
    """Return the seconds of Retry-After, None where it is not there or is a date."""
    try:
        return max(0.0, float(error.headers.get("Retry-After")))
    except (TypeError, ValueError):
        return None


def _labels(url: str, info: dict[str, Any]) -> list[str]:
    labels = info.get("labels")
    good = (
        isinstance(labels, list) and labels and all(isinstance(name, str) and name.strip() for name in labels)
    )
    if not good or len(set(labels)) != len(labels):
        raise UserError(f"the service {url} gives no list of distinct labels at {url}/info")
    return labels


def _most_images(url: str, info: dict[str, Any]) -> int | None:
    most = info.get("most_images")
    if most is not None and not (type(most) is int and most > 0):
        raise UserError(
            f"the service {url} gives most_images {str(most)[:60]!r} at {url}/info, not a number from 1 on"
        )
    return most


def _size(url: str, info: dict[str, Any]) -> tuple[int, int]:
    size = info.get("size")
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    ):
        raise UserError(f"the service {url} gives no size [height, width] of its images at {url}/info")
    return size[0], size[1]
