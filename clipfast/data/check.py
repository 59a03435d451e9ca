"""Decide whether an image and a caption are fit for training, and say why when not.

One broken JPEG ends a DALI pipeline with an error that names no file, hours into a run. So each
image is decoded twice beforehand: by Pillow, which notices truncation and tells what is wrong, and
by DALI's own CPU decoder, in batches, because its verdict is the one that counts later.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from clipfast.data.fields import FIELDS, FORMATS, Fields, clean_caption

_DALI_BATCH = 64
# Decoded bytes held at a time: 64 images of 12 megapixels would take 2.3 GB.
_DALI_PIXELS = 64_000_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Which images are refused although they decode.

    Attributes:
        min_side: shortest accepted side in pixels; 1-pixel images are trackers and spacers.
        max_aspect: largest accepted long side over short side; a strip of 1 x 5,000 pixels would
            grow to 224 x 1,120,000 when its short side is resized.
        max_pixels: largest accepted width times height; guards against decompression bombs.
    """

    min_side: int = 2
    max_aspect: float = 32.0
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        if self.min_side < 1 or self.max_aspect < 1 or self.max_pixels < 1:
            raise ValueError(f"limits must be at least 1, got {self}; leave them out for defaults")


def check_caption(data: bytes, fields: Fields = FIELDS) -> str:
    """Why a caption is unfit: not UTF-8, or nothing but white space; '' when it is fit.

    Args:
        data: the member that holds the caption.
        fields: how it holds it.
    """
    try:
        text = fields.caption_text(data)
    except ValueError as error:
        return str(error)
    return "" if clean_caption(text) else "caption is empty"


def check_size(size: tuple[int, int], limits: Limits) -> str:
    """Why an image of `size` (width, height) is refused; '' when it is fit."""
    width, height = size
    short, long = sorted(size)
    what = f"image has {width} x {height} pixels"
    if short < limits.min_side:
        return f"{what}: a side is shorter than {limits.min_side}"
    if width * height > limits.max_pixels:
        return f"{what}: more than {limits.max_pixels:,} (decompression bomb?)"
    if long > limits.max_aspect * short:
        return f"{what}: sides differ more than {limits.max_aspect:g} times"
    return ""


def open_image(data: bytes, limits: Limits, formats: tuple[str, ...] | None) -> Image.Image:
    """Open and check an image's header; nothing is decoded yet.

    Raises:
        ValueError: with the reason, ready for a report.
    """
    if not data:
        raise ValueError("image has 0 bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise ValueError(f"image is a decompression bomb: {error}") from None
    except UnidentifiedImageError:
        wanted = "/".join(formats or ("image",))
        raise ValueError(f"image is no {wanted}: it is {_sniff(data)}") from None
    except Exception as error:
        raise ValueError(f"image is not readable: {_one_line(error)}") from None
    reason = check_size(image.size, limits)
    if reason:
        raise ValueError(reason)
    return image


def _sniff(data: bytes) -> str:
    """What the first bytes look like: most unreadable images are pages or other formats."""
    head = data[:64].lstrip().lower()
    for magic, kind in (
        (b"<", "like HTML or XML"),
        (b"gif8", "a GIF"),
        (b"bm", "a BMP"),
        (b"{", "like JSON"),
    ):
        if head.startswith(magic):
            return kind
    if data[4:8] == b"ftyp":
        return f"of type {data[8:12].decode('latin-1')!r}"
    return f"{data[:8]!r}..."


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def check_image(data: bytes, limits: Limits | None = None) -> tuple[str, int]:
    """Decode an image fully with Pillow.

    Args:
        data: encoded JPEG, PNG or WebP.
        limits: sizes to refuse.

    Returns:
        The reason why it is unfit ('' when fit), and its number of pixels.
    """
    # Set at each call: another library in the process may have switched it on.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_image(data, limits or Limits(), FORMATS) as image:
                image.load()
                return "", image.width * image.height
        except ValueError as error:
            text = str(error)
            return (text if text.startswith("image") else f"image is broken: {text}"), 0
        except Exception as error:
            return f"image is broken: {_one_line(error)}", 0


def _build_pipeline() -> Any:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=_DALI_BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def decode() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)

    pipeline = decode()
    pipeline.build()
    return pipeline


class DaliDecoder:
    """Decodes batches with DALI on the CPU and says which images it refuses.

    A pipeline is dead after its first error, so a failing batch is repeated image by image, each
    refused one costing a new pipeline (5 ms).
    """

    def __init__(self, build: Callable[[], Any] = _build_pipeline) -> None:
        self._build = build
        self._pipeline: Any = None

    def _run(self, images: Sequence[bytes]) -> str:
        if self._pipeline is None:
            self._pipeline = self._build()
        self._pipeline.feed_input("encoded", [np.frombuffer(data, np.uint8) for data in images])
        try:
            self._pipeline.run()
        except RuntimeError as error:
            self._pipeline = None
            return _dali_reason(str(error))
        return ""

    def check(self, images: Sequence[bytes]) -> list[str]:
        """Reason for each image that DALI refuses, '' for the others."""
        if not images:
            return []
        if not self._run(images):
            return [""] * len(images)
        if len(images) > 1:
            return [self._run([data]) for data in images]
        return [self._run(images)]


# Status numbers of nvImageCodec, the library behind DALI's decoders.
_NVIMAGECODEC = {"3": "broken stream", "4": "unsupported format"}


def _dali_reason(message: str) -> str:
    """The line of DALI's error that says what happened, without its traceback."""
    _, _, tail = message.partition("encountered:")
    lines = [line.strip() for line in (tail or message).splitlines() if line.strip()]
    text = next((line for line in lines if "ailed" in line or "ailure" in line), lines[0])
    if text.startswith("Failed to decode sample"):
        text = "it begins well and does not decode to its end"
    status = re.fullmatch(r"nvImageCodec failure: '#(\d+)'", text)
    if status and status.group(1) in _NVIMAGECODEC:
        text = _NVIMAGECODEC[status.group(1)]
    return f"image is refused by DALI: {text[:200]}"


_decoder: DaliDecoder | None = None
_without_dali = False


def check_images(
    images: Sequence[bytes], limits: Limits | None = None, dali: bool = True
) -> list[str]:
    """Decode images with Pillow, then what it accepts with DALI.

    Args:
        images: encoded bytes.
        limits: sizes to refuse.
        dali: also ask DALI; when it is not installed a warning says so once.

    Returns:
        For each image the reason why it is unfit, '' when it is fit.
    """
    global _decoder, _without_dali
    verdicts = [check_image(data, limits) for data in images]
    reasons = [reason for reason, _ in verdicts]
    if not dali or _without_dali:
        return reasons
    if _decoder is None:
        try:
            import nvidia.dali  # noqa: F401
        except ImportError:
            _without_dali = True
            _log.warning("DALI is not installed: images are checked by Pillow alone")
            return reasons
        _decoder = DaliDecoder()
    batch: list[int] = []
    pixels = 0
    for i, (reason, size) in enumerate(verdicts):
        if reason:
            continue
        if batch and (len(batch) == _DALI_BATCH or pixels + size > _DALI_PIXELS):
            _judge(_decoder, images, batch, reasons)
            batch, pixels = [], 0
        batch.append(i)
        pixels += size
    _judge(_decoder, images, batch, reasons)
    return reasons


def _judge(
    decoder: DaliDecoder, images: Sequence[bytes], batch: list[int], reasons: list[str]
) -> None:
    for i, reason in zip(batch, decoder.check([images[i] for i in batch]), strict=True):
        reasons[i] = reason
