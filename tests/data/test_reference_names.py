"""Class names and counts beside those of the paper."""

import numpy as np
import pytest
from conftest import write_image_folder

from clipvp import load_task
from clipvp.config.schema import DataConfig
from clipvp.data.catalog import TASK_TABLE, paper_note, reference_names
from clipvp.data.loaders.raw import RawTask
from clipvp.data.sets import ImageSet
from clipvp.data.task import build_task
from clipvp.registry import UserError


def test_names_are_spelled_as_the_reference_spells_them():
    assert reference_names("mine", ["Sea-Lion", "Aquatic_Mammal"]) == ["sea lion", "aquatic mammal"]
    assert reference_names("svhn", TASK_TABLE["svhn"].names()) == list("0123456789")
    signs = reference_names("gtsrb", TASK_TABLE["gtsrb"].names())
    assert len(signs) == len(set(signs)) == 43
    places = {0: "20 speed", 6: "80 lifted", 13: "give way", 17: "no way one way", 31: "attention deer"}
    places |= {32: "lifted general", 38: "turn right down", 42: "lifted no overtaking trucks"}
    assert {place: signs[place] for place in places} == places
    own = [f"Sign-{label}" for label in range(43)]  # names that a user gives are only spelled anew
    assert reference_names("gtsrb", own, given=True)[7] == "sign 7"


def test_a_task_with_the_names_of_the_reference(tmp_path):
    folder = write_image_folder(tmp_path / "pictures", {"train": 12, "test": 6}, 3)
    own = load_task(DataConfig(name=folder), protocol="paper")
    task = load_task(DataConfig(name=folder, names="reference"), protocol="paper")
    assert task.class_names == own.class_names == ["class0", "class1", "class2"]
    given = {"class0": "A_b", "class1": "C-d", "class2": "E"}
    task = load_task(DataConfig(name=folder, names="reference", class_names=given), protocol="paper")
    assert task.class_names == ["a b", "c d", "e"]
    with pytest.raises(UserError, match="data.names: unknown value 'refrence'; did you mean 'reference'"):
        DataConfig(names="refrence")


def raw_of(num_train: int, num_test: int) -> RawTask:
    train, test = (
        ImageSet(np.zeros((count, 2, 2, 3), np.uint8), np.arange(count) % 37, "made")
        for count in (num_train, num_test)
    )
    return RawTask([f"pet {label}" for label in range(37)], train, None, test)


def test_other_counts_than_the_papers_are_one_line():
    line = paper_note("oxfordpets", 3680, 3669)
    assert (
        "2944 training and 3669 test images" in line and "3680 and 3669" in line and "--data.folder" in line
    )
    assert "\n" not in line and "oxford_pets" in line
    assert (
        paper_note("oxfordpets", 2944, 3669)
        is paper_note("mnist5k", 1, 1)
        is paper_note("mine", 1, 1)
        is None
    )
    assert "folder" not in paper_note("gtsrb", 39209, 12630)
    config = DataConfig(name="oxfordpets")
    assert any(
        "the paper has 2944" in note for note in build_task("oxfordpets", raw_of(370, 74), config).notes
    )
    assert not build_task("oxfordpets", raw_of(2944, 3669), config).notes
    # Data of one's own is compared where the paper's protocol is asked for.
    own = DataConfig(name="some/oxfordpets")
    assert not build_task("oxfordpets", raw_of(370, 74), own).notes
    assert build_task("oxfordpets", raw_of(370, 74), own, protocol="paper").notes
