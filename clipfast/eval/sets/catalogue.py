"""The data sets that are known by name: their size, their metric, their words.

Where they lie on disk is the user's to say: ``food101:FOLDER``. Names are CLIP_benchmark's where it
has one, and its prefixes ``wds/``, ``vtab/`` and ``tfds/`` are accepted.
"""

from dataclasses import dataclass
from typing import Any

from clipfast.eval.sets.wordlists import classnames_of, folders_of, templates_of
from clipfast.names import did_you_mean

# Metrics, by the keys of the results.
ACCURACY = "acc1"
MEAN_PER_CLASS = "mean_per_class_recall"
ELEVEN_POINT_MAP = "mean_average_precision_11_points"
ROC_AUC = "roc_auc"
MEAN_OF_TOP_1_AND_5 = "mean_acc1_acc5"

_PREFIXES = ("wds/", "tfds/", "vtab/")


@dataclass(frozen=True)
class Entry:
    """A data set.

    Attributes:
        name: how it is asked for.
        title: what the paper or its authors call it.
        group: ``paper`` for the 27 of table 9, ``shift`` for the seven shifts of ImageNet, ``vtab``
            for others that CLIP_benchmark knows, ``captions`` for retrieval, ``sample`` for what
            comes with the package.
        classes: number of them; None where the layout on disk tells.
        train_size: images to train a probe with; None where there are none, or it is not known.
        test_size: images to test on; None where it is not known.
        metric: key of the result that counts.
        classnames_list: list of ``wordlists``; None where the layout on disk tells.
        templates_list: list of ``wordlists``.
        paper_templates_list: OpenAI's, where they differ from ``templates_list``.
        folders_list: names of the folders of its classes; they choose among the class names where
            there are fewer.
        note: what a reader of the numbers should know.
    """

    name: str
    title: str
    group: str
    classes: int | None = None
    train_size: int | None = None
    test_size: int | None = None
    metric: str = ACCURACY
    classnames_list: str | None = None
    templates_list: str = "imagenet1k"
    paper_templates_list: str | None = None
    folders_list: str | None = None
    note: str = ""

    @property
    def classnames(self) -> tuple[str, ...] | None:
        """In the order of the labels; None where the layout on disk tells."""
        if self.classnames_list is None:
            return None
        names = classnames_of(self.classnames_list)
        if self.folders_list is None or len(folders_of(self.folders_list)) == len(names):
            return names
        chosen = set(folders_of(self.folders_list))
        every = zip(folders_of(self.classnames_list), names, strict=True)
        return tuple(name for folder, name in every if folder in chosen)

    @property
    def templates(self) -> tuple[str, ...]:
        """Each with the slot ``{c}``."""
        return templates_of(self.templates_list)

    @property
    def folders(self) -> tuple[str, ...] | None:
        """Names of the folders of its classes, in the order of the labels, where they are known."""
        return None if self.folders_list is None else folders_of(self.folders_list)


def _paper(
    name: str, title: str, classes: int, train: int, test: int, metric: str = ACCURACY, **more: Any
) -> Entry:
    words: dict[str, Any] = {"classnames_list": name, "templates_list": name, **more}
    return Entry(name, title, "paper", classes, train, test, metric, **words)


def _shift(name: str, title: str, classes: int | None, test: int | None, **more: Any) -> Entry:
    return Entry(name, title, "shift", classes, None, test, **more)


def _vtab(name: str, title: str, classes: int | None, **more: Any) -> Entry:
    return Entry(name, title, "vtab", classes, **more)


