"""ABIDE from files as nilearn keeps them: images are their formula, and the prompt fills what they leave empty."""

import numpy as np
import pytest
import torch

from clipvp import PromptedClassifier, UserError, build_classifier, fit, load_task
from clipvp.config.schema import DataConfig
from clipvp.data.loaders.abide import correlation_image, reference_split
from clipvp.images import Resize

pytest.importorskip("nilearn")

HEADER = ",Unnamed: 0,SUB_ID,X,subject,SITE_ID,FILE_ID,DX_GROUP,DSM_IV_TR,AGE_AT_SCAN,SEX,qc_rater_1,qc_notes_rater_1"
COUNT = 43


def series_of(index: int) -> np.ndarray:
    """Return a scan; some regions move together, and in the first scan one does not move at all."""
    rng = np.random.default_rng(index)
    series = rng.normal(size=(30 + index % 5, 200)) + rng.normal(size=(30 + index % 5, 1)) * rng.random(200)
    if index == 0:
        series[:, 7] = 0
    return series


@pytest.fixture
def abide(tmp_path, monkeypatch):
    """The folder of the time series of 43 subjects, every third with autism, and of two without a file."""
    folder = tmp_path / "nilearn" / "ABIDE_pcp"
    series = folder / "cpac" / "filt_global"
    series.mkdir(parents=True)
    rows = [HEADER]
    for index in range(COUNT + 2):
        name = f"Site_{50000 + index:07}" if index < COUNT else "no_filename"
        group = 1 if index % 3 == 0 else 2
        rows.append(
            f'{index},{index},{50000 + index},1,1,SITE,{name},{group},1,20.5,1,fail,"odd, and quoted"'
        )
        if index < COUNT:
            header = "\t".join(f"#{region}" for region in range(1, 201))
            lines = ["\t".join(f"{value:.6f}" for value in row) for row in series_of(index)]
            (series / f"{name}_rois_cc200.1D").write_text("\n".join([header, *lines]) + "\n")
    (folder / "Phenotypic_V1_0b_preprocessed1.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setenv("NILEARN_DATA", str(folder.parent))
    monkeypatch.delenv("NILEARN_SHARED_DATA", raising=False)
    return series


def expected_image(index: int) -> np.ndarray:
    """Return the image of a scan as bytes, the plain way."""
    series = np.round(series_of(index), 6)
    moved = series - series.mean(0)
    values = {}
    for i in range(200):
        for j in range(i + 1, 200):
            length = np.sqrt((moved[:, i] ** 2).sum() * (moved[:, j] ** 2).sum())
            values[i, j] = (moved[:, i] * moved[:, j]).sum() / length if length else 0.0
    low, high = min(values.values()), max(values.values())
    image = np.zeros((200, 200))
    for place, value in values.items():
        image[place] = (value - low) / (high - low)
    return np.rint(image * 255).astype(np.uint8)


def test_the_task_is_its_files(abide, tmp_path):
    config = DataConfig(name="abide", cache_dir=str(tmp_path / "cache"))
    task = load_task(config, protocol="paper")
    assert task.class_names == ["non ASD", "ASD"] and task.val is None and task.empty == "lower_triangle"
    assert (len(task.train), len(task.test)) == (38, 5)  # one in ten, rounded up
    assert sorted([*task.train.indices, *task.test.indices]) == list(range(COUNT))
    assert task.test.class_counts(2).tolist() == [3, 2]  # of 28 and 15
    for images in (task.train, task.test):
        assert images.labels.tolist() == [int(index % 3 == 0) for index in images.indices]
    assert load_task(config, seed=5, protocol="paper").split_hash == task.split_hash

    pixels = task.tensors("train", Resize((200, 200)), progress=False).images
    assert (pixels[:, 0] == pixels[:, 1]).all() and (pixels[:, 0] == pixels[:, 2]).all()
    for row in (0, 20):
        index = task.train.indices[row]
        off = np.abs(pixels[row, 0].numpy().astype(int) - expected_image(index))
        # The file's decimals may round a byte the other way.
        assert off.max() <= 1 and (off > 0).mean() < 1e-3


def test_the_prompt_acts_where_the_images_are_empty(abide, config, tmp_path):
    settings = config(data={"name": "abide", "cache_dir": str(tmp_path / "cache")}, train={"epochs": 1})
    task = load_task(settings.data, seed=settings.seed)
    classifier = build_classifier(settings, task)
    assert classifier.prompt.num_trainable() == 3 * (32 * 32 - 16 * 15 // 2)
    fit(classifier, task, settings)
    (top, left, bottom, right), delta = classifier.prompt.box, classifier.prompt.delta.detach()
    moved = (delta != 0).any(0)[top:bottom, left:right]
    assert moved.tril().sum() > 0 and not moved.triu(1).any()
    again = PromptedClassifier.from_pretrained(f"{settings.output}/prompt")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.prompt(images), classifier.prompt(images))


def test_the_split_is_the_references():
    from sklearn.model_selection import train_test_split

    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1], [530, 505]))
    names = [f"{'SUN'[index % 3]}_{index:07}" for index in rng.permutation(len(labels))]
    train, test = reference_split(names, labels)
    assert (len(train), len(test)) == (931, 104)
    # The reference reads the subjects in the order of their names, and lets scikit-learn choose.
    read = sorted(zip(names, labels, strict=True))
    chosen = train_test_split(read, test_size=0.1, stratify=[label for _, label in read], random_state=1)
    for own, theirs in zip((train, test), chosen, strict=True):
        assert {names[place] for place in own} == {name for name, _ in theirs}


def test_a_scan_without_any_motion_is_empty():
    assert not correlation_image(np.ones((20, 200))).any()


def test_a_file_of_another_shape_is_named(abide, tmp_path):
    path = sorted(abide.iterdir())[4]
    path.write_text("#1\t#2\n0.5\t0.25\n0.5\t0.125\n")
    task = load_task(DataConfig(name="abide", cache_dir=str(tmp_path / "cache")), protocol="paper")
    with pytest.raises(UserError, match=rf"{path.name} holds \(2, 2\), not time series of 200 regions"):
        task.tensors("train", Resize((20, 20)), progress=False)
        task.tensors("test", Resize((20, 20)), progress=False)


def test_what_cannot_be_fetched_is_one_line(abide, monkeypatch):
    import nilearn.datasets

    real = nilearn.datasets.fetch_abide_pcp

    def cut_off(derivatives, **options):
        if derivatives:
            raise ConnectionError("no route\nto host")
        return real(derivatives=derivatives, **options)

    monkeypatch.setattr(nilearn.datasets, "fetch_abide_pcp", cut_off)
    assert len(load_task("abide").test) == 5  # everything is there
    next(abide.iterdir()).unlink()
    with pytest.raises(UserError, match="abide: nilearn cannot give its files: no route to host"):
        load_task("abide")
