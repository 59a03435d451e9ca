"""The embedded sample as a labelled set: the nine groups of Unicode that its drawings are in."""

import json
import logging

import numpy as np

from clipfast.eval.sets.found import FoundSet
from clipfast.eval.sets.shards import ShardImages, find_shards, read_samples
from clipfast.eval.sets.wordlists import folders_of

_NAMES = {"sample": "emoji", "sample/noto": "emoji-noto", "sample/twemoji": "emoji-twemoji"}
_log = logging.getLogger(__name__)


def is_emoji(place: str) -> bool:
    """Whether a path means the sample that comes with the package.

    Args:
        place: as it was written.
    """
    return place in _NAMES


def read_emoji(place: str) -> FoundSet:
    """Drawings and their groups.

    Swatches of skin and hair, which Unicode keeps in a tenth group of components, are left out and
    counted in the log.

    Args:
        place: ``sample/noto`` or ``sample/twemoji``, or ``sample`` for both artists.

    Raises:
        ValueError: the sample cannot be read.
    """
    shards = find_shards(place, "test")
    assert shards is not None
    images, groups = read_samples(shards, "json", _group)
    names = folders_of("emoji")
    kept = np.array([group in names for group in groups])
    if not kept.all():
        _log.warning("%s: %d drawings of components are left out", place, int((~kept).sum()))
    labels = [names.index(group) for group in groups if group in names]
    return FoundSet(
        name=_NAMES[place],
        labels=np.array(labels, np.int64),
        encoded=ShardImages(images.files, images.places[kept]),
        label_names=names,
    )


def _group(data: bytes) -> str:
    return str(json.loads(data)["category"])
