"""Data sets in webdataset shards: CLIP_benchmark's layout, and plain ones.

CLIP_benchmark keeps ``SPLIT/0.tar``, ``SPLIT/1.tar``, ... with their number in
``SPLIT/nshards.txt``, and words and type in files beside the splits. A sample is an image and a
member ``.cls`` (a number), ``.npy`` (one flag per class) or ``.txt`` (a caption a line). Shards are
read as the training data are, by offsets, in any order.
"""

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipfast.data.fields import FIELDS, Fields, Member, clean_caption
from clipfast.data.heads import counts
from clipfast.data.kinds import image_extensions
from clipfast.data.patterns import expand
from clipfast.data.reader import ShardReader
from clipfast.data.reasons import Reasons
from clipfast.data.scan import runs
from clipfast.data.shardfiles import ShardFiles
from clipfast.eval.sets.found import FoundSet
from clipfast.eval.sets.kinds import CaptionedSet
from clipfast.storage.globs import has_magic
from clipfast.storage.paths import scheme_of

NUMBER_FILE = "nshards.txt"
TYPE_FILE = "dataset_type.txt"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ShardImages:
    """Gives the bytes of the i-th image of some shards.

    Attributes:
        files: the shards.
        places: ``[N, 3]`` int64: shard, offset and size in bytes.
    """

    files: ShardFiles
    places: np.ndarray

    def __call__(self, i: int) -> bytes:
        shard, offset, size = self.places[i].tolist()
        return self.files.pread(shard, offset, size)


@dataclass(frozen=True)
class Shards:
    """The shards of one split.

    Attributes:
        name: of the data set, as the path tells it.
        paths: of the shards.
        kind: ``classification``, ``multilabel`` or ``retrieval``; "" where nothing tells.
        beside: folder that may hold the words.
    """

    name: str
    paths: Sequence[str]
    kind: str = ""
    beside: Path | None = None


