"""clipvp serve: what it answers, what it refuses, and the way there and back through the http: source."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import left_by, photo, write_image_folder

from clipvp import PromptedClassifier, UserError, load_source
from clipvp.cli.main import main
from clipvp.mappings.random import RandomMapping
from clipvp.prompts.none import NoPrompt
from clipvp.prompts.padding import PaddingPrompt
from clipvp.serve import Bounds, Classifying, application, serve
from clipvp.sources.service import png

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
ROOT = Path(__file__).parents[1]
NAMES = [f"thing {place}" for place in range(20)]


def classifier_of(source: str) -> PromptedClassifier:
    """Return a classifier whose classes are the labels of a source in another order."""
    source = load_source(source, canvas=32)
    mapping = RandomMapping(20, 20)
    mapping.source_index.copy_(torch.randperm(20, generator=torch.Generator().manual_seed(0)))
    return PromptedClassifier(NoPrompt(source.canvas), source, mapping, NAMES).eval()


@pytest.fixture(scope="module")
def classifier(tiny_timm):
    return classifier_of(tiny_timm)


@contextlib.contextmanager
def running(classifier, bounds=None):
    """Serve on a free port of this machine, in a thread; yield the address."""
    app = application(Classifying(classifier, bounds or Bounds()))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # what comes before the server is ready waits
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        server.install_signal_handlers = lambda: None
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def ask(url: str, body=None) -> tuple[int, dict]:
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, content), timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"{}")


def encoded(image: np.ndarray) -> str:
    return base64.b64encode(png(image)).decode()


def test_the_protocol(classifier):
    images = [np.array(photo(32, 32, seed)) for seed in range(5)]
    large = np.array(photo(50, 70, 9))
    with running(classifier, Bounds(batch_size=2)) as url:
        status, info = ask(f"{url}/info")
        assert status == 200 and info["labels"] == NAMES and info["size"] == [32, 32]
        status, answer = ask(f"{url}/classify", {"images": [*map(encoded, images), encoded(large)]})
        assert status == 200 and answer["model"] == info["model"]
        found = torch.tensor(answer["probabilities"])
        pixels = torch.from_numpy(np.stack([*images, classifier.resize.read(large)])).permute(0, 3, 1, 2)
        with torch.no_grad():
            expected = classifier(pixels.float() / 255).softmax(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        health = ask(f"{url}/health")[1]
        assert health == {"status": "ok", "model": info["model"], "images": 6, "requests": 1}


def test_what_is_wrong_is_refused_and_the_service_goes_on(classifier):
    image = encoded(np.zeros((4, 4, 3), np.uint8))
    wrong = [
        (b"no json", 400, "base64"),
        ({"images": []}, 400, "base64"),
        ({"images": "abc"}, 400, "base64"),
        ({"pictures": [image]}, 400, "base64"),
        ({"images": ["***"]}, 400, "image 0 is not in base64"),
        ({"images": ["\u00fc"]}, 400, "image 0 is not in base64"),
        ({"images": [image, base64.b64encode(b"text").decode()]}, 400, "image 1: cannot be read as an image"),
        ({"images": [image] * 4}, 413, "4 images, at most 3 are allowed"),
        (b"x" * 5000, 413, "larger than 4096 bytes"),
    ]
    with running(classifier, Bounds(images=3, bytes=4096)) as url:
        for body, status, reason in wrong:
            found, answer = ask(f"{url}/classify", body)
            assert found == status and reason in answer["error"], (body, answer)
        assert ask(f"{url}/health")[1]["images"] == 0
        assert ask(f"{url}/classify", {"images": [image] * 3})[0] == 200


def test_a_client_that_goes_in_the_middle_of_a_request_leaves_no_traceback(classifier, capfd):
    with running(classifier) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            client.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            time.sleep(0.2)
        assert ask(f"{url}/health")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_ctrl_c_ends_the_service_quietly(classifier, monkeypatch):
    def interrupted(self, sockets):  # as uvicorn ends once it has stopped by a SIGINT
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    serve(lambda: classifier, "127.0.0.1", 0, Bounds())


def test_models_that_differ_in_their_settings_alone_have_other_names(tiny_timm):
    source = load_source(tiny_timm, canvas=32)
    names = set()
    for prompt in (PaddingPrompt((32, 32), (16, 16)), PaddingPrompt((32, 32), (16, 16), bounded=False)):
        for classes in (NAMES, NAMES[::-1]):
            model = PromptedClassifier(prompt, source, RandomMapping(20, 20), classes)
            names.add(Classifying(model, Bounds()).name)
    assert len(names) == 4


def test_the_source_of_a_service_is_its_classifier(classifier, tmp_path):
    images = torch.stack([torch.from_numpy(np.array(photo(32, 32, seed))) for seed in range(5)])
    pixels = images.permute(0, 3, 1, 2).float() / 255
    with running(classifier) as url:
        source = load_source(url, answers=str(tmp_path))
        assert source.labels.names == tuple(NAMES) and source.resize == classifier.resize
        with torch.no_grad():
            expected = classifier(pixels).softmax(1)
        torch.testing.assert_close(source(pixels).softmax(1), expected, rtol=1e-4, atol=1e-6)


def test_a_prompt_on_a_service_is_served_too(classifier, tmp_path):
    """Requests are answered in other threads than the one that loaded the source, and its errors are one line."""
    images = [encoded(np.array(photo(32, 32, seed))) for seed in range(3)]
    with running(classifier) as inner:
        source = load_source(inner, answers=str(tmp_path), retries=0)
        outer = PromptedClassifier(NoPrompt(source.canvas), source, RandomMapping(20, 20), NAMES).eval()
        with running(outer) as url:
            for _ in range(2):
                status, answer = ask(f"{url}/classify", {"images": images[:2]})
                assert status == 200 and np.shape(answer["probabilities"]) == (2, 20)
            source.network.answer.service.url = "http://127.0.0.1:1"  # it is down
            status, answer = ask(f"{url}/classify", {"images": images})
            assert status == 500 and "did not answer in 1 try" in answer["error"]
            assert ask(f"{url}/classify", {"images": images[:2]})[0] == 200


def test_an_address_that_is_taken_is_refused(classifier, tmp_path, capsys):
    loaded = []

    def load():
        loaded.append(1)
        return classifier

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="--host 127.0.0.1 --port .* cannot be used: .*in use"):
            serve(load, "127.0.0.1", taken.getsockname()[1], Bounds())
    assert not loaded  # an address is tried before the model is loaded
    with pytest.raises(UserError, match="--host a..b --port 0 cannot be used"):
        serve(lambda: classifier, "a..b", 0, Bounds())
    for arguments in (["--port", "70000"], ["--most_images", "0"], ["--device", "abacus"]):
        with pytest.raises(SystemExit) as stopped:
            main(["serve", str(tmp_path / "missing"), *arguments])
        assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


# There and back. The server notes each image that it answers to, and dies in the middle of a request; the client dies
# after an answer that it has kept.
SERVER = """
import os, signal, sys
from clipvp.cli.main import main
from clipvp.serve import Classifying
from clipvp.sources.answers import image_key

