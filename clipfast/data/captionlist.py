"""Captions that are no single text: lists of them, and what else a row of JSON can hold."""

import ast
import json
import re

from clipfast.data.packitem import CaptionLists

# How Python and JSON write a list or an object of texts, which pandas puts into a cell.
_SPELT = re.compile(r"\[\s*['\"].*['\"]\s*\]|\{\s*['\"].*\}", re.DOTALL)
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
    spelt = isinstance(caption, str) and _SPELT.fullmatch(caption.strip())
    if spelt:
        caption = _parsed(spelt.group())
    if not isinstance(caption, list):
        return [caption]
    if not caption:
        raise ValueError("caption is an empty list")
    # A cell with a list of one may be a text in brackets.
    if lists == "report" and (spelt or len(caption) > 1):
        raise ValueError(
            f"caption is a list of {len(caption)}: --caption-lists first packs the first one, "
            "--caption-lists each packs the image once with each"
        )
    return caption if lists == "each" else caption[:1]


def _parsed(text: str) -> object:
    """The list or the object that a cell spells, which a spreadsheet takes for a text.

    Raises:
        ValueError: it looks like one and is none.
    """
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
    if value is None:
        raise ValueError("caption looks like a list or an object, and nothing reads it as one")
    return value
