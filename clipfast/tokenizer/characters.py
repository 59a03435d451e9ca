"""CLIP's split of text into pieces, with its Unicode classes pinned.

CLIP splits text with the classes ``\\p{L}`` and ``\\p{N}`` of Python's ``regex``. Other libraries
read the same classes from other versions of Unicode: beside ``regex`` 2026.11.15, the Rust engine's
own regular expressions miss 17,144 letters and 336 numbers. So the pattern spells both classes out
as code point ranges from a data file, which ``python -m clipfast.tokenizer.unicode_table`` writes.
"""

from __future__ import annotations

import functools
import re
from importlib import resources

CHARACTER_TABLE = "assets/unicode_letters_and_numbers.txt"


def split_word(word: str) -> list[str]:
    """Return CLIP's pieces of a word, each of which byte-pair encoding takes by itself.

    A piece is a literal special token, an English contraction, a run of letters, one number
    character, or a run of anything else.

    Args:
        word: Text without white space, to which ``str.lower`` has been applied.

    Returns:
        The pieces in order; a piece split again is itself.
    """
    if word.isascii():
        return _ASCII_PATTERN.findall(word)
    return _unicode_pattern().findall(word)


def _pattern(letters: str, numbers: str) -> re.Pattern[str]:
    # CLIP compiles its pattern with IGNORECASE, which has two effects on lower-case text: the long
    # s (U+017F) also counts as the s of these literals, and U+0345 is in no class at all, because
    # its upper case, the Greek letter iota, is excluded from the last. It separates like a space.
    return re.compile(
        "<[s\u017f]tart_of_text>|<end_of_text>|'[s\u017f]|'t|'re|'ve|'m|'ll|'d"
        f"|[{letters}]+|[{numbers}]|[^\u0345{letters}{numbers}]+"
    )


# The same for ASCII, which Python's re searches faster.
_ASCII_PATTERN = _pattern("a-z", "0-9")


@functools.cache
def _unicode_pattern() -> re.Pattern[str]:
    classes: dict[str, list[str]] = {"L": [], "N": []}
    table = resources.files("clipfast").joinpath(CHARACTER_TABLE).read_text("ascii")
    for line in table.splitlines():
        if not line.startswith("#"):
            category, first, last = line.split()
            classes[category].append(f"{chr(int(first, 16))}-{chr(int(last, 16))}")
    return _pattern("".join(classes["L"]), "".join(classes["N"]))