log, left = open(sys.argv[1], "a", buffering=1), int(sys.argv[2])
inner = Classifying._probabilities

def noted(self, images):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    found = inner(self, images)
    log.write("".join(image_key(image).hex() + chr(10) for image in images))
    return found

Classifying._probabilities = noted
main(["serve", *sys.argv[3:]])
"""
CLIENT = """
import os, runpy, signal, sys
from clipvp.sources.answers import AnswerStore

left, sys.argv = int(sys.argv[1]), sys.argv[2:]
put = AnswerStore.put

def counted(self, rows):
    global left
    put(self, rows)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

AnswerStore.put = counted
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(code: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_killed_on_both_sides_and_resumed_no_image_is_asked_twice(tiny_timm, tmp_path):
    classifier_of(tiny_timm).save_pretrained(tmp_path / "served")
    images = write_image_folder(tmp_path / "images", {"train": 48, "val": 9, "test": 12}, 3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []

    def server(log: str, dies: int = 0) -> subprocess.Popen:
        one = start(SERVER, tmp_path / log, dies, tmp_path / "served", "--port", port)
        started.append(one)
        assert "20 classes at http://127.0.0.1" in one.stdout.readline()
        return one

    def client(name: str, dies: int = 0) -> subprocess.Popen:
        values = {"source.name": f"http://127.0.0.1:{port}", "prompt.image_size": 16, "data.name": images}
        values |= {"source.answers": tmp_path / f"{name}-answers", "source.per_request": 6}
        values |= {"source.retries": 12, "optim.name": "sgd", "optim.nesterov": "true", "optim.lr": 1}
        values |= {"train.gradient": "spsa", "train.draws": 1, "train.epochs": 2, "train.batch_size": 16}
        values |= {"train.save_minutes": 1e-9, "train.progress": "false", "output": tmp_path / name}
        values |= {"data.cache_dir": tmp_path / "cache", "resume": "auto"}
        given = [f"--{key}={value}" for key, value in values.items()]
        started.append(start(CLIENT, dies, ROOT / "recipes" / "train.py", *given))
        return started[-1]

    def finished(one: subprocess.Popen) -> None:
        _, error = one.communicate(timeout=240)
        assert one.returncode == 0, error[-3000:]

    try:
        first = server("whole.log")
        finished(client("whole"))
        first.send_signal(signal.SIGINT)
        assert "Traceback" not in first.communicate(timeout=60)[1] and first.returncode == 0
        second = server("killed.log", dies=40)
        one = client("killed", dies=22)
        one.communicate(timeout=240)
        assert one.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "results.json").exists()
        two = client("killed")
        second.communicate(timeout=240)
        assert second.returncode == -signal.SIGKILL and two.poll() is None
        time.sleep(0.2)
        server("killed.log")
        finished(two)
    finally:
        for each in started:
            if each.poll() is None:
                each.kill()
                each.communicate()
    assert left_by(tmp_path / "killed") == left_by(tmp_path / "whole")
    whole, killed = ((tmp_path / f"{name}.log").read_text().split() for name in ("whole", "killed"))
    assert len(killed) == len(set(killed)) and set(killed) == set(whole)
    queries = json.loads((tmp_path / "whole" / "results.json").read_text())["queries"]
    assert queries["training"] == 2 * 48 * 2 and len(whole) <= queries["total"] + 1
