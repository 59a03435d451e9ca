"""Names that were mistyped, or spelled as another library spells them."""

import difflib
import re
from collections.abc import Iterable


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The name that was probably meant.

    Case and punctuation do not count, nor does the ``-quickgelu`` of OpenCLIP's names:
    ``vit-l-14-336-quickgelu`` means ``ViT-L/14@336px``.

    Args:
        name: what was given.
        known: every name that exists.

    Returns:
        One of ``known``; None where none is near.
    """
    by_letters = {_letters(item): item for item in reversed(list(known))}
    wanted = _letters(name)
    if wanted in by_letters:
        return by_letters[wanted]
    close = difflib.get_close_matches(wanted, by_letters, n=1)
    return by_letters[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with its leading blank, such as " Did you mean 'RN50'?"; '' where none is near.

    Args:
        name: what was given.
        known: every name that exists.
    """
    nearest = nearest_name(name, known)
    return f" Did you mean {nearest!r}?" if nearest else ""


def _letters(name: str) -> str:
    plain = re.sub(r"[\W_]", "", str(name).lower())
    return re.sub(r"(?<=\d)px$", "", plain.removesuffix("quickgelu"))