def find_shards(place: str, split: str) -> Shards | None:
    """The shards that a path means; None where it means none.

    Args:
        place: a folder in CLIP_benchmark's layout, a folder of tars, one of tars per split, or a
            pattern such as ``shards/{00..09}.tar``.
        split: which part.

    Raises:
        ValueError: shards are missing, or there is no such split.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return _in_folder(path, split)
    is_shard = place.endswith(".tar")
    # A table may have brackets in its name.
    if path.exists() and not is_shard:
        return None
    is_pattern = has_magic(place) or "{" in place or scheme_of(place) != "file"
    if is_shard or is_pattern or place.partition("/")[0] == "sample":
        name = Path(place).parent.name if path.name != place else path.stem
        return Shards(name or "shards", _expand(place))
    return None


def read_labelled(shards: Shards) -> FoundSet:
    """Images and labels of shards; samples without both are counted in the log.

    Raises:
        ValueError: no sample is complete, a label is no number, or a shard cannot be read.
    """
    if shards.kind == "retrieval":
        raise ValueError(
            f"data set {shards.name!r} holds captions ({TYPE_FILE} says retrieval): measure "
            "retrieval on it"
        )
    several = shards.kind == "multilabel"
    read = _flags if several else _label
    images, labels = read_samples(shards, "npy" if several else "cls", read)
    if several and len({len(each) for each in labels}) > 1:
        raise ValueError(
            f"data set {shards.name!r}: its .npy have different numbers of classes; write one flag "
            "per class"
        )
    kind = np.bool_ if several else np.int64
    return FoundSet(shards.name, np.array(labels, kind), images, beside=shards.beside)


def read_captioned(
    shards: Shards, name: str, split: str, fields: Fields | None = None
) -> CaptionedSet:
    """Images and captions of shards; samples without both are counted in the log.

    Args:
        shards: to read.
        name: of the data set.
        split: of it.
        fields: where captions are, read as for training, all of a sample; None: ``.txt``, a caption
            a line.

    Raises:
        ValueError: no sample is complete, a caption is not UTF-8, or a shard cannot be read.
    """
    if shards.kind in ("classification", "multilabel"):
        raise ValueError(
            f"data set {shards.name!r} holds labels ({TYPE_FILE} says {shards.kind}): measure "
            "zero-shot on it"
        )
    images: Callable[[int], bytes]
    if fields is None:
        images, captions = read_samples(shards, "txt", _captions)
    else:
        images, captions = _as_trained(shards, fields)
    each_has = [len(each) for each in captions]
    return CaptionedSet(
        name=name,
        split=split,
        encoded=images,
        captions=[caption for each in captions for caption in each],
        image_of=np.repeat(np.arange(len(each_has), dtype=np.int64), each_has),
    )


def _as_trained(
    shards: Shards, fields: Fields
) -> tuple[Callable[[int], bytes], list[Sequence[str]]]:
    """Images and all captions, as a training run of these fields reads them."""
    reader = ShardReader(shards.paths, fields=fields)
    try:
        said = {
            (shard, row): [text for text in reader.captions(shard, row) if text.strip()]
            for shard, held in enumerate(counts(shards.paths, fields))
            for row in range(held)
        }
    except OSError as error:
        raise ValueError(f"data set {shards.name!r}: {error}") from None
    places = [place for place, texts in said.items() if texts]
    if len(places) < len(said):
        _log.warning(
            "%s: %d samples are left out: no caption says anything",
            shards.name,
            len(said) - len(places),
        )
    return lambda i: reader.image(*places[i]), [said[place] for place in places]


def _in_folder(path: Path, split: str) -> Shards | None:
    number = path / split / NUMBER_FILE
    if number.is_file():
        pattern = f"{path / split}/{{0..{_number(number) - 1}}}.tar"
        return Shards(path.resolve().name, _expand(pattern), _kind(path), path)
    splits = sorted(each.parent.name for each in path.glob(f"*/{NUMBER_FILE}"))
    if splits:
        raise ValueError(f"{str(path)!r} has the splits {', '.join(splits)}; got {split!r}")
    # An archive that lies beside class folders is no shard.
    flat = not any(each.is_dir() and not each.name.startswith(".") for each in path.iterdir())
    for folder in (path / split, path) if flat else (path / split,):
        tars = sorted(folder.glob("*.tar"), key=lambda tar: (len(tar.name), tar.name))
        if tars:
            return Shards(path.resolve().name, [str(tar) for tar in tars], _kind(path), path)
    return None


def _number(path: Path) -> int:
    text = path.read_text(errors="replace").strip()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"{str(path)!r} must hold the number of shards, from 1 on; it holds {text[:20]!r}"
        )
    return int(text)


def _kind(path: Path) -> str:
    file = path / TYPE_FILE
    if not file.is_file():
        return ""
    kind = file.read_text(errors="replace").strip().lower()
    if kind not in ("classification", "multilabel", "retrieval"):
        raise ValueError(
            f"{str(file)!r} must hold classification, multilabel or retrieval; it holds "
            f"{kind[:20]!r}"
        )
    return kind


def _expand(pattern: str) -> list[str]:
    try:
        return expand(pattern)
    except OSError as error:
        raise ValueError(str(error)) from None


def read_samples(
    shards: Shards, beside: str, read: Callable[[bytes], Any]
) -> tuple[ShardImages, list[Any]]:
    """The images, and what ``read`` makes of the member that lies beside each.

    Samples without both are counted in the log.

    Args:
        shards: to read.
        beside: extension of the other member.
        read: makes a value of its bytes; raises ValueError with what is wrong.

    Raises:
        ValueError: no sample is complete, ``read`` refuses one, or a shard cannot be read.
    """
    files = ShardFiles(shards.paths)
    places: list[tuple[int, int, int]] = []
    values: list[Any] = []
    left_out = Reasons()
    count = 0
    for number, path in enumerate(shards.paths):
        for key, members in _groups(path):
            image = next((m for m in members if m[0] in _images()), None)
            other = next((m for m in members if m[0] == beside), None)
            if image is None or other is None:
                has = ", ".join("." + member[0] for member in members)
                wanted = "image" if image is None else f".{beside}"
                left_out.add(f"sample {key!r} of {path}", f"no {wanted} among {has}")
                count += 1
                continue
            data = files.pread(number, *other[1:])
            try:
                values.append(read(data))
            except ValueError as error:
                raise ValueError(
                    f"shard {path!r}, sample {key!r}: .{beside} {error}; pack it again"
                ) from None
            places.append((number, *image[1:]))
    if not places:
        raise ValueError(
            left_out.after(
                f"data set {shards.name!r}: no sample of {len(shards.paths)} shards has an image "
                f"and a .{beside} of one key, side by side"
            )
        )
    if count:
        _log.warning("%s", left_out.after(f"{shards.name}: {count} samples are left out:"))
    return ShardImages(files, np.array(places, np.int64)), values


def _groups(path: str) -> Iterator[tuple[str, list[Member]]]:
    try:
        for key, samples in runs(path):
            for members in samples:
                yield key, members
    except OSError as error:
        raise ValueError(f"cannot read shard {path!r}: {error.strerror or error}") from None


def _images() -> frozenset[str]:
    return frozenset(extension[1:] for extension in image_extensions())


def _label(data: bytes) -> int:
    text = data.decode("ascii", "replace").strip()
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f"must be the number of a class, from 0 on; it is {text[:20]!r}")
    return int(text)


def _flags(data: bytes) -> np.ndarray:
    try:
        flags = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"is no array: {error}") from None
    if flags.ndim != 1 or not np.isin(flags, (0, 1)).all():
        raise ValueError("must have one flag per class, 0 or 1")
    return flags.astype(np.bool_)


def _captions(data: bytes) -> list[str]:
    captions = [clean_caption(line) for line in FIELDS.texts(data)[0].splitlines()]
    captions = [caption for caption in captions if caption]
    if not captions:
        raise ValueError("holds no caption")
    return captions
