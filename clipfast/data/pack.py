"""Pack images and captions into webdataset shards with their indexes.

    python -m clipfast.data.pack photos/captions.csv --output shards --max-side 512
    python -m clipfast.data.pack photos --output shards        # a.jpg beside a.txt, all folders

The same input, options and seed give the same bytes: names are counted, times are zero, and the
order depends on the seed alone, not on the number of workers.
"""

import contextlib
import os
import random
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps
from tqdm import tqdm

from clipfast.data.check import Limits, check_caption, check_images, open_image
from clipfast.data.index import clean_field, make_executor
from clipfast.data.packlist import Item, list_items
from clipfast.data.shards import Entry, index_path, write_index
from clipfast.data.tarwalk import BLOCK, tar_header

REPORT_NAME = "pack_report.tsv"
DEFAULT_QUALITY = 95
_EXTENSION = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
# Images a task; small, because each result travels back whole.
_CHUNK = 16
# tar programs write whole records of 20 blocks.
_RECORD = 20 * BLOCK


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Attributes:
        max_side: images with a longer side are resized (Lanczos), keeping the aspect; None: never.
        quality: encode every image anew as JPEG of this quality; None keeps the bytes of images
            that fit as they are, and encodes the others at 95.
    """

    max_side: int | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side < 8:
            raise ValueError(f"max_side must be at least 8 pixels, got {self.max_side}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be from 1 to 100, got {self.quality}")


@dataclass
class PackSummary:
    """What a packing run did: totals, wall time in seconds, path of the report."""

    shards: int = 0
    samples: int = 0
    rejected: int = 0
    image_bytes: int = 0
    seconds: float = 0.0
    report: str = ""


def _transparent(image: Image.Image) -> bool:
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB as a viewer would: transparency on white, 16 bits to 8.

    Raises:
        ValueError: the mode has no defined range (32-bit integers beyond 16 bits, floats).
    """
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 instead of scaling it.
        grey = np.asarray(image)
        if grey.size and (grey.min() < 0 or grey.max() > 65535):
            raise ValueError(f"image of mode {image.mode} exceeds 16 bits")
        return Image.fromarray((grey.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("image of mode F (floats) has no defined range")
    if _transparent(image):
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def encode_image(data: bytes, encoding: Encoding, limits: Limits) -> tuple[bytes, str]:
    """Bring an image into the form that is stored.

    JPEG, PNG and WebP that need no change keep their bytes. Encoding anew applies the EXIF
    orientation, lays transparency on white and converts CMYK.

    Args:
        data: any image that Pillow reads.
        encoding: size and quality wanted.
        limits: sizes to refuse.

    Returns:
        The bytes to store and their extension.

    Raises:
        ValueError: with the reason, ready for a report.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Another library in the process may have switched it on.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            with open_image(data, limits, None) as image:
                return _encode(data, image, encoding)
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith("image") else f"image: {text}") from None
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            raise ValueError(f"image is broken: {type(error).__name__}: {text}") from None


def _encode(data: bytes, image: Image.Image, encoding: Encoding) -> tuple[bytes, str]:
    kind = image.format or ""
    resize = encoding.max_side is not None and max(image.size) > encoding.max_side
    if kind in _EXTENSION and not resize and encoding.quality is None:
        return data, _EXTENSION[kind]
    if resize:
        # Lets libjpeg decode at 1/2, 1/4 or 1/8; twice the target keeps Lanczos in charge.
        image.draft(None, (2 * encoding.max_side, 2 * encoding.max_side))
    rgb = to_rgb(ImageOps.exif_transpose(image))
    if resize:
        rgb.thumbnail(
            (encoding.max_side, encoding.max_side), Image.Resampling.LANCZOS, reducing_gap=None
        )
    buffer = BytesIO()
    rgb.save(buffer, "JPEG", quality=encoding.quality or DEFAULT_QUALITY, optimize=True)
    return buffer.getvalue(), "jpg"


@dataclass(frozen=True)
class _Packed:
    """One item after the work on it: bytes to store, or the reason why there are none."""

    image: bytes = b""
    extension: str = ""
    caption: bytes = b""
    reason: str = ""


def _pack_chunk(
    items: Sequence[Item], encoding: Encoding, limits: Limits, dali: bool
) -> list[_Packed]:
    packed = [_pack_item(item, encoding, limits) for item in items]
    good = [i for i, one in enumerate(packed) if not one.reason]
    reasons = check_images([packed[i].image for i in good], limits, dali)
    for i, reason in zip(good, reasons, strict=True):
        if reason:
            packed[i] = _Packed(reason=reason)
    return packed


def _pack_item(item: Item, encoding: Encoding, limits: Limits) -> _Packed:
    try:
        caption = item.caption
        if caption is None:
            caption = Path(item.caption_file).read_bytes()
        reason = check_caption(caption)
        if reason:
            return _Packed(reason=reason)
        text = caption.decode("utf-8").replace("\ufeff", "").strip()
        image, extension = encode_image(Path(item.image).read_bytes(), encoding, limits)
    except OSError as error:
        return _Packed(reason=f"file is unreadable: {error.strerror or error}")
    except ValueError as error:
        return _Packed(reason=str(error))
    return _Packed(image, extension, text.encode())


class ShardWriter:
    """Writes samples into ``NNNNN.tar``; each shard appears whole, with its index, or not at all.

    Args:
        folder: where the shards go.
        shard_size: samples a shard.
    """

    def __init__(self, folder: str, shard_size: int) -> None:
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}")
        self.folder, self.shard_size = folder, shard_size
        self.shards = self.samples = 0
        self._file: BinaryIO | None = None
        self._entries: list[Entry] = []

    def _path(self) -> str:
        return os.path.join(self.folder, f"{self.shards:05d}.tar")

    def add(self, image: bytes, extension: str, caption: bytes) -> None:
        """Append one sample."""
        if self._file is None:
            self._file = open(self._path() + ".partial", "wb")  # noqa: SIM115
        key = f"{self.samples:09d}"
        image_offset = self._member(f"{key}.{extension}", image)
        caption_offset = self._member(f"{key}.txt", caption)
        self._entries.append(
            Entry(key, extension, image_offset, len(image), caption_offset, len(caption))
        )
        self.samples += 1
        if len(self._entries) == self.shard_size:
            self.finish()

    def _member(self, name: str, data: bytes) -> int:
        self._file.write(tar_header(name, len(data)))
        offset = self._file.tell()
        self._file.write(data + bytes(-len(data) % BLOCK))
        return offset

    def finish(self) -> None:
        """Close the current shard, if any, and put it in place."""
        if self._file is None:
            return
        end = self._file.tell() + 2 * BLOCK
        self._file.write(bytes(2 * BLOCK + -end % _RECORD))
        self._file.close()
        self._file = None
        # A crash between the steps leaves a shard without index, which still reads; an old index
        # beside a new tar would not.
        with contextlib.suppress(FileNotFoundError):
            os.remove(index_path(self._path()))
        os.replace(self._path() + ".partial", self._path())
        write_index(self._path(), self._entries)
        self._entries = []
        self.shards += 1

    def abort(self) -> None:
        """Drop an unfinished shard."""
        if self._file is not None:
            self._file.close()
            self._file = None
            os.remove(self._path() + ".partial")


def _results(
    items: Sequence[Item], encoding: Encoding, limits: Limits, workers: int | None, dali: bool
) -> Iterator[tuple[Item, _Packed]]:
    """Pack items on all workers and yield them in order, with a bounded number in flight."""
    pool, workers = make_executor(workers)
    chunks = (items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK))
    queue: deque = deque()
    with pool:
        try:
            while True:
                for chunk in islice(chunks, 4 * workers - len(queue)):
                    task = pool.submit(_pack_chunk, chunk, encoding, limits, dali)
                    queue.append((chunk, task))
                if not queue:
                    return
                chunk, task = queue.popleft()
                yield from zip(chunk, task.result(), strict=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _prepare_output(output: str, force: bool) -> None:
    os.makedirs(output, exist_ok=True)
    present = sorted(name for name in os.listdir(output) if name.endswith(".tar"))
    if present and not force:
        raise FileExistsError(
            f"{output!r} already holds {len(present)} shards ({present[0]}, ...); give another "
            "--output, or --force to replace them"
        )


def _remove_leftovers(output: str, shards: int) -> None:
    """Delete shards of an earlier run beyond the new last one, which would mix two data sets."""
    for name in os.listdir(output):
        stem, extension = os.path.splitext(name)
        numbered = stem.isdigit() and len(stem) >= 5
        if extension in (".tar", ".idx") and numbered and int(stem) >= shards:
            os.remove(os.path.join(output, name))


def pack_items(
    items: Sequence[Item],
    rejected: Sequence[tuple[str, str]],
    output: str,
    encoding: Encoding | None = None,
    shard_size: int = 10_000,
    shuffle_seed: int | None = 0,
    workers: int | None = None,
    force: bool = False,
    limits: Limits | None = None,
    dali: bool = True,
    progress: bool = True,
) -> PackSummary:
    """Write shards, their indexes and a report of what was left out.

    Args:
        items: what to pack, from `list_items`.
        rejected: (source, reason) of what `list_items` left out, for the report.
        output: folder of the shards; made if missing.
        encoding: how images are stored.
        shard_size: samples a shard; only good ones count, so all shards but the last are full.
        shuffle_seed: seed of the order; None keeps the order of `items`.
        workers: processes; default all cores.
        force: replace shards in `output`.
        limits: image sizes to refuse.
        dali: decode with DALI too.
        progress: show a bar on a terminal's stderr.

    Returns:
        The totals.

    Raises:
        FileExistsError: `output` holds shards and `force` is off.
    """
    began = time.perf_counter()
    writer = ShardWriter(output, shard_size)
    _prepare_output(output, force)
    items = list(items)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(items)
    summary = PackSummary(rejected=len(rejected), report=os.path.join(output, REPORT_NAME))
    results = _results(items, encoding or Encoding(), limits or Limits(), workers, dali)
    partial = summary.report + ".partial"
    try:
        with (
            open(partial, "w", encoding="utf-8") as report,
            tqdm(total=len(items), unit="sample", disable=None if progress else True) as bar,
        ):
            report.write("source\treason\n")
            for source, reason in rejected:
                report.write(f"{clean_field(source)}\t{clean_field(reason)}\n")
            for item, one in results:
                bar.update()
                if one.reason:
                    summary.rejected += 1
                    report.write(f"{clean_field(item.source)}\t{clean_field(one.reason)}\n")
                else:
                    writer.add(one.image, one.extension, one.caption)
                    summary.image_bytes += len(one.image)
            writer.finish()
        os.replace(partial, summary.report)
    finally:
        results.close()
        writer.abort()
        if os.path.exists(partial):
            os.remove(partial)
    if force:
        _remove_leftovers(output, writer.shards)
    summary.shards, summary.samples = writer.shards, writer.samples
    summary.seconds = time.perf_counter() - began
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    import tyro

    def pack(
        source: tyro.conf.Positional[Path],
        output: Path,
        images: Path | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        max_side: int | None = None,
        quality: int | None = None,
        shard_size: int = 10_000,
        shuffle_seed: int | None = 0,
        workers: int | None = None,
        force: bool = False,
        dali: bool = True,
    ) -> int:
        """Pack images and captions into webdataset shards with their indexes.

        Args:
            source: a .csv, .tsv or .jsonl table, or a folder with a .txt beside each image.
            output: folder of the shards; made if missing.
            images: folder that the table's paths start from; default the table's own.
            image_column: column of the image path; default file, filepath, image or path.
            caption_column: column of the caption; default caption, title or text.
            max_side: resize images with a longer side, in pixels; default never.
            quality: encode every image anew as JPEG of this quality; default keeps the bytes of
                JPEG, PNG and WebP that need no resize, and encodes the others at 95.
            shard_size: samples a shard.
            shuffle_seed: seed of the order; None keeps it.
            workers: processes; default all cores.
            force: replace the shards in the output folder.
            dali: check the result with DALI's CPU decoder too.
        """
        items, rejected = list_items(
            str(source), str(images) if images else None, image_column, caption_column
        )
        summary = pack_items(
            items,
            rejected,
            str(output),
            Encoding(max_side, quality),
            shard_size,
            shuffle_seed,
            workers,
            force,
            dali=dali,
        )
        rate = summary.samples / summary.seconds
        print(
            f"shards: {summary.shards:,}, samples: {summary.samples:,}, rejected: "
            f"{summary.rejected:,}, images: {summary.image_bytes / 1e6:,.1f} MB "
            f"({summary.seconds:.1f} s, {rate:,.0f} samples/s)\nreport: {summary.report}"
        )
        if not summary.samples:
            print("error: no sample is good; the report gives the reasons", file=sys.stderr)
            return 1
        last = f"{{00000..{summary.shards - 1:05d}}}" if summary.shards > 1 else "00000"
        print(f"next: deepspeed recipes/rn50.py --data.train '{output}/{last}.tar'")
        return 0

    try:
        return tyro.cli(pack, args=argv, prog="python -m clipfast.data.pack")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
