"""Other sets of labels: which groups are put into classes that somebody adds.

Source: Radford et al. 2021, section 7.1, tables 6 and 7.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipfast.eval.groups.columns import Column
from clipfast.eval.intervals import clopper_pearson
from clipfast.eval.zeroshot.answers import answers


@dataclass(frozen=True)
class Shares:
    """What some images are taken for.

    Attributes:
        images: how many.
        shares: by category, of images that are put into one of its classes.
        intervals: of each, Clopper-Pearson at 99.5%.
    """

    images: int
    shares: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The classes of a task and some more.

    Attributes:
        added: categories, each with its classes.
        every: all images.
        groups: of each column, in the order of its values.
    """

    added: dict[str, tuple[str, ...]]
    every: Shares
    groups: dict[str, list[Shares]]


def shares(
    features: Tensor,
    classifier: Tensor,
    first: int,
    added: Mapping[str, Sequence[str]],
    columns: Sequence[Column],
) -> LabelSet:
    """Count what is put into added classes.

    Args:
        features: ``[N, D]``.
        classifier: ``[C + A, D]``, the added classes behind the others, in the order of ``added``.
        first: C.
        added: categories and their classes.
        columns: whose groups are of these N images.
    """
    owner = np.repeat(np.arange(len(added)), [len(names) for names in added.values()])
    category = np.concatenate([np.full(first, -1), owner])
    nobody = torch.zeros(len(features), dtype=torch.int64)
    predicted = answers(features, classifier, nobody, scale=1.0).predicted.numpy()
    taken_for = category[predicted]

    def count(rows: np.ndarray) -> Shares:
        hits = {name: int((taken_for[rows] == i).sum()) for i, name in enumerate(added)}
        return Shares(
            len(rows),
            {name: hit / len(rows) for name, hit in hits.items()},
            {name: clopper_pearson(hit, len(rows)) for name, hit in hits.items()},
        )

    return LabelSet(
        {name: tuple(names) for name, names in added.items()},
        count(np.arange(len(features))),
        {
            column.name: [
                count(np.flatnonzero(column.group_of == number))
                for number in range(len(column.values))
            ]
            for column in columns
        },
    )


def read_added(given: Sequence[str], option: str) -> dict[str, tuple[str, ...]]:
    """Categories as a person writes them.

    Args:
        given: each ``CATEGORY=name,name,...``; or the path of a JSON file, from category to names.
        option: that they were given with, for messages.

    Raises:
        ValueError: one cannot be read, has no class, or is named twice.
    """
    added: dict[str, tuple[str, ...]] = {}
    for text in given:
        pairs = _file(text, option) if text.endswith(".json") else [_pair(text, option)]
        for category, names in pairs:
            if category in added:
                raise ValueError(f"{option}: category {category!r} is given twice")
            if not category or not names or not all(names):
                raise ValueError(
                    f"{option} {text!r}: a category needs a name and classes, none of them empty"
                )
            added[category] = names
    return added


def check_added(classnames: Sequence[str], added: Mapping[str, Sequence[str]]) -> None:
    """Refuse classes that are there already: which of two equal ones is meant cannot be told.

    Args:
        classnames: of the task.
        added: categories and their classes.

    Raises:
        ValueError: one is.
    """
    seen = {_letters(name) for name in classnames}
    for category, names in added.items():
        for name in names:
            if _letters(name) in seen:
                raise ValueError(
                    f"class {name!r} of category {category!r} is there already: an added class "
                    "needs a name of its own"
                )
            seen.add(_letters(name))


def _pair(text: str, option: str) -> tuple[str, tuple[str, ...]]:
    category, is_cut, names = text.partition("=")
    if not is_cut:
        raise ValueError(f"{option} {text!r}: write CATEGORY=name,name,... or a .json file")
    return category.strip(), tuple(name.strip() for name in names.split(","))


def _file(path: str, option: str) -> list[tuple[str, tuple[str, ...]]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{option}: cannot read {path!r}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{option}: {path!r} is no JSON: {error}") from None
    is_sound = isinstance(content, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in content.values()
    )
    if not is_sound or not content:
        raise ValueError(
            f"{option}: {path!r} must hold an object from each category to a list of class names"
        )
    return [(name, tuple(each.strip() for each in names)) for name, names in content.items()]


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
