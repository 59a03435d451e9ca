"""Images with captions from JSON: Karpathy's splits of Flickr and COCO, and COCO's annotations."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipfast.eval.sets.captioned import Captioned, captioned_set
from clipfast.eval.sets.kinds import CaptionedSet

_log = logging.getLogger(__name__)


def read_caption_json(path: Path, name: str, split: str, root: Path | None) -> CaptionedSet:
    """Images and captions of a JSON file.

    In Karpathy's form (``dataset_flickr30k.json``) each image says its split and has its sentences.
    In COCO's form (``captions_val2014.json``) annotations name the images by their ids, the file is
    one split, and images are taken in the order of their ids.

    Args:
        path: of the file.
        name: of the data set.
        split: which images, in Karpathy's form.
        root: folder of the images; None: where the first image is found.

    Raises:
        ValueError: the file cannot be read, is of another form, has not that split, or an image is
            missing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}; look at its path") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no JSON in UTF-8: {error}; fetch it again") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images or not isinstance(images[0], dict):
        raise _other_form(path)
    try:
        if "sentences" in images[0]:
            found = list(_karpathy(path, images, split))
        elif isinstance(content.get("annotations"), list):
            found = list(_coco(path, images, content["annotations"]))
        else:
            raise _other_form(path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r}: an entry has no {error}, or of another kind; fetch it again"
        ) from None
    return captioned_set(path, name, split, root, found)


def _other_form(path: Path) -> ValueError:
    return ValueError(
        f"{str(path)!r} is of another form: expected Karpathy's ('images' with 'sentences' and "
        "'split') or COCO's ('images' and 'annotations')"
    )


def _karpathy(path: Path, images: list[Any], split: str) -> Iterator[Captioned]:
    chosen = [(i, image) for i, image in enumerate(images) if image["split"] == split]
    if not chosen:
        splits = ", ".join(sorted({image["split"] for image in images}))
        raise ValueError(f"{str(path)!r} has no image of split {split!r}; its splits are {splits}")
    for i, image in chosen:
        where = f"{str(path)!r}, image {i}"
        captions = [sentence["raw"].strip() for sentence in image["sentences"]]
        yield Captioned(where, _file(image), _some(where, captions))


def _coco(path: Path, images: list[Any], annotations: list[Any]) -> Iterator[Captioned]:
    captions_of: dict[Any, list[str]] = {image["id"]: [] for image in images}
    for i, annotation in enumerate(annotations):
        if annotation["image_id"] not in captions_of:
            raise ValueError(
                f"{str(path)!r}, annotation {i}: there is no image {annotation['image_id']!r}; "
                "fetch the file again"
            )
        captions_of[annotation["image_id"]].append(annotation["caption"].strip())
    bare = [image for image in images if not captions_of[image["id"]]]
    if bare:
        _log.warning(
            "%s: %d images without a caption are left out, such as %s",
            path,
            len(bare),
            bare[0]["file_name"],
        )
    for image in sorted(images, key=lambda image: image["id"]):
        where = f"{str(path)!r}, image {image['id']}"
        if captions_of[image["id"]]:
            yield Captioned(where, image["file_name"], _some(where, captions_of[image["id"]]))


def _file(image: dict[str, Any]) -> str:
    folder = image.get("filepath")
    return f"{folder}/{image['filename']}" if folder else image["filename"]


def _some(where: str, captions: list[str]) -> list[str]:
    filled = [caption for caption in captions if caption]
    if not filled:
        raise ValueError(f"{where}: it has no caption; write one, or leave the image out")
    return filled
