"""Which class name belongs to which label. A list in another order would be wrong silently."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

# Names that a message shows.
_SHOWN = 5


def place_names(
    where: str,
    label_names: Sequence[str],
    classnames: Sequence[str],
    folders: Sequence[str] | None,
    by_position: bool,
) -> np.ndarray:
    """The class of each label of a layout that names its labels.

    Names are compared without case and punctuation. Where all labels are found among the class
    names, or among the published names of the folders, that tells. Else position may tell.

    Args:
        where: the labels are, for the message.
        label_names: L names that the layout has, in the order of its labels.
        classnames: C names to use.
        folders: C names that the published data set gives the folders of its classes.
        by_position: whether the class names were written for this layout, in its order. Numerals
            that count up from 0 or 1 tell it, too.

    Returns:
        ``[L]`` int64, the place of each label in the class names.

    Raises:
        ValueError: names do not match, and their number differs or their order is not known.
    """
    for known in (classnames, folders):
        places = None if known is None else _places(label_names, known)
        if places is not None:
            if len(known or ()) != len(classnames):
                raise ValueError(
                    f"{where}: {len(classnames)} class names for the {len(known or ())} classes "
                    "of this data set; give one line per class, in the order of the labels"
                )
            return places
    if len(label_names) != len(classnames):
        raise ValueError(
            f"{where} has {len(label_names)} classes ({_shown(label_names)}), and there are "
            f"{len(classnames)} class names ({_shown(classnames)}); give one line per class, in "
            "the sorted order of the classes (--classnames)"
        )
    if by_position or _count_up(label_names, classnames):
        return np.arange(len(label_names))
    raise ValueError(
        f"{where}: which class is which cannot be told. They are called {_shown(label_names)}, and "
        f"the class names are {_shown(classnames)}; give a file with one name per class, in the "
        "sorted order of the classes (--classnames)"
    )


def sorted_names(names: Sequence[str]) -> list[str]:
    """In sorted order; numerals by their number, so that 10 stands behind 9."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _places(label_names: Sequence[str], known: Sequence[str]) -> np.ndarray | None:
    """Where each label stands in a list; None where one does not, or stands there twice."""
    plain = [_letters(name) for name in known]
    often = Counter(plain)
    place_of = {name: i for i, name in enumerate(plain) if often[name] == 1}
    places = [place_of.get(_letters(name)) for name in label_names]
    if None in places or len(set(places)) < len(places):
        return None
    return np.array(places, np.int64)


def _count_up(label_names: Sequence[str], classnames: Sequence[str]) -> bool:
    """Whether labels are called 0, 1, 2, ... or 1, 2, 3, ... in the order of the class names."""
    if not all(name.isdecimal() for name in label_names):
        return False
    numbers = [int(name) for name in label_names]
    first = numbers[0]
    # SVHN counts from 1, and its 10 is a zero, the first of the names.
    if first not in (0, 1) or (first == 1 and classnames[0] in ("0", "zero")):
        return False
    return numbers == list(range(first, first + len(numbers)))


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _shown(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
