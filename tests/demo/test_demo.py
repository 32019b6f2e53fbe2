"""The demo: what it shows of an image, prompts that share a source, the files of a Space, and the page in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photo
from test_model import made

from clipvp.cli.main import main
from clipvp.demo import app
from clipvp.demo.app import cards
from clipvp.demo.look import load_side_by_side, look
from clipvp.demo.space import write_space
from clipvp.model import PromptedClassifier
from clipvp.registry import UserError
from clipvp.sources.load import load_source
from clipvp.weights.full import FullWeights

FLAGS = "headless no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync"
FLAGS += " no-first-run disable-quic"


@pytest.fixture
def prompts(tiny_timm, tmp_path) -> list[str]:
    """Two saved prompts of one source, and an image beside them."""
    for name, value in (("one", 0.2), ("two", -0.3)):
        classifier = made(tiny_timm)
        classifier.prompt.delta.data.fill_(value)
        classifier.save_pretrained(tmp_path / name / "prompt")
    photo(40, 50).save(tmp_path / "a.jpg")
    return [str(tmp_path / name / "prompt") for name in ("one", "two")]


def test_a_look_is_what_predict_says_and_the_source_is_given(prompts, tmp_path):
    classifier = PromptedClassifier.from_pretrained(prompts[0])
    seen = look(classifier, tmp_path / "a.jpg", top_k=3)
    rows = classifier.predict(tmp_path / "a.jpg", top_k=3)[0]
    assert [row.label for row in seen.classes] == [row["label"] for row in rows]
    np.testing.assert_allclose([row.score for row in seen.classes], [row["score"] for row in rows], rtol=1e-5)
    images = torch.from_numpy(classifier.resize.read(tmp_path / "a.jpg")).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        pixels = classifier.prompt(images)
        shares = classifier.source(pixels).softmax(1)[0]
    expected = (pixels[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    assert len(seen.pixels) == 1 and np.array_equal(np.asarray(seen.pixels[0]), expected)
    # A class of a mapping of one label each is carried by that label, with the source's own share of it.
    for row, given in zip(seen.classes, rows, strict=True):
        assert [shown.label for shown in row.carried] == [given["source_label"]]
        place = classifier.source.labels.names.index(given["source_label"])
        assert row.carried[0].score == pytest.approx(float(shares[place]), rel=1e-5)
    assert seen.source[0].score == pytest.approx(float(shares.max()), rel=1e-5)


def test_prompts_of_one_source_share_it(prompts, tmp_path):
    one, two = load_side_by_side(prompts)
    assert one.source.network is two.source.network and not torch.equal(one.prompt.delta, two.prompt.delta)
    alone = [PromptedClassifier.from_pretrained(prompt).predict(tmp_path / "a.jpg") for prompt in prompts]
    assert [classifier.predict(tmp_path / "a.jpg") for classifier in (one, two)] == alone
    other = load_source(one.source.name, canvas=64)
    with pytest.raises(UserError, match="has another canvas"):
        PromptedClassifier.from_pretrained(prompts[1], source=other)


def test_cards_escape_what_they_show(prompts, tmp_path):
    classifier = PromptedClassifier.from_pretrained(prompts[0])
    classifier.class_names = ["<script>x</script>", *classifier.class_names[1:]]
    page = cards(["<b>name</b>"], [classifier], tmp_path / "a.jpg", top_k=3)
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;name" in page
    assert page.count('<section class="look">') == 1 and "data:image/png;base64," in page
    (tmp_path / "no.jpg").write_text("no image")
    assert "cannot be read as an image" in cards(["one"], [classifier], tmp_path / "no.jpg")


def test_the_files_of_a_space(prompts, tiny_timm, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["demo", prompts[0], "--space", str(tmp_path / "space")])
    assert "is a folder of this machine" in capsys.readouterr().err and not (tmp_path / "space").exists()
    classifier = made(tiny_timm)
    classifier.source.name = "timm:resnet18.tv_in1k"  # a Space loads it from the hub
    classifier.save_pretrained(prompts[0])
    main(["demo", prompts[0], "--space", str(tmp_path / "space")])
    written = {path.name for path in (tmp_path / "space").iterdir()}
    assert written == {"app.py", "requirements.txt", "README.md", "prompt"}
    assert "clipvp[demo]==" in (tmp_path / "space" / "requirements.txt").read_text()
    import yaml

    header = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---")[1])
    assert (header["sdk"], header["app_file"], header["title"]) == ("gradio", "app.py", "one")
    opened = []
    monkeypatch.setattr("clipvp.demo.open_demo", lambda names, **options: opened.append((names, options)))
    exec((tmp_path / "space" / "app.py").read_text(), {})
    assert opened == [(["prompt"], {"host": "0.0.0.0"})]
    assert (tmp_path / "space" / "prompt" / "model.safetensors").read_bytes() == Path(
        prompts[0], "model.safetensors"
    ).read_bytes()
    with pytest.raises(SystemExit):
        main(["demo", prompts[0], "--space", str(tmp_path / "space")])
    assert "is there already" in capsys.readouterr().err


def test_a_space_loads_what_the_command_line_names(prompts, tiny_timm, tmp_path, monkeypatch):
    classifier = made(tiny_timm)
    classifier.source.name = "timm:resnet18.tv_in1k"
    classifier.save_pretrained(prompts[0])
    asked = []
    monkeypatch.setattr(
        "clipvp.demo.space.find_artifact", lambda *given: asked.append(given) or Path(prompts[0])
    )
    config = Path(prompts[0], "config.json")
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "weights": {"kind": "lora"}}))
    hub = ["demo", "me/flowers", "--revision", "v2", "--local-files-only", "--source", "offline:lite0"]
    main([*hub, "--space", str(tmp_path / "space")])
    assert asked == [("me/flowers", "v2", True)]
    code, needs = ((tmp_path / "space" / name).read_text() for name in ("app.py", "requirements.txt"))
    assert 'open_demo(["me/flowers"], host="0.0.0.0", source="offline:lite0", revision="v2")' in code
    assert needs.startswith("clipvp[demo,lora,offline]==")
    config.write_text(json.dumps({**values, "plugins": ["mine.py"]}))
    with pytest.raises(UserError, match="needs the plug-in mine.py, which a Space does not hold"):
        write_space(["me/flowers"], tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "option, words",
    [
        (["--device", "nowhere"], "--device nowhere: "),
        (["--port", "70000"], "'70000' is not a port, 0 to 65535"),
    ],
)
def test_a_device_or_port_that_is_none_is_one_line(option, words, prompts, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["demo", *prompts, *option])
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and words in line


def test_trained_weights_stay_those_of_their_own_prompt(prompts, tmp_path):
    """Prompts of one source: the first as it is, the second with weights that were fine-tuned."""
    tuned = PromptedClassifier.from_pretrained(prompts[1])
    FullWeights().apply(tuned.source)
    with torch.no_grad():
        for parameter in tuned.source.network.parameters():
            parameter.mul_(1.5)
    tuned.save_pretrained(prompts[1])
    alone = [PromptedClassifier.from_pretrained(prompt).predict(tmp_path / "a.jpg") for prompt in prompts]
    for order in (1, -1):
        found = load_side_by_side(prompts[::order])[::order]
        assert [classifier.predict(tmp_path / "a.jpg") for classifier in found] == alone
    with pytest.raises(UserError, match="whose weights were trained is not shared"):
        PromptedClassifier.from_pretrained(prompts[0], source=tuned.source)


def test_cards_and_the_empty_page_have_their_colour_in_light_and_in_dark():
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", Path(app.__file__).with_name("page.css").read_text())
    gives = {each.strip(): text for names, text in rules if "--soft:" in text for each in names.split(",")}
    takes = {names.split()[0] for names, text in rules if "var(--soft)" in text}
    assert takes == {".look", ".empty"} and gives.keys() == takes | {f".dark {name}" for name in takes}
    assert gives[".look"] == gives[".empty"] != gives[".dark .look"] == gives[".dark .empty"]


def without(reason: str):
    """Skip, but fail where CI=true says that everything is there."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        without("the page is not opened: neither chromium nor google-chrome is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        without("the page is not opened: playwright is not installed")
    with sync_playwright() as playwright:
        switches = [f"--{flag}" for flag in FLAGS.split()]
        opened = playwright.chromium.launch(executable_path=found, args=switches)
        yield opened
        opened.close()


