"""Sources behind HTTP: answers are kept, tries are repeated, and a service that lies is found."""

import base64
import contextlib
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from clipvp import UserError, load_source
from clipvp.sources import service as service_module
from clipvp.sources.answers import AnswerStore, image_key
from clipvp.sources.http_service import HttpConfig

LABELS = ["red", "green", "blue"]
INFO = {"labels": LABELS, "size": [4, 4], "model": "m1"}


def of_image(text: str) -> list[float]:
    """Return the share of each channel in an image's sum."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert image.format == "PNG"
        sums = np.asarray(image).astype(float).sum((0, 1)) + 1
    return (sums / sums.sum()).tolist()


class Scripted:
    """A service on this machine that answers as it is told; ``images`` holds all that it was sent."""

    def __init__(self):
        self.info, self.images, self.headers, self.failures = dict(INFO), [], [], []
        self.change = lambda answer: answer
        self.restarts = {}  # what /info says differently after a failure
        self.redirect = None  # the address of another service
        self.drip = None  # an answer of two parts, of which the second one is sent byte by byte
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def _send(self, status, content, **headers):
                text = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for key, value in {"Content-Length": len(text), **headers}.items():
                    self.send_header(key.replace("_", "-"), str(value))
                self.end_headers()
                self.wfile.write(text)

            def _odd(self) -> bool:
                if owner.redirect:
                    self._send(302, {}, Location=owner.redirect + self.path)
                elif owner.drip:
                    self.wfile.write(owner.drip[0])
                    with contextlib.suppress(OSError):  # the client has gone
                        for byte in owner.drip[1]:
                            time.sleep(0.05)
                            self.wfile.write(bytes([byte]))
                return bool(owner.redirect or owner.drip)

            def do_GET(self):
                if self._odd():
                    return
                owner.headers.append(dict(self.headers))
                self._send(200, owner.info) if self.path == "/info" else self._send(404, {"error": "no"})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self._odd():
                    return
                if owner.failures:
                    failure = owner.failures.pop(0)
                    owner.info |= owner.restarts
                    if failure == "cut":
                        self.connection.close()
                    else:
                        self._send(failure, {"error": "too much"}, Retry_After=7)
                    return
                owner.images += body["images"]
                rows = [of_image(text) for text in body["images"]]
                self._send(200, owner.change({"model": owner.info.get("model"), "probabilities": rows}))

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown(), self.server.server_close()


@pytest.fixture
def service():
    service = Scripted()
    yield service
    service.close()


@pytest.fixture
def slept(monkeypatch):
    """The seconds that the client would have waited."""
    waits, now = [], [100.0]

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(service_module.time, "sleep", sleep)
    monkeypatch.setattr(service_module.time, "monotonic", lambda: now[0])
    return waits


@pytest.fixture
def load(service, tmp_path):
    def load(**options):
        return load_source(service.url, **{"answers": str(tmp_path / "answers"), **options})

    return load


@pytest.fixture
def pixels():
    return torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_logits_are_the_logarithms_of_the_answers(service, load, pixels):
    source = load()
    assert source.labels.names == tuple(LABELS) and source.canvas == (4, 4) and not source.gives_gradient
    sums = (pixels * 255).round().sum((2, 3)) + 1
    torch.testing.assert_close(source(pixels).softmax(1), sums / sums.sum(1, keepdim=True))
    assert source(pixels[:0]).shape == (0, 3)


def test_no_image_is_sent_twice(service, load, pixels):
    first = load(per_request=3)(torch.cat([pixels, pixels[:2]]))
    sent = len(service.images)
    assert sent == len(set(service.images)) == 8  # seven, and the empty one that a source is tried with
    again = load(per_request=5)(pixels.flip(0)).flip(0)
    assert torch.equal(again, first[:7]) and torch.equal(first[7:], first[:2]) and len(service.images) == sent
    near = (pixels * 255).round() / 255 + 1e-4  # the same bytes
    load()(near)
    assert len(service.images) == sent
    service.info["model"] = "m2"  # another model has not answered yet
    load()(pixels)
    assert len(service.images) == 2 * sent


def test_no_image_is_sent_twice_by_clients_that_ask_at_once(service, load, pixels):
    sources = [load(), load()]
    service.change = lambda answer: time.sleep(0.3) or answer  # both would ask before the first answer
    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(lambda source: source(pixels), sources)
    assert torch.equal(one, two) and len(service.images) == len(set(service.images)) == 8


def test_a_source_answers_in_any_thread(load, pixels):
    source = load()
    with ThreadPoolExecutor(1) as other:
        found = other.submit(source, pixels).result()
    assert torch.equal(source(pixels), found)


def test_no_more_images_are_sent_than_the_service_takes(service, load, pixels):
    sizes, service.info["most_images"] = [], 4
    service.change = lambda answer: sizes.append(len(answer["probabilities"])) or answer
    load(per_request=10)(pixels)
    assert sizes == [1, 4, 3]


def test_rounded_probabilities_of_many_labels_are_taken(service, load, pixels):
    service.info["labels"] = [f"label {place}" for place in range(1000)]
    exact = torch.linspace(-1, 1, 1000).mul(4).softmax(0)
    shown = [round(value, 4) for value in exact.tolist()]
    assert abs(sum(shown) - 1) > 1e-3
    service.change = rows(*shown)
    found = load()(pixels).exp()
    torch.testing.assert_close(found.sum(1), torch.ones(7))
    torch.testing.assert_close(found[0], torch.tensor(shown) / sum(shown))
    service.change = rows(*[0.9 * value for value in exact.tolist()])
    with pytest.raises(UserError, match="no probabilities: .*, sum 0.9"):
        load()((pixels + 0.5) / 2)


def test_a_resumed_request_is_cut_as_the_first_was(service, load, pixels):
    load(per_request=3)(pixels[:3])
    del service.images[:]
    load(per_request=3)(pixels)
    assert len(service.images) == 4


def test_kept_answers_are_whole_and_shared(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3)).astype(np.uint8)
    keys = [image_key(image) for image in images]
    rows = {key: np.float32([place, 1 / 3]) for place, key in enumerate(keys)}
    one, two = (AnswerStore(tmp_path / "a" / "store.sqlite") for _ in range(2))
    one.put(rows)
    found = two.get([*keys, b"other"])
    assert found.keys() == rows.keys() and all(np.array_equal(found[key], rows[key]) for key in rows)
    two.put({keys[0]: np.float32([9, 9])})  # too late
    assert np.array_equal(one.get(keys)[keys[0]], rows[keys[0]])
    assert len(two) == 3 and image_key(images[0].reshape(1, 4, 3)) != keys[0]
    (tmp_path / "damaged.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="damaged.sqlite"):
        AnswerStore(tmp_path / "damaged.sqlite").get(keys)


def test_a_try_that_fails_is_repeated_after_a_longer_wait(service, load, pixels, slept):
    source = load()
    service.failures = [503, "cut", 429, 500]
    with pytest.warns(UserWarning, match="did not answer .*503.*; trying again"):
        source(pixels)
    assert slept == [7, 1.0, 7, 7] and len(service.images) == 8


def test_a_service_that_stays_down_is_named(service, load, pixels, slept):
    source = load(retries=2)
    service.failures = ["cut"] * 9
    with (
        pytest.warns(UserWarning, match="trying again"),
        pytest.raises(UserError, match=r"did not answer in 3 tries: .") as error,
    ):
        source(pixels)
    assert "\n" not in str(error.value) and slept == [0.5, 1.0]
    service.close()
    with pytest.raises(UserError, match="did not answer in 1 try: .*refused"):
        load(retries=0)


def test_a_slow_service_is_named(service, load, pixels):
    source = load(retries=0, timeout=0.2)
    wait = threading.Event()
    service.change = lambda answer: wait.wait(5) and answer
    with pytest.raises(UserError, match="did not answer in 1 try: no answer within 0.2 s"):
        source(pixels)
    wait.set()


@pytest.mark.parametrize(
    "at_once, slowly", [(b"HTTP/1.0 200 OK", b"    " * 30), (b"HTTP/1.0 200 OK\r\n\r\n{", b" " * 120)]
)
def test_an_answer_that_comes_byte_by_byte_is_too_slow(at_once, slowly, service, load, pixels):
    source = load(retries=0, timeout=0.3)
    service.drip = at_once, slowly
    with pytest.raises(UserError, match="did not answer in 1 try: no answer within 0.3 s"):
        source(pixels)


def test_a_redirect_is_refused_and_named_and_gets_no_token(service, load, pixels, monkeypatch):
    other = Scripted()
    monkeypatch.setenv("MY_TOKEN", "secret")
    try:
        source, service.redirect = load(token_variable="MY_TOKEN"), other.url
        with pytest.raises(
            UserError, match=f"redirects classify to '{other.url}/classify', which is not followed"
        ):
            source(pixels)
        with pytest.raises(UserError, match=f"redirects info to '{other.url}/info', which is not followed"):
            load(token_variable="MY_TOKEN")
        assert not other.headers and not other.images
    finally:
        other.close()


@pytest.mark.parametrize(
    "restarts, message",
    [
        (
            {"labels": ["green", "red", "blue"]},
            "changed its labels: the one at place 0 was 'red', and is 'green'",
        ),
        ({"labels": ["red", "green"]}, "changed its labels: there were 3, and are 2"),
        ({"size": [5, 4]}, "changed its size"),
    ],
)
def test_a_service_that_comes_back_as_another_is_refused(restarts, message, service, load, pixels, slept):
    del service.info["model"]
    source, sent = load(), len(service.images)
    service.failures, service.restarts = ["cut"], restarts
    with pytest.warns(UserWarning, match="trying again"), pytest.raises(UserError, match=message):
        source(pixels)
    assert len(service.images) == sent


def test_a_model_that_only_the_answers_name_is_allowed_and_may_not_change(service, load, pixels):
    del service.info["model"]
    service.change = lambda answer: {**answer, "model": "m1"}
    source = load()
    source(pixels[:3])
    service.change = lambda answer: {**answer, "model": "m2"}
    with pytest.raises(UserError, match="changed its model: it was 'm1', and is 'm2'"):
        source(pixels)


def test_images_a_second_are_limited(service, load, pixels, slept):
    load(per_second=2, per_request=3)(pixels)
    # The first one, of the source's own check; then 3, 3 and 1.
    assert [wait for wait in slept if wait] == [0.5, 1.5, 1.5]


def test_a_repeated_request_keeps_to_the_images_a_second(service, load, pixels, slept):
    source = load(per_second=2, per_request=7)
    service.failures = ["cut", "cut"]
    with pytest.warns(UserWarning, match="trying again"):
        source(pixels)
    # Half a second for the first image; then seven images three times, whose waits include those after a failed try.
    assert [wait for wait in slept if wait] == [0.5, 0.5, 3.0, 1.0, 2.5]


def test_a_token_is_sent_and_never_kept(service, load, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "secret")
    source = load(token_variable="MY_TOKEN")
    assert service.headers[-1]["Authorization"] == "Bearer secret"
    assert "secret" not in json.dumps(source.options)
    with pytest.raises(UserError, match="the environment has no OTHER_TOKEN"):
        load(token_variable="OTHER_TOKEN")
    for content in ("secret\n", "se cret", "secr\u20act"):
        monkeypatch.setenv("OTHER_TOKEN", content)
        with pytest.raises(UserError, match="OTHER_TOKEN holds no token") as error:
            load(token_variable="OTHER_TOKEN")
        assert "cret" not in str(error.value)


def rows(*values):
    return lambda answer: {**answer, "probabilities": [list(values) for _ in answer["probabilities"]]}


@pytest.mark.parametrize(
    "change, message",
    [
        (rows(0.5, 0.5), "says that it has 3 labels, and answers with 2 numbers an image"),
        (rows(0.5, 0.4, 0.3), "no probabilities: 0.3 to 0.5, sum 1.2"),
        (rows(1.5, -0.5, 0), "no probabilities: -0.5 to 1.5"),
        (rows(float("nan"), 0, 1), "no probabilities: NaN or infinity"),
        (rows("a", 0, 1), "that are no numbers"),
        (rows(None, 0, 1), "no probabilities|no numbers"),
        (rows([1], 0, 1), "that are no numbers"),
        (rows(10**400, 0, 1), "that are no numbers"),
        (lambda answer: {**answer, "probabilities": []}, "did not answer with 1 rows of probabilities"),
        (lambda answer: {**answer, "model": "m2"}, "changed its model: it was 'm1', and is 'm2'"),
        (lambda answer: [1], "not a JSON object"),
        (lambda answer: b"<html>", "does not answer in JSON"),
        (lambda answer: b"[" * 100_000, "does not answer in JSON"),
    ],
)
def test_answers_that_make_no_sense_are_refused(change, message, service, load):
    service.change = change
    with pytest.raises(UserError, match=message) as error:
        load()
    assert "\n" not in str(error.value) and service.url in str(error.value)


@pytest.mark.parametrize(
    "info, message",
    [
        ({"labels": ["a", "a"]}, "no list of distinct labels"),
        ({"labels": []}, "no list of distinct labels"),
        ({"labels": None}, "no list of distinct labels"),
        ({"most_images": 0}, "gives most_images '0'"),
        ({"size": 4}, "no size .height, width."),
        ({"resize": {"size": [4, 4], "rule": "melt"}}, "gives a resize that makes no sense"),
    ],
)
def test_what_a_service_says_of_itself_is_checked(info, message, service, load):
    service.info |= info
    with pytest.raises(UserError, match=message):
        load()


def test_labels_other_than_expected_are_refused(load):
    assert load(label_names=LABELS).labels.names == tuple(LABELS)
    with pytest.raises(UserError, match="has the label 'green' at place 1, and source.label_names 'grey'"):
        load(label_names=["red", "grey", "blue"])
    with pytest.raises(UserError, match="has 3 labels, and source.label_names 2"):
        load(label_names=["red", "green"])


def test_a_refused_request_is_not_repeated(service, load, pixels, slept):
    source = load()
    service.failures = [413]
    with pytest.raises(UserError, match="refuses: classify gave 413 too much"):
        source(pixels)
    assert slept == []


@pytest.mark.parametrize(
    "name, message",
    [
        ("http:nowhere", "is no address of a service"),
        ("http://user:pw@127.0.0.1:1", "holds no password"),
        ("http://127.0.0.1:1/?key=1", "is no address of a service"),
        ("http://127.0.0.1:99999", "is no address"),
        ("http://a..b", "is no address"),
        ("http://127.0.0.1:1/\u00e4", "is no address"),
        ("https://", "is no address of a service"),
    ],
)
def test_what_is_no_address_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        load_source(name)


def test_the_address_may_follow_the_scheme(service, tmp_path):
    assert load_source(f"http:{service.url}", answers=str(tmp_path)).labels.names == tuple(LABELS)


@pytest.mark.parametrize("key", ["timeout", "per_request", "per_second", "retries"])
def test_wrong_settings_are_refused(key):
    with pytest.raises(UserError, match=f"source.{key}: -1"):
        HttpConfig(name="http://127.0.0.1:1", **{key: -1})


def test_pixels_that_are_not_finite_are_not_sent(service, load, pixels):
    source, sent = load(), len(service.images)
    with pytest.raises(UserError, match="not finite"):
        source(pixels * float("nan"))
    assert len(service.images) == sent
