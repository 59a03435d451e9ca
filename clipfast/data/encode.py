"""Bring an image into the form that is stored in a shard."""

import warnings
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageFile

from clipfast.data.check import Limits, open_image
from clipfast.data.fields import STORED_AS
from clipfast.data.kinds import NOT_PICTURES
from clipfast.data.rgb import shown

DEFAULT_QUALITY = 95


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


def _encode(data: bytes, image: ImageFile.ImageFile, encoding: Encoding) -> tuple[bytes, str]:
    kind = image.format or ""
    if kind in NOT_PICTURES:
        raise ValueError(f"image is {kind}, which is not read as a picture")
    side = encoding.max_side or 1 << 31
    resize = max(image.size) > side
    if kind in STORED_AS and not resize and encoding.quality is None:
        return data, STORED_AS[kind]
    if resize:
        # Lets libjpeg decode at 1/2, 1/4 or 1/8; twice the target keeps Lanczos in charge.
        image.draft(None, (2 * side, 2 * side))
    rgb = shown(image, data)
    if resize:
        rgb.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=None)
    buffer = BytesIO()
    rgb.save(buffer, "JPEG", quality=encoding.quality or DEFAULT_QUALITY, optimize=True)
    return buffer.getvalue(), "jpg"
