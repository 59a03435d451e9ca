"""Decide whether an image and a caption are fit for training, and say why when not.

One broken JPEG ends a DALI pipeline with an error that names no file, hours into a run. So each
image is decoded twice beforehand: by Pillow, which notices truncation and tells what is wrong, and
by DALI in the graph that training runs, because its verdict is the one that counts later.
"""

import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from clipfast.arguments import real_number, whole_number
from clipfast.data.blank import is_blank
from clipfast.data.captions import pick
from clipfast.data.fields import FIELDS, Fields
from clipfast.data.judge import BATCH, DaliDecoder
from clipfast.data.plain import plain_size
from clipfast.data.prepare import prepare
from clipfast.data.rgb import readable
from clipfast.data.unreadable import pixel_fault, why_broken, why_unreadable

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

    Raises:
        TypeError: a limit is no number; a ``ValueError`` too.
        ValueError: a limit is below 1.
    """

    min_side: int = 2
    max_aspect: float = 32.0
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        whole_number("min_side", self.min_side, 1)
        whole_number("max_pixels", self.max_pixels, 1)
        if real_number("max_aspect", self.max_aspect) < 1:
            raise ValueError(f"max_aspect must be at least 1; got {self.max_aspect}")


def check_caption(data: bytes, fields: Fields = FIELDS, caption: str | None = None) -> str:
    """Why a caption is unfit: not UTF-8, or nothing to read (``is_blank``); '' when it is fit.

    Args:
        data: the member that holds the caption.
        fields: how it holds it.
        caption: its extension; None: the first of `fields`.
    """
    try:
        text = pick(fields.texts(data, caption), None)
    except ValueError as error:
        return str(error)
    return why_empty(text)


def why_empty(text: str) -> str:
    """Why the text of a caption is unfit; '' when it is fit."""
    if not is_blank(text):
        return ""
    return "caption is empty" if not text.strip() else f"caption is empty: it holds {text[:20]!a}"


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


def check_header(data: bytes, limits: Limits) -> str:
    """Why an image is refused before a pixel of it is decoded; '' when its header is fit.

    Costs microseconds for the JPEG, PNG and WebP that most data consist of, and is safe in threads.

    Args:
        data: the whole file.
        limits: sizes to refuse.
    """
    if size := plain_size(data):
        return check_size(size, limits)
    try:
        open_image(data, limits, readable()).close()
    except ValueError as error:
        return str(error)
    return ""


def open_image(data: bytes, limits: Limits, formats: tuple[str, ...] | None) -> ImageFile.ImageFile:
    """Open and check an image's header; nothing is decoded yet.

    Raises:
        ValueError: with the reason, ready for a report.
    """
    if not data:
        raise ValueError("image has 0 bytes")
    if (size := plain_size(data)) and (reason := check_size(size, limits)):
        raise ValueError(reason)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        # Pillow's own limit, which it applies before it tells a size.
        most = min(limits.max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or 0))
        raise ValueError(f"image has more than {most:,} pixels (decompression bomb?)") from None
    except UnidentifiedImageError:
        raise ValueError(why_unreadable(data)) from None
    except Exception as error:
        raise ValueError(why_broken(data, error)) from None
    reason = check_size(image.size, limits)
    if reason:
        raise ValueError(reason)
    return image


@dataclass(frozen=True)
class _Verdict:
    """Of Pillow: why an image is unfit, or what the decoder will be given, and its pixels."""

    reason: str
    prepared: np.ndarray | None = None
    pixels: int = 0


def _by_pillow(data: bytes, limits: Limits) -> _Verdict:
    """Decode an image fully with Pillow."""
    # Set at each call: another library in the process may have switched it on.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_image(data, limits, readable()) as image:
                pixels = image.width * image.height
                if plain_size(data):
                    _load(image, data)
            return _Verdict("", prepare(data), pixels)
        except ValueError as error:
            return _Verdict(str(error))


def _load(image: Image.Image, data: bytes) -> None:
    try:
        image.load()
    except Exception as error:  # of many kinds
        raise ValueError(why_broken(data, error)) from None


_decoder: DaliDecoder | None = None
_without_dali = False


def _find_decoder() -> DaliDecoder | None:
    """The one of this process; None where DALI is not installed, which a warning says once."""
    global _decoder, _without_dali
    if _decoder is None and not _without_dali:
        try:
            import nvidia.dali  # noqa: F401
        except ImportError:
            _without_dali = True
            _log.warning("DALI is not installed: images are checked by Pillow alone")
        else:
            _decoder = DaliDecoder()
    return _decoder


def check_images(
    images: Sequence[bytes], limits: Limits | None = None, dali: bool = True
) -> list[str]:
    """Decode images with Pillow, then with DALI as training does.

    Args:
        images: encoded bytes.
        limits: sizes to refuse.
        dali: also ask DALI; when it is not installed a warning says so once.

    Returns:
        For each image the reason why it is unfit, '' when it is fit.
    """
    limits = limits or Limits()
    decoder = _find_decoder() if dali else None
    reasons = [""] * len(images)
    batch: dict[int, np.ndarray] = {}
    pixels = 0

    def judge() -> None:
        if decoder is None:
            for i, prepared in batch.items():
                fault = pixel_fault(prepared.tobytes())
                reasons[i] = fault and f"image is broken: {fault}"
        else:
            for i, reason in zip(batch, decoder.check(list(batch.values())), strict=True):
                fault = reason and pixel_fault(batch[i].tobytes())
                reasons[i] = f"{reason} ({fault})" if fault else reason
        batch.clear()

    for i, data in enumerate(images):
        verdict = _by_pillow(data, limits)
        reasons[i] = verdict.reason
        if verdict.prepared is None:
            continue
        if len(batch) == BATCH or pixels + verdict.pixels > _DALI_PIXELS:
            judge()
            pixels = 0
        batch[i] = verdict.prepared
        pixels += verdict.pixels
    judge()
    return reasons
