"""Models from a hub, over real HTTP: same as from a folder, pinned, cached, and errors of one line."""

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hub_client import Client, scores
from hub_server import Hub
from tiny_models import CLIPS, MODELS, hf_text, open_clip_hf_text

from clipvp import UserError, load_source

CLASSES = ["cat", "Big Bird", "truck"]
# The scheme of a local folder to that of a hub repository.
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
    """A hub: every kind of model on main, older weights of four kinds on a branch, and some damaged ones."""
    with Hub() as hub:
        for kind in MODELS:
            if kind in EVERY_LIBRARY:
                older = folder_of(tiny_model(kind, seed=1))
                commits[kind] = hub.commit(f"someone/{kind}", older, branch="older")
            hub.commit(f"someone/{kind}", folder_of(tiny_model(kind)))
        for kind in ("hf_clip", "open_clip_vit", "timm_classifier"):
            complete = files(folder_of(tiny_model(kind)))
            (weights,) = [name for name in complete if name.endswith(".safetensors")]
            hub.commit(f"gated/{kind}", complete, gated=True)
            hub.commit(f"cut/{kind}", {**complete, weights: complete[weights][:-1000]})
            hub.commit(f"broken/{kind}", complete, broken={weights: 5000})
            hub.commit(f"empty/{kind}", {name: data for name, data in complete.items() if name != weights})
            hub.commit(f"plain/{kind}", {"README.md": b"# Nothing"})
        saved = files(folder_of(tiny_model("timm_classifier")))
        config = json.loads(saved["config.json"])  # as transformers saves it
        config["pretrained_cfg"]["fixed_input_size"] = True
        saved["config.json"] = json.dumps({**config, "model_args": None}).encode()
        hub.commit("someone/timm_saved", saved)
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
def test_a_repository_gives_the_same_as_its_folder_and_is_downloaded_once(kind, hub, client, tiny_model):
    source = load_source(tiny_model(kind), **text(kind))
    before = hub.requests(f"storage/models/someone/{kind}/")
    check_same(client.load(hub_name(kind), **text(kind)), source)
    requests = hub.requests(f"storage/models/someone/{kind}/")
    assert requests > before or before  # its weights came over HTTP
    check_same(client.load(hub_name(kind), **text(kind)), source)
    assert hub.requests(f"storage/models/someone/{kind}/") == requests


@pytest.mark.parametrize("kind", EVERY_LIBRARY)
@pytest.mark.parametrize("by", ["branch", "commit", "short commit"])
def test_a_revision_gives_the_weights_of_that_revision(kind, by, client, commits, tiny_model):
    older, newest = (load_source(tiny_model(kind, seed), **text(kind)) for seed in (1, 0))
    assert older.fingerprint != newest.fingerprint
    revision = {"branch": "older", "commit": commits[kind], "short commit": commits[kind][:8]}[by]
    check_same(client.load(hub_name(kind), revision=revision, **text(kind)), older)
    check_same(client.load(hub_name(kind), **text(kind)), newest)


def test_a_repository_of_timm_by_hf_gives_the_same_as_by_timm(client, tiny_model, commits):
    check_same(client.load("hf:someone/timm_classifier"), load_source(tiny_model("timm_classifier")))
    older = load_source(tiny_model("timm_classifier", seed=1))
    check_same(client.load("hf:someone/timm_classifier", revision="older"), older)
    check_same(client.load("hf:someone/timm_saved"), load_source(tiny_model("timm_classifier")))
    check_same(client.load("timm:hf-hub:someone/timm_saved"), load_source(tiny_model("timm_classifier")))


def test_open_clip_finds_a_text_tower_in_another_repository(client):
    answer = client.load("open_clip:hf-hub:someone/two", **text("hf_clip"))
    assert "error" not in answer, answer["error"]


def test_of_an_open_clip_repository_only_one_weight_file_is_downloaded(hub, client, tiny_model):
    # Such repositories often hold the same weights again for transformers, and as a pickle.
    own = files(folder_of(tiny_model("open_clip_vit")))
    more = {"model.safetensors": b"0", "open_clip_pytorch_model.bin": b"0", "onnx/model.json": b"{}"}
    hub.commit("someone/many", {**own, **more})
    check_same(
        client.load("open_clip:hf-hub:someone/many", **text("open_clip_vit")),
        load_source(tiny_model("open_clip_vit"), **text("open_clip_vit")),
    )
    assert not any(hub.requests(f"many/{file}") for file in ("onnx", "model.safetensors"))
    downloads = [
        path
        for method, path, _ in hub.log
        if method == "GET" and "someone/many/" in path and "/api/" not in path
    ]
    assert {path.rpartition("/")[2] for path in downloads} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }


def test_an_open_clip_repository_of_pickled_weights_loads(hub, client, tiny_model, tmp_path):
    import io

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


def test_a_timm_name_is_downloaded_from_its_repository(hub, client):
    import timm
    from safetensors.torch import save

    model = timm.create_model("test_vit", pretrained=False).eval()
    hub.commit("timm/test_vit.r160_in1k", {"model.safetensors": save(model.state_dict())})
    answer = client.load("timm:test_vit.r160_in1k")
    assert "error" not in answer, answer["error"]
    assert len(answer["names"]) == 1000


# The process


