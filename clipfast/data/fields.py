"""Which members of a sample are its image and its caption, and what they are called.

The one place that knows: the scan, the index, the packer, the checks and the loaders ask it. A
sample is a run of adjacent members of a tar with one key, webdataset's rule.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from clipfast.arguments import WrongKindError, shown

# Pillow's names of what is read, under whatever extension. Not all that Pillow knows: EPS, for one,
# is a program that Ghostscript runs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
# Pillow's name of a format that is stored as it is -> its extension; MPO is JPEG with a second one.
STORED_AS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}

# Extensions that a message lists.
_SHOWN = 8

# A member of a sample: extension, offset and size in bytes.
Member = tuple[str, int, int]
# A member, or a line of an index; the extension comes first.
_Row = TypeVar("_Row", bound=tuple[Any, ...])


@dataclass(frozen=True)
class Entry:
    """One training sample: where its image and its caption lie in the shard, in bytes.

    Attributes:
        key: member name up to the first dot of its basename.
        extension: image extension, lower case, one of `Fields.images`.
        image_offset, image_size: byte range of the encoded image.
        caption_offset, caption_size: byte range of the member that holds the caption.
    """

    key: str
    extension: str
    image_offset: int
    image_size: int
    caption_offset: int
    caption_size: int


@dataclass(frozen=True)
class Sample:
    """A group of adjacent members with one key, as scanned; `entry` is None when incomplete."""

    key: str
    entry: Entry | None
    problem: str = ""


@dataclass(frozen=True)
class Fields:
    """The rule that makes a sample of members.

    Attributes:
        images: extensions of an image; the first member that has one counts.
        caption: extension of the member that holds the caption.
        caption_key: the caption's name in that member, a JSON object; None: the member is the
            caption, UTF-8 text.

    Raises:
        TypeError: extensions are no texts; a ``ValueError`` too.
        ValueError: an extension has a dot in front or capitals, or one is both image and caption.
    """

    images: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    caption: str = "txt"
    caption_key: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.images, str) or not all(isinstance(e, str) for e in self.images):
            raise WrongKindError(
                f"images must be extensions such as ('jpg', 'png'); got {shown(self.images)}"
            )
        if not isinstance(self.caption, str):
            raise WrongKindError(
                f"caption must be an extension such as 'txt'; got {shown(self.caption)}"
            )
        wrong = [e for e in (*self.images, self.caption) if not e or e[0] == "." or e != e.lower()]
        if wrong:
            raise ValueError(
                f"an extension is written in lower case without its dot; got {wrong[0]!r}"
            )
        if not self.images or self.caption in self.images:
            raise ValueError(
                f"expected image extensions and another one for captions, got {self.images} and "
                f"{self.caption!r}"
            )

    def split(self, name: str) -> tuple[str, str] | None:
        """Key and lower-case extension of a member; None for hidden and dotless files.

        The key is the path up to the first dot of the basename.
        """
        dot = name.find(".", name.rfind("/") + 1)
        if dot < 0 or dot == name.rfind("/") + 1:
            return None
        return name[:dot], name[dot + 1 :].lower()

    def names(self, key: str, extension: str) -> tuple[str, str]:
        """Names of the image member and of the caption member of a sample."""
        return f"{key}.{extension}", f"{key}.{self.caption}"

    def pick(self, members: Sequence[_Row]) -> tuple[_Row | None, _Row | None]:
        """The image and the caption among members whose first element is an extension."""
        image = next((m for m in members if m[0] in self.images), None)
        caption = next((m for m in members if m[0] == self.caption), None)
        return image, caption

    def sample(self, key: str, members: Sequence[Member]) -> Sample:
        """Make a sample of its members; one without image or caption says what it has."""
        image, caption = self.pick(members)
        if image and caption:
            return Sample(key, Entry(key, *image, *caption[1:]))
        has = ", ".join("." + m[0] for m in members[:_SHOWN])
        if len(members) > _SHOWN:
            has += f" and {len(members) - _SHOWN:,} more"
        if not any(m[0] in self.images or m[0] == self.caption for m in members):
            has += "; a key ends at the first dot of the name"
        if image is None:
            wanted = "/".join(self.images)
            return Sample(key, None, f"no image: expected a {wanted} member, found {has}")
        return Sample(key, None, f"no caption: expected a {self.caption} member, found {has}")

    def code(self, extension: str) -> int:
        """Position of an image extension in `images`."""
        return self.images.index(extension)

    def caption_text(self, data: bytes) -> str:
        """The caption that a member holds.

        Raises:
            ValueError: it is not UTF-8, or has no text under `caption_key`; begins "caption".
        """
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"caption is not UTF-8 (byte {error.start})") from None
        return text if self.caption_key is None else self._value(text)

    def _value(self, text: str) -> str:
        try:
            row: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"caption is in no JSON: {error}") from None
        value = row.get(self.caption_key) if isinstance(row, dict) else None
        if not isinstance(value, str):
            raise ValueError(f"caption is no text under {self.caption_key!r} of the JSON")
        return value

    def wants(self) -> str:
        """What a sample needs, for messages."""
        return f"an image ({', '.join(self.images)}) and a .{self.caption} with one key"


FIELDS = Fields()


def clean_caption(text: str) -> str:
    """A caption as it is stored: no byte order mark, no white space around it."""
    return text.replace("\ufeff", "").strip()
