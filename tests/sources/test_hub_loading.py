"""Models from a hub, over real HTTP: the same as from a folder, pinned, kept, or told in one line what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from hub_client import Client, scores
from hub_server import Hub
from tiny_models import CLIPS, MODELS, hf_text, open_clip_hf_text

from clipvp import load_source

CLASSES = ["cat", "Big Bird", "truck"]
# By the last part of its scheme, how a repository is named.
SCHEMES = {"hf:": "hf:", "timm:local-dir:": "timm:hf-hub:", "open_clip:local-dir:": "open_clip:hf-hub:"}
EVERY_LIBRARY = ["hf_clip", "hf_classifier", "open_clip_vit", "timm_classifier"]


def hub_name(kind: str, repository: str | None = None) -> str:
    return f"{SCHEMES[MODELS[kind][0]]}{repository or f'someone/{kind}'}"


def text(kind: str) -> dict:
    return {"class_names": CLASSES, "templates": ["a photo of a {}.", "{}"]} if kind in CLIPS else {}


def folder_of(name: str) -> Path:
    return Path(name.rpartition(":")[2])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def commits() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def hub(tiny_model, commits, tmp_path_factory):
    """A hub: every kind of model on main, an older one of four kinds on a branch, and some that are not whole."""
    with Hub() as hub:
        for kind in MODELS:
            if kind in EVERY_LIBRARY:
                older = folder_of(tiny_model(kind, seed=1))
                commits[kind] = hub.commit(f"someone/{kind}", older, branch="older")
            hub.commit(f"someone/{kind}", folder_of(tiny_model(kind)))
        for kind in ("hf_clip", "open_clip_vit", "timm_classifier"):
            whole = files(folder_of(tiny_model(kind)))
            (weights,) = [name for name in whole if name.endswith(".safetensors")]
            hub.commit(f"gated/{kind}", whole, gated=True)
            hub.commit(f"cut/{kind}", {**whole, weights: whole[weights][:-1000]})
            hub.commit(f"broken/{kind}", whole, broken={weights: 5000})
            hub.commit(f"empty/{kind}", {name: data for name, data in whole.items() if name != weights})
            hub.commit(f"plain/{kind}", {"README.md": b"# Nothing"})
        text_folder, folder = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("two")
        hf_text(text_folder)
        hub.commit("someone/text", text_folder)
        open_clip_hf_text(folder, text_folder, "someone/text")
        hub.commit("someone/two", folder)
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub_home")


@pytest.fixture(scope="module")
def client(hub, home):
    environment = hub.environment(home / "online", CLIPVP_CACHE=str(home / "clipvp"))
    client = Client(environment, home / "noise.txt")
    yield client
    client.close()


def check_same(answer: dict, source) -> None:
    assert "error" not in answer, answer["error"]
    assert answer["fingerprint"] == source.fingerprint and tuple(answer["names"]) == source.labels.names
    assert answer["logits"] == pytest.approx(scores(source), rel=1e-4, abs=1e-5)


# The same model


@pytest.mark.parametrize("kind", MODELS)
def test_a_repository_gives_what_its_folder_gives_and_is_fetched_once(kind, hub, client, tiny_model):
    source = load_source(tiny_model(kind), **text(kind))
    before = hub.requests(f"storage/models/someone/{kind}/")
    check_same(client.load(hub_name(kind), **text(kind)), source)
    fetched = hub.requests(f"storage/models/someone/{kind}/")
    assert fetched > before or before  # its weights came over HTTP
    check_same(client.load(hub_name(kind), **text(kind)), source)
    assert hub.requests(f"storage/models/someone/{kind}/") == fetched


@pytest.mark.parametrize("kind", EVERY_LIBRARY)
@pytest.mark.parametrize("by", ["branch", "commit", "short commit"])
def test_a_revision_gives_the_weights_of_that_revision(kind, by, client, commits, tiny_model):
    older, newest = (load_source(tiny_model(kind, seed), **text(kind)) for seed in (1, 0))
    assert older.fingerprint != newest.fingerprint
    revision = {"branch": "older", "commit": commits[kind], "short commit": commits[kind][:8]}[by]
    check_same(client.load(hub_name(kind), revision=revision, **text(kind)), older)
    check_same(client.load(hub_name(kind), **text(kind)), newest)


def test_open_clip_finds_a_text_tower_in_another_repository(client):
    answer = client.load("open_clip:hf-hub:someone/two", **text("hf_clip"))
    assert "error" not in answer, answer["error"]


def test_an_open_clip_repository_is_not_fetched_twice_over(hub, client, tiny_model):
    # Such repositories often hold the same weights for transformers, and older ones as a pickle beside them.
    own = files(folder_of(tiny_model("open_clip_vit")))
    more = {"model.safetensors": b"0", "open_clip_pytorch_model.bin": b"0", "onnx/model.json": b"{}"}
    hub.commit("someone/many", {**own, **more})
    check_same(
        client.load("open_clip:hf-hub:someone/many", **text("open_clip_vit")),
        load_source(tiny_model("open_clip_vit"), **text("open_clip_vit")),
    )
    assert not any(hub.requests(f"many/{file}") for file in ("onnx", "model.safetensors"))
    got = [
        path
        for method, path, _ in hub.log
        if method == "GET" and "someone/many/" in path and "/api/" not in path
    ]
    assert {path.rpartition("/")[2] for path in got} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }


def test_an_open_clip_repository_of_pickled_weights_loads(hub, client, tiny_model, tmp_path):
    import io

    import torch
    from safetensors.torch import load_file

    folder = folder_of(tiny_model("open_clip_vit"))
    buffer = io.BytesIO()
    torch.save(load_file(folder / "open_clip_model.safetensors"), buffer)
    pickled = buffer.getvalue()
    config = {"open_clip_config.json": (folder / "open_clip_config.json").read_bytes()}
    hub.commit("someone/pickled", {**config, "open_clip_pytorch_model.bin": pickled})
    hub.commit("cut/pickled", {**config, "open_clip_pytorch_model.bin": pickled[:-1000]})
    check_same(
        client.load("open_clip:hf-hub:someone/pickled", **text("open_clip_vit")),
        load_source(tiny_model("open_clip_vit"), **text("open_clip_vit")),
    )
    answer = client.load("open_clip:hf-hub:cut/pickled", **text("open_clip_vit"))
    assert "a weight file is damaged" in answer["error"], answer["error"]


def test_a_timm_name_is_asked_of_its_repository(hub, client):
    import timm
    from safetensors.torch import save

    model = timm.create_model("test_vit", pretrained=False).eval()
    hub.commit("timm/test_vit.r160_in1k", {"model.safetensors": save(model.state_dict())})
    answer = client.load("timm:test_vit.r160_in1k")
    assert "error" not in answer, answer["error"]
    assert len(answer["names"]) == 1000


# Without the network


@pytest.mark.parametrize("kind", EVERY_LIBRARY)
def test_local_files_only_asks_nothing(kind, hub, client):
    first = client.load(hub_name(kind), **text(kind))
    requests = len(hub.log)
    answer = client.load(hub_name(kind), local_files_only=True, **text(kind))
    assert answer["logits"] == pytest.approx(first["logits"], rel=1e-5)
    answer = client.load(hub_name(kind, "someone/unknown"), local_files_only=True, **text(kind))
    assert "local_files_only is set" in answer["error"]
    assert "`hf download someone/unknown`" in answer["error"]
    assert len(hub.log) == requests


@pytest.mark.parametrize("kind", EVERY_LIBRARY)
def test_a_hub_out_of_reach_is_seen_at_once(kind, hub, client):
    first = client.load(hub_name(kind), **text(kind))
    with hub.away():
        again = client.load(hub_name(kind), **text(kind))
        pinned = client.load(hub_name(kind, "someone/unknown"), revision="older", **text(kind))
        unknown = client.load(hub_name(kind, "someone/unknown"), **text(kind))
    assert again["logits"] == pytest.approx(first["logits"], rel=1e-5)  # what was fetched before serves on
    assert f"{hub.url} cannot be reached" in unknown["error"] and "\n" not in unknown["error"]
    assert "`hf download someone/unknown`" in unknown["error"]
    assert "`hf download someone/unknown --revision older`" in pinned["error"]
    assert unknown["seconds"] < 3 and unknown["noise"] == again["noise"] == ""
    assert "error" not in client.load(hub_name(kind), **text(kind))


OFFLINE = """
import sys, time
start = time.monotonic()
import clipvp
for name in sys.argv[1:]:
    try:
        print(clipvp.load_source(name, class_names=["cat"] if "clip" in name else None).fingerprint)
    except clipvp.UserError as error:
        print(error)
