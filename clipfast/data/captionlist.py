"""Captions that are no single text: lists of them, and what else a row of JSON can hold."""

import ast
import json
import re

from clipfast.data.packitem import CaptionLists

# How Python and JSON write a list of texts, which pandas puts into a cell.
_LIST = re.compile(r"\[\s*['\"].*['\"]\s*\]", re.DOTALL)
_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def kind_of(value: object) -> str:
    """What JSON calls a value that is no text."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def texts_of(caption: object, lists: CaptionLists) -> list[object]:
    """The captions that a row gives.

    Args:
        caption: what stands in the caption's column.
        lists: what is done with several.

    Returns:
        One value, or all of a list. They need not be texts.

    Raises:
        ValueError: with the reason why there is none, ready for a report.
    """
    if isinstance(caption, str) and _LIST.fullmatch(caption.strip()):
        caption = _parsed(caption.strip())
    if not isinstance(caption, list):
        return [caption]
    if not caption:
        raise ValueError("caption is an empty list")
    if lists == "report" and len(caption) > 1:
        raise ValueError(
            f"caption is a list of {len(caption)}: --caption-lists first packs the first one, "
            "--caption-lists each packs the image once with each"
        )
    return caption if lists == "each" else caption[:1]


def _parsed(text: str) -> list[object]:
    """The list that a cell spells."""
    value: object = None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            value = None
        # Without commas, as numpy prints them, Python reads two texts as one.
        if repr(value) != text:
            value = None
    if not isinstance(value, list):
        raise ValueError("caption looks like a list, and is none that JSON or Python writes")
    return value
