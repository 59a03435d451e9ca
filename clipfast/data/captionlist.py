"""Captions that are no single text: lists of them, and what else a row of JSON can hold."""

from clipfast.data.packitem import CaptionLists
from clipfast.data.spelt import looks_spelt, read_spelt

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
    spelt = read_spelt(caption.strip()) if isinstance(caption, str) else None
    if spelt is not None:
        caption = spelt
    elif isinstance(caption, str) and looks_spelt(caption.strip()):
        raise ValueError("caption looks like a list or an object, and nothing reads it as one")
    if not isinstance(caption, list):
        return [caption]
    if not caption:
        raise ValueError("caption is an empty list")
    # A cell with a list of one may be a text in brackets.
    doubtful = spelt is not None and isinstance(caption[0], str)
    if lists == "report" and (doubtful or len(caption) > 1):
        raise ValueError(
            f"caption is a list of {len(caption)}: --caption-lists first packs the first one, "
            "--caption-lists each packs the image once with each"
        )
    return caption if lists == "each" else caption[:1]
