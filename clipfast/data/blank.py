"""Captions that say nothing, whatever characters they hold."""

import re

from clipfast.tokenizer import tokenize_with_lengths
from clipfast.tokenizer.cleaning import clean

# Characters that show nothing: Unicode's Default_Ignorable_Code_Point, control and format
# characters, and the empty pattern of Braille. Most become tokens, which mean nothing.
_INVISIBLE = re.compile(
    r"[\s\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0"
    r"\ufff0-\ufffc\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)


def is_blank(text: str) -> bool:
    """Whether nothing of a caption is left for a model to read.

    True where the tokenizer makes no token of it, as of white space, control sequences and
    ``&nbsp;``, and where all that it makes tokens of is invisible, as zero-width spaces are.

    Args:
        text: a caption.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return not text or text.isspace()
    visible = _INVISIBLE.sub("", clean(text))
    if not visible or any(map(str.isalnum, visible)):
        return not visible
    # Start and end alone: some marks that stand on letters become nothing by themselves.
    return int(tokenize_with_lengths(visible)[1]) == 2
