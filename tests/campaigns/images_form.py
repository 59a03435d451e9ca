"""What an image of the campaign is, and the picture that all of them show."""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Made:
    """An image file, and what must become of it.

    Attributes:
        kind: its line in the table.
        name: what is odd in it.
        data: the file.
        refused: a regular expression for the reason, where it must be refused; '' where it must be
            read.
        truth: ``[H, W, 3]`` float, where Pillow is not the judge: its own reading is wrong there.
        either: refused or read as Pillow reads it, both are right.
    """

    kind: str
    name: str
    data: bytes
    refused: str = ""
    truth: np.ndarray | None = None
    either: bool = False


def colours(size: tuple[int, int] = (56, 40), levels: int = 256) -> np.ndarray:
    """A smooth picture without symmetry, ``[H, W, 3]`` of integers below ``levels``.

    Args:
        size: width and height.
        levels: number of steps.
    """
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    wave = 0.5 + 0.4 * np.sin(5 * x) * np.cos(4 * y)
    planes = np.stack([0.1 + 0.8 * x, 0.9 - 0.7 * y * x, wave], -1)
    return np.minimum((planes * levels).astype(np.int64), levels - 1)


def picture(mode: str = "RGB", size: tuple[int, int] = (56, 40)) -> Image.Image:
    """The same as an image of Pillow; alpha hides another colour in its upper half."""
    rgb = Image.fromarray(colours(size).astype(np.uint8))
    if mode not in ("RGBA", "LA", "PA", "La"):
        return rgb.convert(mode)
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    alpha = np.where(y < size[1] // 3, 0, 90 + x + y).clip(0, 255)
    rgb.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return rgb if mode == "RGBA" else rgb.convert(mode)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    """An image as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tiff_orientation(value: int, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """The body of an EXIF block that holds an orientation among other entries.

    Args:
        value: 1 to 8, or what nobody defined.
        order: "<" or ">", the byte order.
        kind: TIFF's number of the entry's type: 1 byte, 3 short, 4 long.
        count: of values.
    """
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    packed = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I"}[kind], value)
    entries = [
        struct.pack(order + "HHI", 0x0100, 4, 1) + struct.pack(order + "I", 9999),
        struct.pack(order + "HHI", 0x0112, kind, count) + packed,
        struct.pack(order + "HHI", 0x0128, 3, 1) + struct.pack(order + "H2x", 2),
    ]
    return head + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)


def xmp_orientation(value: int, element: bool = False) -> bytes:
    """An XMP packet that turns the picture."""
    said = (
        f"<rdf:Description><tiff:Orientation>{value}</tiff:Orientation></rdf:Description>"
        if element
        else f'<rdf:Description tiff:Orientation="{value}"/>'
    )
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/">'
        f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{said}</rdf:RDF>'
        "</x:xmpmeta>"
    ).encode()
