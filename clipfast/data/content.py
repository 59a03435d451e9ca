"""Which samples hold the same picture or the same caption, told by 64 bits of each."""

import hashlib

from clipfast.tokenizer.cleaning import clean


def image_id(data: bytes) -> int:
    """Equal for files that are equal byte by byte.

    Returns:
        A number that fits into an int64. Two of 50,000 files that differ share one with a
        probability below 1e-10.
    """
    return _id(data)


def caption_id(text: str) -> int:
    """Equal for captions that the tokenizer makes the same words of: case and white space are none.

    Returns:
        As ``image_id``.
    """
    return _id(" ".join(clean(text).lower().split()).encode())


def _id(data: bytes) -> int:
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
