"""Which files hold images, captions or tables, told by their names.

What a file holds decides in the end: a PNG named .jpg packs as a PNG. Names decide what is tried.
"""

from functools import cache

from PIL import Image

from clipfast.data.fields import COMMON

CAPTION_FILE = ".txt"
# Extension of a table -> what separates its columns, "" for JSON lines.
TABLES = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": ""}
# Pillow's names of what it recognises and is no picture, or is drawn by another program.
NOT_PICTURES = ("BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
# Names of JPEG that Pillow does not list.
_MORE_JPEG = (".jif", ".jfi", ".pjpeg", ".pjp")
# Pictures that no decoder here reads. They are taken for images, so that a report names each.
_UNREAD = (
    ".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw",
    ".orf", ".rw2", ".raf",
)  # fmt: skip
# What stands beside images and is none: programs write these for every sample.
_NO_IMAGE = (
    CAPTION_FILE, *TABLES, ".json", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".parquet",
    ".xml", ".yaml", ".yml", ".md", ".html", ".htm", ".srt", ".vtt", ".caption", ".cls", ".tar",
    ".idx", ".zip", ".gz", ".mp3", ".mp4", ".wav", ".flac", ".webm", ".mkv", ".avi", ".mov", ".pdf",
    ".db", ".ini", ".py", ".log", ".xls", ".xlsx", ".doc", ".docx",
)  # fmt: skip


@cache
def image_extensions() -> frozenset[str]:
    """Extensions of images, lower case with their dot: what Pillow opens, and what it is asked to.

    The packer's shards hold ``COMMON`` alone; it encodes the others anew.
    """
    opened = {
        extension
        for extension, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in NOT_PICTURES
    }
    stored = {f".{extension}" for extension in COMMON}
    return frozenset({*opened, *stored, *_MORE_JPEG, *_UNREAD})


def may_be_image(extension: str) -> bool:
    """Whether a file that has a caption beside it may be its image, whatever its name says.

    Args:
        extension: lower case with its dot; "" where the name has none.
    """
    return extension in image_extensions() or extension not in _NO_IMAGE
