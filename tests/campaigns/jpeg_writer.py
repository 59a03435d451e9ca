"""A JPEG encoder for whatever Pillow's does not write: any sampling, any channels, 12 bits.

Plain Huffman coding with codes of one length, quantised by 1 (or as told), so that the picture
survives; made for odd files of a few thousand pixels, not for speed.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_ZIGZAG = sorted(
    range(64),
    key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8),
)
_K = np.arange(8)
_DCT = np.cos((2 * _K[None] + 1) * _K[:, None] * np.pi / 16) / 2
_DCT[0] /= np.sqrt(2)
_DC_SYMBOLS = list(range(16))
_AC_SYMBOLS = [0x00, 0xF0, *(run << 4 | size for run in range(16) for size in range(1, 15))]
_DC_CODES = {symbol: (code, 5) for code, symbol in enumerate(_DC_SYMBOLS)}
_AC_CODES = {symbol: (code, 8) for code, symbol in enumerate(_AC_SYMBOLS)}


def segment(marker: int, body: bytes) -> bytes:
    """A marker with its length and body."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def app(number: int, body: bytes) -> bytes:
    """An APPn segment."""
    return segment(0xE0 + number, body)


JFIF = app(0, b"JFIF\0\1\1\0\0\1\0\1\0\0")


def adobe(transform: int) -> bytes:
    """Adobe's segment: 0 is RGB or CMYK, 1 YCbCr, 2 YCCK."""
    return app(14, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def exif(body: bytes) -> bytes:
    """An EXIF segment."""
    return app(1, b"Exif\0\0" + body)


def xmp(packet: bytes) -> bytes:
    """An XMP segment."""
    return app(1, b"http://ns.adobe.com/xap/1.0/\0" + packet)


def ycbcr(rgb: np.ndarray, top: float = 255) -> np.ndarray:
    """``[H, W, 3]`` of 0..top, as JPEG has it."""
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    half = (top + 1) / 2
    return np.stack([y, half + (b - y) / 1.772, half + (r - y) / 1.402], -1)


@dataclass
class Writer:
    """How a file is written.

    Attributes:
        factors: horizontal and vertical sampling of each channel.
        ids: of the channels.
        precision: bits per sample.
        frame: the marker of the frame.
        segments: what stands between SOI and the tables.
        late: what stands between the frame and the scan.
        restart: blocks of the scan between restart markers.
        interleaved: one scan of all channels, or one each.
        quantiser: of all coefficients.
        wide: tables of 16 bits.
        height: said in the frame, where it is not the true one.
        split: each Huffman table in a segment of its own.
    """

    factors: Sequence[tuple[int, int]] = ((1, 1), (1, 1), (1, 1))
    ids: Sequence[int] = (1, 2, 3)
    precision: int = 8
    frame: int = 0xC0
    segments: bytes = JFIF
    late: bytes = b""
    restart: int = 0
    interleaved: bool = True
    quantiser: int = 1
    wide: bool = False
    height: int | None = None
    split: bool = True
    _bits: list[tuple[int, int]] = field(default_factory=list)

    def write(self, planes: np.ndarray) -> bytes:
        """Encode.

        Args:
            planes: ``[H, W, C]`` samples, at full size, of 0..2^precision - 1.
        """
        height, width, channels = planes.shape
        wide, high = (max(f[i] for f in self.factors) for i in (0, 1))
        columns, rows = -(-width // (8 * wide)), -(-height // (8 * high))
        blocks = [
            self._blocks(planes[..., c], self.factors[c], (wide, high), (columns, rows))
            for c in range(channels)
        ]
        out = [b"\xff\xd8", self.segments, *self._tables()]
        said = height if self.height is None else self.height
        frame = struct.pack(">BHHB", self.precision, said, width, channels)
        for c in range(channels):
            frame += bytes([self.ids[c], self.factors[c][0] << 4 | self.factors[c][1], 0])
        out += [segment(self.frame, frame), self.late]
        if self.restart:
            out.append(segment(0xDD, struct.pack(">H", self.restart)))
        if self.interleaved:
            order = []
            for row in range(rows):
                for column in range(columns):
                    unit = []
                    for c in range(channels):
                        h, v = self.factors[c]
                        unit += [
                            (c, row * v + j, column * h + i) for j in range(v) for i in range(h)
                        ]
                    order.append(unit)
            out += self._scan(list(range(channels)), order, blocks)
        else:
            for c in range(channels):
                # A scan of one channel holds the blocks that the picture needs, and no padding.
                h, v = self.factors[c]
                across = math.ceil(math.ceil(width * h / wide) / 8)
                down = math.ceil(math.ceil(height * v / high) / 8)
                units = [[(c, row, column)] for row in range(down) for column in range(across)]
                out += self._scan([c], units, blocks)
        return b"".join(out) + b"\xff\xd9"

    def _tables(self) -> list[bytes]:
        values = [self.quantiser] * 64
        table = b"\x10" + struct.pack(">64H", *values) if self.wide else b"\0" + bytes(values)
        dc = b"\0" + bytes([0, 0, 0, 0, 16, *[0] * 11]) + bytes(_DC_SYMBOLS)
        ac = b"\x10" + bytes([0] * 7 + [len(_AC_SYMBOLS)] + [0] * 8) + bytes(_AC_SYMBOLS)
        codes = [segment(0xC4, dc), segment(0xC4, ac)] if self.split else [segment(0xC4, dc + ac)]
        return [segment(0xDB, table), *codes]

    def _blocks(
        self,
        plane: np.ndarray,
        factor: tuple[int, int],
        most: tuple[int, int],
        units: tuple[int, int],
    ) -> np.ndarray:
        """``[rows, columns, 64]`` quantised coefficients in zigzag order."""
        columns, rows = units[0] * factor[0], units[1] * factor[1]
        full = (units[1] * 8 * most[1], units[0] * 8 * most[0])
        padded = np.pad(
            plane.astype(float),
            ((0, full[0] - plane.shape[0]), (0, full[1] - plane.shape[1])),
            mode="edge",
        )
        # Sampled by the mean of the area that a sample covers, whole or not.
        small = _shrink(_shrink(padded, rows * 8, 0), columns * 8, 1)
        small -= 1 << (self.precision - 1)
        tiles = small.reshape(rows, 8, columns, 8).swapaxes(1, 2)
        coefficients = np.rint(_DCT @ tiles @ _DCT.T / self.quantiser).astype(int)
        return coefficients.reshape(rows, columns, 64)[..., _ZIGZAG]

    def _scan(
        self,
        channels: list[int],
        units: list[list[tuple[int, int, int]]],
        blocks: list[np.ndarray],
    ) -> list[bytes]:
        head = bytes([len(channels)])
        for c in channels:
            head += bytes([self.ids[c], 0])
        out = [segment(0xDA, head + b"\0\x3f\0")]
        last = dict.fromkeys(channels, 0)
        for number, unit in enumerate(units):
            if self.restart and number and number % self.restart == 0:
                out += [self._flush(), bytes([0xFF, 0xD0 + (number // self.restart - 1) % 8])]
                last = dict.fromkeys(channels, 0)
            for c, row, column in unit:
                block = blocks[c][row, column].tolist()
                self._dc(block[0] - last[c])
                last[c] = block[0]
                self._ac(block)
        return [*out, self._flush()]

    def _dc(self, difference: int) -> None:
        size = abs(difference).bit_length()
        self._bits.append(_DC_CODES[size])
        self._value(difference, size)

    def _ac(self, block: list[int]) -> None:
        run = 0
        end = max((i for i in range(1, 64) if block[i]), default=0)
        for value in block[1 : end + 1]:
            if not value:
                run += 1
                continue
            while run > 15:
                self._bits.append(_AC_CODES[0xF0])
                run -= 16
            size = abs(value).bit_length()
            self._bits.append(_AC_CODES[run << 4 | size])
            self._value(value, size)
            run = 0
        if end < 63:
            self._bits.append(_AC_CODES[0x00])

    def _value(self, value: int, size: int) -> None:
        if size:
            self._bits.append((value if value > 0 else value + (1 << size) - 1, size))

    def _flush(self) -> bytes:
        text = "".join(f"{value:0{size}b}" for value, size in self._bits)
        self._bits.clear()
        text += "1" * (-len(text) % 8)
        packed = int(text or "0", 2).to_bytes(len(text) // 8, "big")
        return packed.replace(b"\xff", b"\xff\0")


def _shrink(array: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Mean over the area of each of ``length`` samples along an axis."""
    old = array.shape[axis]
    weights = np.zeros((length, old))
    edges = np.arange(length + 1) * old / length
    for i in range(length):
        covered = np.minimum(np.arange(old) + 1, edges[i + 1]) - np.maximum(
            np.arange(old), edges[i]
        )
        weights[i] = covered.clip(0, None)
    weights /= weights.sum(1, keepdims=True)
    return weights @ array if axis == 0 else array @ weights.T
