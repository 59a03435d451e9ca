"""A labelled set as pairs to train on: each image beside its class's name in one of the prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from clipfast.data.plain import plain_size
from clipfast.data.shardwriter import ShardWriter
from clipfast.eval.sets.kinds import LabelledSet
from clipfast.eval.sets.prompts import check_templates

_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}


def captions_of(images: LabelledSet, templates: Sequence[str] = (), seed: int = 0) -> list[str]:
    """A caption for each image: its class's name, in a prompt drawn for it.

    Args:
        images: whose labels are whole numbers.
        templates: with the slot ``{c}``; empty takes those of the set.
        seed: of the draw. A caption depends on the seed and on the image's place alone.

    Raises:
        ValueError: an image may have several labels, or a prompt has no slot.
    """
    if images.labels.ndim != 1:
        raise ValueError(
            f"{images.name} has several labels for an image, so no caption is made: give captions"
        )
    prompts = list(templates or images.templates)
    check_templates(prompts, images.name)
    drawn = (random.Random(f"{seed}/{i}").choice(prompts) for i in range(len(images)))
    names = (images.classnames[label] for label in images.labels.tolist())
    return [prompt.replace("{c}", name) for prompt, name in zip(drawn, names, strict=True)]


def write_pairs(
    images: LabelledSet,
    folder: Path,
    templates: Sequence[str] = (),
    seed: int = 0,
    shard_size: int = 5000,
) -> int:
    """Write shards, with their indexes, in the order of the set.

    Args:
        images: as ``open_set`` gives them.
        folder: of the shards; made where it is not there.
        templates: see ``captions_of``.
        seed: see ``captions_of``.
        shard_size: pairs in a shard.

    Returns:
        How many shards were written.

    Raises:
        ValueError: as ``captions_of``; or an image is no plain JPEG, PNG or WebP, with its place.
        OSError: a shard cannot be written.
    """
    captions = captions_of(images, templates, seed)
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(str(folder), shard_size)
    try:
        for i, caption in enumerate(tqdm(captions, desc=images.name, unit="pair", leave=False)):
            encoded = images.encoded(i)
            kind = next((kind for magic, kind in _MAGIC.items() if encoded.startswith(magic)), None)
            if kind is None or plain_size(encoded) is None:
                raise ValueError(
                    f"image {i} of {images.name} is no JPEG, PNG or WebP that decoders agree on: "
                    "pack it with python -m clipfast.data.pack"
                )
            writer.add(encoded, kind, caption.encode())
        writer.finish()
    except BaseException:
        writer.abort()
        raise
    return writer.shards