"""


def run_offline(names: list[str], environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *names], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_environments_offline_switch_is_obeyed(hub, client, home, tiny_model):
    kinds = ["hf_clip", "timm_classifier", "open_clip_vit"]
    for kind in kinds:
        client.load(hub_name(kind), **text(kind))
    requests = len(hub.log)
    environment = hub.environment(home / "online", HF_HUB_OFFLINE="1", CLIPVP_CACHE=str(home / "clipvp"))
    names = [hub_name(kind) for kind in kinds] + ["hf:someone/unknown"]
    *found, missing = run_offline(names, environment)
    assert found == [load_source(tiny_model(kind), **text(kind)).fingerprint for kind in kinds]
    assert "HF_HUB_OFFLINE is set" in missing and "`hf download someone/unknown`" in missing
    assert len(hub.log) == requests


def test_a_name_that_resolves_to_nothing_fails_at_once(home, monkeypatch):
    import time

    from clipvp.sources import hub

    monkeypatch.setattr(hub, "getproxies", dict)
    for endpoint in ("http://127.0.0.1:1", "https://no-such-host.invalid"):
        start = time.monotonic()
        assert not hub._reachable(endpoint)
        assert time.monotonic() - start < 8


def test_a_host_that_does_not_answer_is_given_up_after_some_seconds(monkeypatch):
    import time

    from clipvp.sources import hub

    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(hub, "_REACH", 0.3)

    def hang(*_, **__):
        time.sleep(2)
        raise TimeoutError

    monkeypatch.setattr(hub.socket, "create_connection", hang)
    start = time.monotonic()
    assert not hub._reachable("https://example.invalid")
    assert time.monotonic() - start < 1.5


def test_behind_a_proxy_the_proxy_is_trusted(monkeypatch):
    from clipvp.sources import hub

    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert hub._reachable("http://hub.invalid")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert hub._reachable("http://hub.invalid") and not hub._reachable("http://127.0.0.1:1")


# What is not to be had


@pytest.mark.parametrize("kind", ["hf_clip", "open_clip_vit", "timm_classifier"])
@pytest.mark.parametrize(
    "repository, options, words",
    [
        ("gated", {}, ["'gated/KIND' is gated", "hf auth login"]),
        ("nobody", {}, ["no repository 'nobody/KIND'", "hf auth login"]),
        ("someone", {"revision": "nothing"}, ["'someone/KIND' has no revision 'nothing'"]),
        ("cut", {}, ["a weight file is damaged"]),
        ("empty", {}, ["model"]),  # the file of weights, by the name that its library looks for
        ("plain", {}, ["config.json"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_to_be_had_is_told_in_one_line(kind, repository, options, words, client):
    answer = client.load(hub_name(kind, f"{repository}/{kind}"), **options, **text(kind))
    message = answer["error"]
    assert all(word.replace("KIND", kind) in message for word in words), message
    assert "\n" not in message and len(message) < 500 and answer["seconds"] < 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf_clip", "open_clip_vit", "timm_classifier"])
def test_a_transfer_that_breaks_off_is_told_and_taken_up_again(kind, hub, client, tiny_model):
    name = hub_name(kind, f"broken/{kind}")
    answer = client.load(name, **text(kind))
    assert "the download broke off" in answer["error"] and "\n" not in answer["error"], answer["error"]
    hub.repos["models", f"broken/{kind}"].broken.clear()
    check_same(client.load(name, **text(kind)), load_source(tiny_model(kind), **text(kind)))


def test_a_gated_repository_opens_for_those_who_were_let_in(client, tiny_model):
    name = "timm:hf-hub:gated/timm_classifier"
    assert "is gated" in client.load(name, token="hf_of_a_stranger")["error"]
    check_same(client.load(name, token="hf_of_a_friend"), load_source(tiny_model("timm_classifier")))


def test_the_hub_of_the_tests_speaks_as_the_client_expects(hub):
    """Ranges, redirects to the storage with the file's hash and size, and error codes."""
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

    class Stay(HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    def ask(path: str, method: str = "GET", **headers):
        try:
            return build_opener(ProxyHandler({}), Stay).open(
                Request(f"{hub.url}/{path}", None, headers, method=method)
            )
        except HTTPError as error:
            return error

    whole = ask("someone/hf_clip/resolve/main/config.json").read()
    with ask("someone/hf_clip/resolve/main/config.json", Range="bytes=10-19") as part:
        assert part.status == 206 and part.read() == whole[10:20]
        assert part.headers["Content-Range"] == f"bytes 10-19/{len(whole)}"
    with ask("someone/hf_clip/resolve/older/model.safetensors", method="HEAD") as head:
        assert (
            head.status == 302
            and head.headers["X-Repo-Commit"] != hub.repos["models", "someone/hf_clip"].branches["main"]
        )
        assert (
            len(head.headers["X-Linked-Etag"].strip('"')) == 64 and int(head.headers["X-Linked-Size"]) > 1000
        )
    for path, status, code in (
        ("nobody/x/resolve/main/config.json", 401, "RepoNotFound"),
        ("someone/hf_clip/resolve/nothing/config.json", 404, "RevisionNotFound"),
        ("someone/hf_clip/resolve/main/nothing.json", 404, "EntryNotFound"),
        ("gated/hf_clip/resolve/main/config.json", 401, "GatedRepo"),
    ):
        with ask(path) as refusal:
            assert (refusal.status, refusal.headers["X-Error-Code"]) == (status, code)
