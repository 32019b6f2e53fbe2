"""Prompts as the code of ILM-VP saves them: read as tensors, the same predictions as its formulas."""

import contextlib
import os
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from clipvp import PromptedClassifier, UserError
from clipvp.cli.main import main
from clipvp.data.catalog import TASK_TABLE
from clipvp.reference import import_prompt, read_reference

NAMES = ["ant", "bee", "cow"]


def padding_mask(canvas: int, size: int, triangle: bool = False) -> torch.Tensor:
    free = torch.ones(size, size).tril() if triangle else torch.zeros(size, size)
    left, right = (canvas - size + 1) // 2, (canvas - size) // 2
    return F.pad(free.expand(3, size, size), (left, right, left, right), value=1)


def checkpoint(path, mask, index=(4, 0, 7), **more):
    """Write what the reference writes: the prompt, the optimiser, the epoch, the score and the mapping."""
    program = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    parameter = torch.nn.Parameter(program.clone())
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    parameter.sum().backward()
    optimizer.step()
    state = {
        "visual_prompt_dict": OrderedDict(program=program, mask=mask),
        "optimizer_dict": optimizer.state_dict(),
        "epoch": 3,
        "best_acc": 0.5,
    }
    if index is not None:
        state["mapping_sequence"] = torch.tensor(index)
    torch.save({**state, **more}, path)
    return program


@pytest.mark.parametrize("size, triangle", [(16, False), (9, False), (16, True), (13, True)])
def test_a_padding_prompt_gives_the_logits_of_its_formula(size, triangle, tiny_timm, tmp_path):
    mask = padding_mask(32, size, triangle)
    program = checkpoint(tmp_path / "best.pth", mask)
    found = import_prompt(tmp_path / "best.pth", tiny_timm, NAMES)
    assert found.prompt.kind == "padding" and found.prompt.image_size == (size, size)
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    if triangle:
        images = images.triu(1)  # as the task's are
    left, right = (32 - size + 1) // 2, (32 - size) // 2
    pixels = F.pad(images, (left, right, left, right)) + torch.sigmoid(program) * mask
    source = found.source
    with torch.no_grad():
        expected = source.network((pixels - source.mean) / source.std)[:, [4, 0, 7]]
        torch.testing.assert_close(found(images), expected, rtol=1e-5, atol=1e-5)
    found.save_pretrained(tmp_path / "prompt")
    again = PromptedClassifier.from_pretrained(tmp_path / "prompt")
    with torch.no_grad():
        assert torch.equal(again(images), found(images))


@pytest.mark.parametrize("index", [(5, 1, 3), None])
def test_a_border_prompt_of_a_clip(index, tiny_model, tmp_path):
    source = tiny_model("open_clip_vit")
    mask = F.pad(torch.zeros(3, 20, 20), (6, 6, 6, 6), value=1)
    program = checkpoint(tmp_path / "best.pth", mask, index)
    found = import_prompt(tmp_path / "best.pth", source, NAMES)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network = found.source
    with torch.no_grad():
        features = network.network((images - network.mean) / network.std + program * mask)
        logits = network.scale * F.normalize(features, dim=1) @ network.text_features.T
        expected = logits[:, list(index or range(3))]
        torch.testing.assert_close(found(images), expected, rtol=1e-4, atol=1e-4)
    assert len(network.labels) == (3 if index is None else 81 * 3)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_code_is_never_run(tiny_timm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint("best.pth", padding_mask(32, 16), harm=Harmful())
    with pytest.raises(UserError, match="tensors and numbers alone"):
        read_reference("best.pth")
    assert not os.path.exists("harm")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda path: path.write_bytes(b"no checkpoint"), "tensors and numbers alone"),
        (lambda path: torch.save({"epoch": 1}, path), "holds no visual_prompt_dict"),
        (lambda path: torch.save([1], path), "holds no visual_prompt_dict"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: checkpoint(path, padding_mask(32, 16), (1, 2)), "maps 2 classes, and 3 names"),
        (lambda path: checkpoint(path, padding_mask(32, 16), (1, 1, 2)), "not different labels"),
        (lambda path: checkpoint(path, padding_mask(32, 16), 3), "not a row of whole numbers"),
        (lambda path: checkpoint(path, padding_mask(32, 16), (1.5, 2, 3)), "not a row of whole numbers"),
        (
            lambda path: checkpoint(path, padding_mask(32, 16), mapping_sequence={"a": 1}),
            "not a row of whole numbers",
        ),
        (lambda path: checkpoint(path, padding_mask(32, 16), (1, 2, 20)), "not different labels"),
        (lambda path: checkpoint(path, padding_mask(32, 16).flip(2).roll(3, 1)), "its mask is not"),
        (lambda path: checkpoint(path, padding_mask(32, 16), None), "holds no mapping_sequence"),
    ],
)
def test_what_does_not_fit_is_one_line(change, words, tiny_timm, tmp_path):
    path = tmp_path / "best.pth"
    path.touch()
    change(path)
    with pytest.raises(UserError, match=words) as error:
        import_prompt(path, tiny_timm, NAMES)
    assert "\n" not in str(error.value)


def test_the_verb_takes_the_names_of_the_tasks_that_the_page_names(tmp_path, tiny_timm, capsys):
    page = (Path(__file__).parents[1] / "docs" / "pages" / "paper.md").read_text()
    sentence = page[page.index("`--classes` is a file") :].partition(". ")[0]
    paper = {name: entry for name, entry in TASK_TABLE.items() if entry.paper}
    known = {name for name, entry in paper.items() if entry.names() is not None}
    assert set(re.findall(r"`(\w+)`", sentence)) == known and "cifar10" in known
    for name, words in (("cifar10", "padding prompt of 10 classes"), ("cifar100", "come with its data")):
        checkpoint(tmp_path / "best.pth", padding_mask(32, 16), tuple(range(10)))
        given = ["--source", tiny_timm, "--classes", name, "--output", str(tmp_path / name)]
        with contextlib.suppress(SystemExit):
            main(["import", str(tmp_path / "best.pth"), *given])
        assert words in "".join(capsys.readouterr())
    assert PromptedClassifier.from_pretrained(tmp_path / "cifar10").class_names[:2] == [
        "airplane",
        "automobile",
    ]


def test_the_verb_saves_a_prompt(tiny_timm, tmp_path, capsys):
    checkpoint(tmp_path / "best.pth", padding_mask(32, 16))
    (tmp_path / "names.txt").write_text("Ant\nBum-ble_Bee\nCow\n")
    given = [
        "--source",
        tiny_timm,
        "--classes",
        str(tmp_path / "names.txt"),
        "--output",
        str(tmp_path / "prompt"),
    ]
    main(["import", str(tmp_path / "best.pth"), *given])
    assert "padding prompt of 3 classes" in capsys.readouterr().out
    found = PromptedClassifier.from_pretrained(tmp_path / "prompt")
    assert found.class_names == ["ant", "bum ble bee", "cow"]
    with pytest.raises(SystemExit) as end:
        main(["import", str(tmp_path / "best.pth"), *given])
    assert end.value.code == 2 and "is there already" in capsys.readouterr().err
