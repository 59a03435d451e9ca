"""Which classes of the reference a class of a shift is made of."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from clipfast.eval.sets import LabelledSet
from clipfast.eval.sets.catalogue import find_entry, plain_name
from clipfast.names import did_you_mean

_FOLDER = Path(__file__).parent / "mappings"
_SHOWN = 5


@dataclass(frozen=True)
class ClassMap:
    """The classes of a shift among those of the reference.

    Attributes:
        kept: K labels of the shift that the reference has.
        members: of each, the labels of the reference that it is made of.
        shift_classes: of the shift, with those that are left out.
        reference_classes: of the reference.
        is_coarse: whether the shift's classes are its own, made of the reference's by a mapping.
    """

    kept: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]
    shift_classes: int
    reference_classes: int
    is_coarse: bool = False

    def __len__(self) -> int:
        """K."""
        return len(self.kept)

    @cached_property
    def of_shift(self) -> Tensor:
        """``[shift_classes]`` int64, the place among the kept; -1 where it is left out."""
        place = torch.full((self.shift_classes,), -1)
        place[list(self.kept)] = torch.arange(len(self))
        return place

    @cached_property
    def of_reference(self) -> Tensor:
        """``[reference_classes]`` int64, the place of the class it is part of; -1: of none."""
        place = torch.full((self.reference_classes,), -1)
        for number, members in enumerate(self.members):
            place[list(members)] = number
        return place

    def pool(self, scores: Tensor) -> Tensor:
        """The best score among the members of each kept class.

        The largest probability is that of the largest score, so scores do as well.

        Args:
            scores: ``[N, reference_classes]``.

        Returns:
            ``[N, K]``.
        """
        columns = torch.tensor([label for members in self.members for label in members])
        owner = self.of_reference[columns].expand(len(scores), -1)
        pooled = scores.new_full((len(scores), len(self)), -torch.inf)
        return pooled.scatter_reduce(1, owner, scores[:, columns], "amax")


Names = Mapping[str, Sequence[str | int]]


def align(reference: LabelledSet, shift: LabelledSet, mapping: Names | None = None) -> ClassMap:
    """Find the classes of a shift among those of the reference.

    Without a mapping they have the same names, or the same published folders. The catalogue's
    shifts of ImageNet with classes of their own have a mapping in the package.

    Args:
        reference: the set that a shift is one of.
        shift: the other set.
        mapping: from names of the shift's classes to those of the reference: class names, names of
            published folders, or labels.

    Raises:
        ValueError: a class is not found, or is part of two.
    """
    several = next((one for one in (reference, shift) if one.labels.ndim != 1), None)
    if several is not None:
        raise ValueError(
            f"{several.name}: robustness needs one class per image; these have several"
        )
    mapping = mapping or _known_mapping(reference, shift)
    if mapping is not None:
        return _mapped(reference, shift, mapping)
    places = _same(reference, shift)
    return ClassMap(
        tuple(range(len(places))),
        tuple((place,) for place in places),
        len(shift.classnames),
        len(reference.classnames),
    )


def read_mapping(path: Path) -> dict[str, list[str | int]]:
    """A mapping of a file.

    Args:
        path: of JSON, ``{"bird": ["rooster", "hen"], "car": [817, 656]}``.

    Raises:
        ValueError: it cannot be read, or has another form.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}; look at its path") from None
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from None
    is_sound = isinstance(found, dict) and all(
        isinstance(each, list) and all(isinstance(one, str | int) for one in each)
        for each in found.values()
    )
    if not is_sound or not any(found.values()):
        raise ValueError(
            f"{str(path)!r} is no mapping: write an object from each class of the shift to a list "
            "of classes of the reference"
        )
    return found


def _known_mapping(reference: LabelledSet, shift: LabelledSet) -> Names | None:
    path = _FOLDER / f"{plain_name(shift.name)}.json"
    is_imagenet = plain_name(reference.name) == "imagenet1k"
    return read_mapping(path) if is_imagenet and path.is_file() else None