@pytest.mark.slow
def test_in_a_browser_an_image_is_dropped_and_both_prompts_answer(prompts, browser, tmp_path):
    served = [sys.executable, "-u", "-m", "clipvp", "demo", *prompts]
    page_log = tmp_path / "served.log"
    with open(page_log, "w") as log:
        server = subprocess.Popen(served, stdout=log, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 300
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", page_log.read_text())):
            assert server.poll() is None and time.monotonic() < until, page_log.read_text()
            time.sleep(0.2)
        for width in (1200, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.set_default_timeout(120_000)
            asked, errors = [], []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.goto(found[0])
            page.wait_for_selector("input[type=file]", state="attached")
            page.set_input_files("input[type=file]", str(tmp_path / "a.jpg"))
            page.wait_for_selector(".look")
            cards = page.query_selector_all(".look")
            assert [card.query_selector("h3").inner_text() for card in cards] == ["one", "two"]
            for card, prompt in zip(cards, prompts, strict=True):
                best = PromptedClassifier.from_pretrained(prompt).predict(tmp_path / "a.jpg", top_k=1)[0][0]
                text = card.inner_text()
                assert best["label"] in text and best["source_label"] in text
                assert f"{100 * best['score']:.1f} %" in text
            widths = page.evaluate("[...document.querySelectorAll('.look img')].map((i) => i.naturalWidth)")
            assert len(widths) == 2 and all(widths)
            tops = [card.bounding_box()["y"] for card in cards]
            assert (tops[0] == tops[1]) == (width == 1200)  # side by side, and one below the other on a phone
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            outside = [url for url in asked if not url.startswith((found[0], "data:", "blob:"))]
            assert outside == [] and errors == []
            page.close()
    finally:
        server.terminate()
        server.wait(60)
