"""The two kinds of set. What does not fit together is refused as a set is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from clipfast.eval.sets.prompts import check_classnames, check_templates

# Labels that a message shows.
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """N images with the classes that they are of.

    Attributes:
        name: of the data set, such as ``cifar10``; CLIP_benchmark's where it has one.
        split: of it, such as ``test``.
        classnames: C names as prompts take them, in the order of the labels.
        templates: prompts, each with the slot ``{c}`` for the name.
        labels: ``[N]`` int64 from 0 to C - 1; ``[N, C]`` bool where an image has several classes.
        encoded: gives the i-th image, as a file of any format that is decoded here.
        attributes: further columns of a table, each ``[N]``; empty elsewhere.

    Raises:
        ValueError: no image, a label that no class has, a template without a slot, or columns of
            other lengths.
    """

    name: str
    split: str
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    labels: np.ndarray
    encoded: Callable[[int], bytes]
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classnames(self.classnames, self._where)
        check_templates(self.templates, self._where)
        if len(self.labels) == 0:
            raise ValueError(f"{self._where} has no image: name another split, or look at its path")
        if self.labels.ndim == 2:
            self._check_several()
        else:
            self._check_one()
        for name, column in self.attributes.items():
            if len(column) != len(self):
                raise ValueError(
                    f"{self._where}: column {name!r} has {len(column):,} rows for {len(self):,} "
                    "images; give one row per image"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: np.ndarray) -> "LabelledSet":
        """Some of the images.

        Args:
            places: ``[n]`` of those that are kept.
        """
        return replace(
            self,
            labels=self.labels[places],
            encoded=lambda i: self.encoded(int(places[i])),
            attributes={name: column[places] for name, column in self.attributes.items()},
        )

    @property
    def _where(self) -> str:
        return f"data set {self.name!r}, split {self.split!r}"

    def _check_several(self) -> None:
        if self.labels.dtype != np.bool_ or self.labels.shape[1] != len(self.classnames):
            raise ValueError(
                f"{self._where}: labels of several classes must be bool [N, "
                f"{len(self.classnames)}], one column per class name; got {self.labels.dtype} "
                f"{list(self.labels.shape)}"
            )

    def _check_one(self) -> None:
        if self.labels.dtype != np.int64 or self.labels.ndim != 1:
            raise ValueError(
                f"{self._where}: labels must be int64 [N]; got {self.labels.dtype} "
                f"{list(self.labels.shape)}"
            )
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classnames)))
        if len(wrong):
            shown = ", ".join(
                f"{int(self.labels[i])} of image {int(i)}" for i in wrong[:_SHOWN].tolist()
            )
            raise ValueError(
                f"{self._where}: {len(wrong):,} labels are outside 0 to "
                f"{len(self.classnames) - 1}, such as {shown}; give one class name per label "
                "(--classnames), or labels from 0 on"
            )


@dataclass(frozen=True, eq=False)
class CaptionedSet:
    """N images and T captions of them.

    Attributes:
        name: of the data set.
        split: of it.
        encoded: gives the i-th image, as a file of any format that is decoded here.
        captions: T texts.
        image_of: ``[T]`` int64, the image of each caption. Every image has at least one.

    Raises:
        ValueError: no caption, an empty one, or images and captions that do not fit together.
    """

    name: str
    split: str
    encoded: Callable[[int], bytes]
    captions: Sequence[str]
    image_of: np.ndarray

    def __post_init__(self) -> None:
        where = f"data set {self.name!r}, split {self.split!r}"
        if len(self.captions) == 0:
            raise ValueError(f"{where} has no caption: name another split, or look at its path")
        empty = next((i for i, caption in enumerate(self.captions) if not caption.strip()), None)
        if empty is not None:
            raise ValueError(f"{where}: caption {empty} is empty; leave it out or write it")
        if self.image_of.dtype != np.int64 or self.image_of.shape != (len(self.captions),):
            raise ValueError(
                f"{where}: image_of must be int64 [{len(self.captions)}], one image per caption; "
                f"got {self.image_of.dtype} {list(self.image_of.shape)}"
            )
        if int(self.image_of.min()) < 0 or len(np.unique(self.image_of)) != len(self):
            raise ValueError(f"{where}: images must be numbered from 0, each with a caption")

    def __len__(self) -> int:
        return int(self.image_of.max()) + 1

    def take(self, places: np.ndarray) -> "CaptionedSet":
        """Some of the images, each with all its captions.

        Args:
            places: ``[n]`` of those that are kept, each once.
        """
        number = np.full(len(self), -1, np.int64)
        number[places] = np.arange(len(places))
        image_of = number[self.image_of]
        kept = np.flatnonzero(image_of >= 0)
        return replace(
            self,
            encoded=lambda i: self.encoded(int(places[i])),
            captions=[self.captions[i] for i in kept.tolist()],
            image_of=image_of[kept],
        )