def settings_of_the_process() -> dict:
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import progress_bar_states
    from transformers.utils import logging as transformers_logging

    root = logging.getLogger()
    return {
        "environment": dict(os.environ),
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
        "denormal numbers": torch.tensor([1e-40]).mul(1).item() != 0,
        "root logger": (root.level, list(root.handlers), list(root.filters)),
        "transformers": (
            logging.getLogger("transformers").level,
            transformers_logging.is_progress_bar_enabled(),
        ),
        "hub": (constants.HF_HUB_OFFLINE, dict(progress_bar_states)),
        "warnings": list(warnings.filters),
    }


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("bars", [True, False])
def test_a_load_changes_no_setting_of_the_process(kind, bars, tiny_model, monkeypatch):
    from huggingface_hub.utils.tqdm import progress_bar_states
    from transformers.utils import logging as transformers_logging

    name = tiny_model(kind)
    monkeypatch.setitem(progress_bar_states, "huggingface_hub.http_get", False)  # settings of a user
    monkeypatch.setattr(transformers_logging, "_tqdm_active", bars)
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.NOTSET)
    before = settings_of_the_process()
    load_source(name, **text(kind))
    with pytest.raises(UserError):
        load_source(f"{name}/nothing", local_files_only=True, **text(kind))
    assert settings_of_the_process() == before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("disabled", [True, False])
def test_the_hubs_variable_for_progress_bars_causes_no_warning(disabled, tiny_model, monkeypatch):

    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "HF_HUB_DISABLE_PROGRESS_BARS", disabled)
    load_source(tiny_model("hf_classifier"))


# Without the network


@pytest.mark.parametrize("kind", EVERY_LIBRARY)
def test_local_files_only_makes_no_request(kind, hub, client):
    first = client.load(hub_name(kind), **text(kind))
    requests = len(hub.log)
    answer = client.load(hub_name(kind), local_files_only=True, **text(kind))
    assert answer["logits"] == pytest.approx(first["logits"], rel=1e-5)
    answer = client.load(hub_name(kind, "someone/unknown"), local_files_only=True, **text(kind))
    assert "local_files_only is set" in answer["error"]
    assert "`hf download someone/unknown`" in answer["error"]
    assert len(hub.log) == requests


@pytest.mark.parametrize("kind", EVERY_LIBRARY)
def test_a_hub_that_cannot_be_reached_is_noticed_at_once(kind, hub, client):
    first = client.load(hub_name(kind), **text(kind))
    with hub.away():
        again = client.load(hub_name(kind), **text(kind))
        pinned = client.load(hub_name(kind, "someone/unknown"), revision="older", **text(kind))
        unknown = client.load(hub_name(kind, "someone/unknown"), **text(kind))
    assert again["logits"] == pytest.approx(first["logits"], rel=1e-5)  # from the local cache
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


def test_HF_HUB_OFFLINE_is_respected(hub, client, home, tiny_model):
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


def test_a_host_that_does_not_exist_is_noticed_at_once(home, monkeypatch):
    import time

    from clipvp.sources import hub

    monkeypatch.setattr(hub, "getproxies", dict)
    for endpoint in ("http://127.0.0.1:1", "https://no-such-host.invalid"):
        start = time.monotonic()
        assert not hub.is_reachable(endpoint)
        assert time.monotonic() - start < 8


def test_a_host_that_does_not_answer_is_given_up_after_the_timeout(monkeypatch):
    import time

    from clipvp.sources import hub

    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(hub, "_TOTAL_TIMEOUT", 0.3)

    def hang(*_, **__):
        time.sleep(2)
        raise TimeoutError

    monkeypatch.setattr(hub.socket, "create_connection", hang)
    start = time.monotonic()
    assert not hub.is_reachable("https://example.invalid")
    assert time.monotonic() - start < 1.5


def test_a_host_behind_a_proxy_counts_as_reachable(monkeypatch):
    from clipvp.sources import hub

    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert hub.is_reachable("http://hub.invalid")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert hub.is_reachable("http://hub.invalid") and not hub.is_reachable("http://127.0.0.1:1")


# What cannot be loaded


@pytest.mark.parametrize("kind", ["hf_clip", "open_clip_vit", "timm_classifier"])
@pytest.mark.parametrize(
    "repository, options, words",
    [
        ("gated", {}, ["'gated/KIND' is gated", "hf auth login"]),
        ("nobody", {}, ["no repository 'nobody/KIND'", "hf auth login"]),
        ("someone", {"revision": "nothing"}, ["'someone/KIND' has no revision 'nothing'"]),
        ("cut", {}, ["a weight file is damaged"]),
        ("empty", {}, ["model"]),  # the name of the weight file, which depends on the library
        ("plain", {}, ["config.json"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_load_that_fails_gives_an_error_of_one_line(kind, repository, options, words, client):
    answer = client.load(hub_name(kind, f"{repository}/{kind}"), **options, **text(kind))
    message = answer["error"]
    assert all(word.replace("KIND", kind) in message for word in words), message
    assert "\n" not in message and len(message) < 500 and answer["seconds"] < 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf_clip", "open_clip_vit", "timm_classifier"])
def test_an_interrupted_download_is_an_error_and_continues_at_the_next_load(kind, hub, client, tiny_model):
    name = hub_name(kind, f"broken/{kind}")
    answer = client.load(name, **text(kind))
    assert "the download was interrupted" in answer["error"] and "\n" not in answer["error"], answer["error"]
    hub.repos["models", f"broken/{kind}"].broken.clear()
    check_same(client.load(name, **text(kind)), load_source(tiny_model(kind), **text(kind)))


def test_a_gated_repository_needs_the_token_of_a_user_with_access(client, tiny_model):
    name = "timm:hf-hub:gated/timm_classifier"
    assert "is gated" in client.load(name, token="hf_of_a_stranger")["error"]
    check_same(client.load(name, token="hf_of_a_friend"), load_source(tiny_model("timm_classifier")))


def test_the_hub_of_the_tests_answers_as_the_client_expects(hub):
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