_ENTRIES = (
    # Radford et al. 2021, table 9, in its order: classes, train size, test size, metric.
    _paper("food101", "Food-101", 101, 75_750, 25_250, note="The paper's table says 102 classes."),
    _paper("cifar10", "CIFAR-10", 10, 50_000, 10_000),
    _paper("cifar100", "CIFAR-100", 100, 50_000, 10_000),
    _paper("birdsnap", "Birdsnap", 500, 42_283, 2_149),
    _paper("sun397", "SUN397", 397, 19_850, 19_850),
    _paper("cars", "Stanford Cars", 196, 8_144, 8_041),
    _paper("fgvc_aircraft", "FGVC Aircraft", 100, 6_667, 3_333, MEAN_PER_CLASS),
    _paper(
        "voc2007", "Pascal VOC 2007 Classification", 20, 5_011, 4_952, ELEVEN_POINT_MAP,
        note="Its metric needs all labels of an image; crops of single objects have an accuracy.",
    ),
    _paper("dtd", "Describable Textures", 47, 3_760, 1_880),
    _paper("pets", "Oxford-IIIT Pets", 37, 3_680, 3_669, MEAN_PER_CLASS),
    _paper("caltech101", "Caltech-101", 102, 3_060, 6_085, MEAN_PER_CLASS),
    _paper("flowers", "Oxford Flowers 102", 102, 2_040, 6_149, MEAN_PER_CLASS),
    _paper("mnist", "MNIST", 10, 60_000, 10_000),
    _paper(
        "fer2013", "Facial Emotion Recognition 2013", 7, 32_140, 3_574,
        folders_list="fer2013", note="The paper's table says 8 classes.",
    ),
    _paper("stl10", "STL-10", 10, 1_000, 8_000),
    _paper("eurosat", "EuroSAT", 10, 10_000, 5_000, folders_list="eurosat"),
    _paper("resisc45", "RESISC45", 45, 3_150, 25_200, paper_templates_list="resisc45_paper"),
    _paper("gtsrb", "GTSRB", 43, 26_640, 12_630),
    _paper("kitti_closest_vehicle_distance", "KITTI", 4, 6_770, 711),
    _paper("country211", "Country211", 211, 43_200, 21_100),
    _paper("pcam", "PatchCamelyon", 2, 294_912, 32_768, paper_templates_list="pcam_paper"),
    _paper("ucf101", "UCF101", 101, 9_537, 1_794),
    _paper("kinetics700", "Kinetics700", 700, 494_801, 31_669, MEAN_OF_TOP_1_AND_5),
    _paper(
        "clevr_count_all", "CLEVR Counts", 8, 2_000, 500,
        paper_templates_list="clevr_count_all_paper",
    ),
    _paper("hateful_memes", "Hateful Memes", 2, 8_500, 500, ROC_AUC),
    _paper("renderedsst2", "Rendered SST2", 2, 7_792, 1_821),
    _paper("imagenet1k", "ImageNet", 1_000, 1_281_167, 50_000, folders_list="imagenet1k"),
    # Section 3.3: natural distribution shifts of ImageNet.
    _shift(
        "imagenetv2", "ImageNetV2", 1_000, 10_000,
        classnames_list="imagenet1k", folders_list="imagenet1k",
    ),
    _shift(
        "imagenet_sketch", "ImageNet-Sketch", 1_000, 50_889,
        classnames_list="imagenet1k", folders_list="imagenet1k",
    ),
    _shift(
        "imagenet-a", "ImageNet-A", 200, 7_500,
        classnames_list="imagenet1k", folders_list="imagenet-a",
    ),
    _shift(
        "imagenet-r", "ImageNet-R", 200, 30_000,
        classnames_list="imagenet1k", folders_list="imagenet-r",
    ),
    _shift("objectnet", "ObjectNet", 113, None, note="The classes that ImageNet has, too."),
    _shift("imagenet-vid", "ImageNet-Vid", 30, None),
    _shift("youtube-bb", "Youtube-BB", None, None),
    # Others of CLIP_benchmark.
    _vtab("vtab/caltech101", "Caltech-101, labels of VTAB", 102,
          classnames_list="caltech101_vtab", templates_list="caltech101"),
    _vtab("voc2007_multilabel", "Pascal VOC 2007, all objects of an image", 20,
          classnames_list="voc2007", templates_list="voc2007_multilabel",
          metric=ELEVEN_POINT_MAP),
    _vtab("imagenet-o", "ImageNet-O", 200,
          classnames_list="imagenet1k", folders_list="imagenet-o"),
    _vtab("svhn", "SVHN", 10, classnames_list="svhn", templates_list="svhn"),
    _vtab("clevr_closest_object_distance", "CLEVR distance", 6,
          classnames_list="clevr_closest_object_distance",
          templates_list="clevr_closest_object_distance"),
    _vtab("diabetic_retinopathy", "Diabetic Retinopathy", 5,
          classnames_list="diabetic_retinopathy", templates_list="diabetic_retinopathy"),
    _vtab("dmlab", "DMLab", 6, classnames_list="dmlab", templates_list="dmlab"),
    _vtab("dsprites_label_orientation", "dSprites orientation", None,
          templates_list="dsprites_label_orientation"),
    _vtab("dsprites_label_x_position", "dSprites x position", None,
          templates_list="dsprites_label_x_position"),
    _vtab("smallnorb_label_azimuth", "smallNORB azimuth", None,
          templates_list="smallnorb_label_azimuth"),
    _vtab("smallnorb_label_elevation", "smallNORB elevation", None,
          templates_list="smallnorb_label_elevation"),
    Entry("emoji", "Emoji, by the groups of Unicode", "sample", 9, test_size=1_906,
          classnames_list="emoji", templates_list="emoji", folders_list="emoji",
          note="Drawings of components, such as swatches of skin, are left out."),
    # Images with captions (appendix E.1).
    Entry("flickr30k", "Flickr30k", "captions", test_size=1_000, metric="image_retrieval_recall@1"),
    Entry("flickr8k", "Flickr8k", "captions", test_size=1_000, metric="image_retrieval_recall@1"),
    Entry("mscoco_captions", "MSCOCO", "captions", test_size=5_000,
          metric="image_retrieval_recall@1"),
)  # fmt: skip
CATALOGUE = {entry.name: entry for entry in _ENTRIES}


def plain_name(name: str) -> str:
    """The catalogue's name for one with CLIP_benchmark's prefixes; itself where it is not known.

    ``wds/vtab/cifar10`` is ``cifar10``; ``vtab/caltech101`` has labels of its own and stays.
    """
    name = name.strip().lower()
    while name not in CATALOGUE:
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            break
        name = name.removeprefix(prefix)
    return name


def find_entry(name: str) -> Entry | None:
    """The entry of a name, with or without CLIP_benchmark's prefixes; None where there is none."""
    return CATALOGUE.get(plain_name(name))


def entry_of(name: str) -> Entry:
    """The entry of a name, with or without CLIP_benchmark's prefixes.

    Raises:
        ValueError: there is none.
    """
    entry = find_entry(name)
    if entry is None:
        raise ValueError(
            f"there is no data set {name!r} in the catalogue.{did_you_mean(name, CATALOGUE)} "
            f"Known: {', '.join(CATALOGUE)}"
        )
    return entry


def list_sets(group: str | None = None) -> list[str]:
    """Names of all data sets of the catalogue, or of one group of it.

    Args:
        group: ``paper``, ``shift``, ``vtab``, ``captions`` or ``sample``.
    """
    return [entry.name for entry in _ENTRIES if group in (None, entry.group)]
