"""Shifts as a person writes them: data sets, and corruptions of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipfast.eval.robustness.classmap import ClassMap, Names, align
from clipfast.eval.sets import LabelledSet, open_set
from clipfast.eval.sets.catalogue import plain_name
from clipfast.eval.sets.corruptions import CORRUPTIONS, GROUPS, SEVERITIES, corrupted
from clipfast.names import did_you_mean

CORRUPTED = "corrupted"
_FORM = f"{CORRUPTED}[:NAME[:SEVERITY]], such as {CORRUPTED}:fog:3 or {CORRUPTED}:all:3"


@dataclass(frozen=True, eq=False)
class Shift:
    """A set whose images come from elsewhere.

    Attributes:
        images: the set.
        classes: its classes among those of the reference.
        corruption: name and severity, where it is the reference, damaged.
    """

    images: LabelledSet
    classes: ClassMap
    corruption: tuple[str, int] | None = None


def open_shifts(
    sources: Sequence[str],
    reference: LabelledSet,
    *,
    split: str = "test",
    mappings: Mapping[str, Names] | None = None,
    seed: int = 0,
    at_most: int | None = None,
) -> list[Shift]:
    """Open shifts of a set.

    Args:
        sources: each as ``open_set`` takes it; or ``corrupted``, ``corrupted:fog``,
            ``corrupted:fog:3``, ``corrupted:blur:3`` (a group), ``corrupted:all:3``.
        reference: that they are shifts of.
        split: of those that are sets.
        mappings: of classes, by the name of the set; see ``align``.
        seed: of corruptions.
        at_most: see ``corrupted``.

    Raises:
        ValueError: a source cannot be read, its classes are not the reference's, or two have one
            name.
    """
    mappings = dict(mappings or {})
    found: list[Shift] = []
    for source in sources:
        if source == CORRUPTED or source.startswith(f"{CORRUPTED}:"):
            classes = align(reference, reference)
            for name, severity in _corruptions(source):
                images = corrupted(reference, name, severity, seed=seed, at_most=at_most)
                found.append(Shift(images, classes, (name, severity)))
        else:
            images = open_set(source, split=split)
            key = next((k for k in mappings if plain_name(k) == plain_name(images.name)), "")
            found.append(Shift(images, align(reference, images, mappings.pop(key, None))))
    names = [shift.images.name for shift in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two shifts are called {twice!r}: name one once, or rename its folder")
    if mappings:
        name = next(iter(mappings))
        raise ValueError(
            f"there is a mapping of {name!r}, and no such shift.{did_you_mean(name, names)} The "
            f"shifts are {', '.join(names[:10])}"
        )
    return found


def evenly(images: LabelledSet, limit: int | None) -> LabelledSet:
    """Some images of a set, spread evenly over it; all where there are no more.

    Args:
        images: the set.
        limit: how many; None: all.

    Raises:
        ValueError: the limit is not positive.
    """
    if limit is None:
        return images
    if limit < 1:
        raise ValueError(f"--limit must be at least 1; got {limit}")
    if limit >= len(images):
        return images
    return images.take(np.arange(limit) * len(images) // limit)


def _corruptions(source: str) -> list[tuple[str, int]]:
    _, *words = source.split(":")
    name, severity, *more = (*words, *("all", "")[len(words) :])
    if more:
        raise ValueError(f"{source!r} is no shift: write {_FORM}")
    known = {"all": CORRUPTIONS, **GROUPS, **{each: (each,) for each in CORRUPTIONS}}
    if name not in known:
        raise ValueError(
            f"{source!r}: there is no corruption {name!r}.{did_you_mean(name, known)} Known: "
            f"{', '.join(known)}"
        )
    if severity not in ("", *map(str, SEVERITIES)):
        raise ValueError(f"{source!r}: a severity is 1 to 5, not {severity!r}; write {_FORM}")
    severities = (int(severity),) if severity else SEVERITIES
    return [(each, number) for each in known[name] for number in severities]
