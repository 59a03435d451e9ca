"""Which members of a sample are its image and its caption, and what they are called.

The one place that knows: the scan, the index, the packer, the checks and the loaders ask it. A
sample is a run of adjacent members of a tar with one key, webdataset's rule.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from clipfast.arguments import WrongKindError, shown

# Pillow's names of what is read, under whatever extension. Not all that Pillow knows: EPS, for one,
# is a program that Ghostscript runs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
# Pillow's name of a format that is stored as it is -> its extension; MPO is JPEG with a second one.
STORED_AS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}

# Extensions of what shards mostly hold: such an image of a sample comes before its others.
COMMON = ("jpg", "jpeg", "png", "webp")
# Of all that is read. Names under which a format goes, not all of them Pillow's.
IMAGES = (
    *COMMON, "jpe", "jfif", "jif", "jfi", "pjpeg", "pjp", "mpo", "apng", "gif", "bmp", "tif",
    "tiff", "avif", "avifs", "jp2", "j2k", "jpc", "jpf", "jpx", "j2c", "ppm", "pgm", "pbm", "pnm",
    "ico",
)  # fmt: skip

# Stands among captions where a sample needs none of its own: they come from a table.
ELSEWHERE = "elsewhere"
_USUAL = ("txt", "json:caption")

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
        key: member name without its extension.
        extension: image extension, lower case, one of `Fields.images`.
        image_offset, image_size: byte range of the encoded image.
        caption_offset, caption_size: byte range of the member that holds the caption; zeros where
            there is none.
        caption: extension of that member, one of `Fields.caption_extensions`; "" where there is
            none.
    """

    key: str
    extension: str
    image_offset: int
    image_size: int
    caption_offset: int
    caption_size: int
    caption: str = "txt"


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
        images: extensions of an image. Of several images of a sample the first of ``COMMON`` ones
            counts, or the first where there is none.
        captions: where a caption is, the first that a shard has: ``txt`` is a member that is the
            caption, UTF-8 text; ``json:caption`` is the text under that key of a member that is a
            JSON object; ``json:caption,alt`` those under several keys. What is there may be a list
            of texts. With ``elsewhere`` among them an image alone is a sample; where nothing else
            is named, the usual members are captions still, where there are some.

    Raises:
        TypeError: these are no texts; a ``ValueError`` too.
        ValueError: an extension has a dot in front or capitals, is named twice, or is both image
            and caption.
    """

    images: tuple[str, ...] = IMAGES
    captions: tuple[str, ...] = _USUAL

    def __post_init__(self) -> None:
        for name, given, such in (
            ("images", self.images, "extensions such as ('jpg', 'png')"),
            ("captions", self.captions, "such as ('txt', 'json:caption')"),
        ):
            if not isinstance(given, tuple | list) or not all(isinstance(e, str) for e in given):
                raise WrongKindError(f"{name} must be {such}; got {shown(given)}")
        if not self.images or not self.captions:
            raise ValueError(
                f"expected extensions of images and of captions, got {self.images} and "
                f"{self.captions}"
            )
        extensions = [*self.images, *self.caption_extensions]
        wrong = [e for e in extensions if not e or e[0] == "." or e != e.lower()]
        if wrong:
            raise ValueError(
                f"an extension is written in lower case without its dot; got {wrong[0]!r}"
            )
        twice = [e for e in extensions if extensions.count(e) > 1]
        if twice:
            raise ValueError(
                f"expected each extension once, of an image or of a caption; {twice[0]!r} is there "
                "twice. Several keys of one member follow each other: json:caption,alt"
            )
        for source in self._members:
            extension, colon, keys = source.partition(":")
            if (extension == "json" and not colon) or (colon and not all(keys.split(","))):
                raise ValueError(
                    f"captions {source!r} must name the key of each text: json:caption or "
                    "json:caption,alt"
                )

    @cached_property
    def elsewhere(self) -> bool:
        """Whether an image alone is a sample."""
        return ELSEWHERE in self.captions

    @cached_property
    def _members(self) -> tuple[str, ...]:
        return tuple(source for source in self.captions if source != ELSEWHERE) or _USUAL

    @cached_property
    def caption_extensions(self) -> tuple[str, ...]:
        """Extensions of the members that hold captions, in the order in which they are tried."""
        return tuple(source.partition(":")[0] for source in self._members)

    @cached_property
    def _keys(self) -> dict[str, list[str]]:
        """Keys of the JSON of each extension; none for a member that is the caption itself."""
        parts = (source.partition(":") for source in self._members)
        return {extension: keys.split(",") if keys else [] for extension, _, keys in parts}

    def split(self, name: str) -> tuple[str, str] | None:
        """Key and lower-case extension of a member; None for hidden and dotless files.

        The key is the path up to the first dot of the basename.
        """
        dot = name.find(".", name.rfind("/") + 1)
        if dot < 0 or dot == name.rfind("/") + 1:
            return None
        return name[:dot], name[dot + 1 :].lower()

    def names(self, key: str, extension: str, caption: str | None = None) -> tuple[str, str]:
        """Names of the image member and of the caption member of a sample.

        Args:
            key: of the sample.
            extension: of the image.
            caption: extension of the member that holds the caption; None: the first.
        """
        return f"{key}.{extension}", f"{key}.{caption or self.caption_extensions[0]}"

    def pick(self, members: Sequence[_Row], caption: str) -> tuple[_Row | None, _Row | None]:
        """The image and the caption among members whose first element is an extension."""
        images = [m for m in members if m[0] in self.images]
        image = next((m for m in images if m[0] in COMMON), images[0] if images else None)
        return image, next((m for m in members if m[0] == caption), None)

    def is_complete(self, members: Sequence[_Row]) -> bool:
        """Whether members are a sample, wherever its caption is."""
        picked = (self.pick(members, caption) for caption in self.caption_extensions)
        return any(image and (text or self.elsewhere) for image, text in picked)

    def caption_of(self, samples: Sequence[Sequence[_Row]]) -> str:
        """The extension of the captions of a shard: the first that a sample with an image has.

        One for a whole shard, so that a shard of texts stays one whose samples without a text are
        left out, whatever else lies beside them.

        Args:
            samples: the members of each.
        """
        for caption in self.caption_extensions:
            if any(all(self.pick(members, caption)) for members in samples):
                return caption
        return self.caption_extensions[0]

    def sample(self, key: str, members: Sequence[Member], caption: str) -> Sample:
        """Make a sample of its members; one without image or caption says what it has.

        Args:
            key: of the sample.
            members: of the sample.
            caption: extension of the captions of this shard.
        """
        image, text = self.pick(members, caption)
        if image and text:
            return Sample(key, Entry(key, *image, *text[1:], caption))
        if image and self.elsewhere:
            return Sample(key, Entry(key, *image, 0, 0, ""))
        has = ", ".join("." + m[0] for m in members[:_SHOWN])
        if len(members) > _SHOWN:
            has += f" and {len(members) - _SHOWN:,} more"
        if image is None:
            wanted = "/".join(e for e in COMMON if e in self.images) or "/".join(self.images)
            return Sample(key, None, f"no image: expected a {wanted} member, found {has}")
        return Sample(key, None, f"no caption: expected a {caption} member, found {has}")

    def code(self, extension: str) -> int:
        """Position of an image extension in `images`."""
        return self.images.index(extension)

    def texts(self, data: bytes, caption: str | None = None) -> list[str]:
        """The captions that a member holds, one at the least.

        Args:
            data: of the member.
            caption: its extension; None: the first of the captions' own.

        Raises:
            ValueError: it is not UTF-8, or has no text under its keys; begins "caption".
        """
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"caption is not UTF-8 (byte {error.start})") from None
        keys = self._keys[caption or self.caption_extensions[0]]
        return _values(text, keys) if keys else [text]

    def wants(self) -> str:
        """What a sample needs, for messages."""
        images = self.images if len(self.images) <= _SHOWN else (*COMMON, "...")
        image = f"an image ({', '.join(images)})"
        if self.elsewhere:
            return image
        return f"{image} and {' or '.join(self.captions)} with one key"


def _values(text: str, keys: Sequence[str]) -> list[str]:
    """The texts under some keys of a JSON object."""
    try:
        row: Any = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"caption is in no JSON: {error}") from None
    found: list[str] = []
    for key in keys:
        value = row.get(key) if isinstance(row, dict) else None
        texts = value if isinstance(value, list) else [value]
        found += [each for each in texts if isinstance(each, str)]
    if not found:
        raise ValueError(f"caption is no text under {' or '.join(map(repr, keys))} of the JSON")
    return found


FIELDS = Fields()


def check_fields(fields: object) -> Fields:
    """What was given, if it is Fields.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(fields, Fields):
        raise WrongKindError(f"fields must be Fields; got {shown(fields)}")
    return fields


def without_captions(fields: Fields) -> Fields:
    """The same, and a sample needs no caption of its own.

    Args:
        fields: which members are image and caption.
    """
    return fields if fields.elsewhere else replace(fields, captions=(ELSEWHERE, *fields.captions))


def clean_caption(text: str) -> str:
    """A caption as it is stored: no byte order mark, no white space around it."""
    return text.replace("\ufeff", "").strip()