def _mapped(reference: LabelledSet, shift: LabelledSet, mapping: Names) -> ClassMap:
    own = {_letters(name): place for place, name in enumerate(shift.classnames)}
    known = _known_names(reference)
    kept: dict[int, tuple[int, ...]] = {}
    for name, members in mapping.items():
        label = own.get(_letters(name))
        if label is not None and members:
            where = f"mapping of {shift.name}, class {name!r}"
            kept[label] = tuple(_label(where, reference, known, member) for member in members)
    if not kept:
        raise ValueError(
            f"{shift.name}: none of its classes ({_shown(shift.classnames)}) is in the mapping, "
            f"which has {_shown(list(mapping))}: give it one with --mapping, or class names with "
            "which it begins"
        )
    often = Counter(label for members in kept.values() for label in members)
    twice = next((label for label, count in often.items() if count > 1), None)
    if twice is not None:
        raise ValueError(
            f"mapping of {shift.name}: {reference.classnames[twice]!r} is named twice; a class of "
            f"{reference.name} is part of one class at most"
        )
    order = sorted(kept)
    return ClassMap(
        tuple(order),
        tuple(kept[label] for label in order),
        len(shift.classnames),
        len(reference.classnames),
        is_coarse=True,
    )


def _same(reference: LabelledSet, shift: LabelledSet) -> list[int]:
    """The label in the reference of each class of a shift."""
    if shift.classnames == reference.classnames:
        return list(range(len(shift.classnames)))
    entries = find_entry(reference.name), find_entry(shift.name)
    folders = [None if entry is None else entry.folders for entry in entries]
    own = shift.classnames
    for theirs, ours in ((folders[0], folders[1]), (reference.classnames, own), (folders[0], own)):
        if theirs is None or ours is None or len(ours) != len(shift.classnames):
            continue
        if len(theirs) != len(reference.classnames):
            continue
        places = _places(theirs, ours)
        if None not in places and len(set(places)) == len(places):
            return [place for place in places if place is not None]
    pairs = zip(shift.classnames, _places(reference.classnames, shift.classnames), strict=True)
    missing = [name for name, place in pairs if place is None]
    what = (
        f"{len(missing)} of its classes ({_shown(missing)}) are" if missing else "its classes are"
    )
    raise ValueError(
        f"{shift.name}: {what} not among those of {reference.name} "
        f"({_shown(reference.classnames)}), or stand there twice. Give --mapping "
        f"{shift.name}=FILE, JSON from each of its classes to classes of {reference.name}"
    )


def _places(known: Sequence[str], names: Sequence[str]) -> list[int | None]:
    plain = [_letters(name) for name in known]
    often = Counter(plain)
    place_of = {name: i for i, name in enumerate(plain) if often[name] == 1}
    return [place_of.get(_letters(name)) for name in names]


def _known_names(reference: LabelledSet) -> dict[str, int]:
    """Labels by class names that stand once, and by names of published folders."""
    entry = find_entry(reference.name)
    folders = None if entry is None else entry.folders
    named: dict[str, int] = {}
    for names in (reference.classnames, folders or ()):
        if len(names) == len(reference.classnames):
            often = Counter(map(_letters, names))
            named.update((_letters(n), i) for i, n in enumerate(names) if often[_letters(n)] == 1)
    return named


def _label(where: str, reference: LabelledSet, known: dict[str, int], member: str | int) -> int:
    if isinstance(member, int) and not isinstance(member, bool):
        if 0 <= member < len(reference.classnames):
            return member
        raise ValueError(
            f"{where}: label {member} is outside 0 to {len(reference.classnames) - 1} of "
            f"{reference.name}"
        )
    place = known.get(_letters(str(member)))
    if place is None:
        hint = did_you_mean(str(member), reference.classnames)
        raise ValueError(
            f"{where}: {reference.name} has no class {member!r}, or several of this name.{hint} "
            "Name it by its label"
        )
    return place


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _shown(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
