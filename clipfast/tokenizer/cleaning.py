"""Text cleaning before the split: ``ftfy.fix_text``, then ``html.unescape`` twice.

ftfy runs a dozen passes over each line, which is most of what tokenizing costs. Fast paths skip
those that can be shown to change nothing:

- printable ASCII: only its HTML entities, if an ``&`` may begin one, are left to do;
- one line without control, compatibility or surrogate characters, in normal form C, in which
  ftfy's own mojibake detector finds nothing: only the straightening of quotes is left to do.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections.abc import Callable

# "& " is no entity to ftfy nor to html.unescape. Line ends may pass, though ftfy rewrites \r: the
# caller splits at white space.
_UNSAFE_ASCII = re.compile(r"[^\t\n\f\r -~]|&(?! )")

# Every character that a pass of ftfy other than its mojibake repair, quotes and NFC may change: C0
# and C1 controls, Latin ligatures and digraphs, ideographic space and full- and half-width forms,
# line and paragraph separators, surrogates, and invisible formatting characters.
_UNSAFE_UNICODE = re.compile(
    "[\x00-\x1f\x7f-\x9f"
    "\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06"
    "\u3000\uff01-\uffef"
    "\u2028\u2029\ud800-\udfff\u206a-\u206f\ufeff\ufff9-\ufffc]"
    "|&(?! )"
)

_STRAIGHT_QUOTES = {
    **dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
}

# What ftfy's detector matches is at most seven characters long, one of them not ASCII; so in a run
# of ASCII, characters more than eight from both ends have no part in a match. They are most of the
# text, and the detector takes four microseconds for sixteen characters.
_FAR_FROM_UNICODE = re.compile("(?<=[ -~]{8})[ -~]+(?=[ -~]{8})")

# ftfy judges segments of this many characters on their own.
_SEGMENT = 1_000_000


@functools.cache
def _load_ftfy() -> tuple[Callable[[str], str], Callable[[str], bool]]:
    """Import ftfy on first use: it costs start-up time, and only training installs have it."""
    try:
        import ftfy
        from ftfy.badness import is_bad
    except ImportError as error:
        raise ImportError(
            "the tokenizer cleans text with ftfy, which is not installed; "
            "run: pip install 'clipfast[train]'"
        ) from error
    return ftfy.fix_text, is_bad


def _unescape_as_ftfy(text: str) -> str:
    """Return what ftfy makes of printable ASCII, if the result still is that."""
    # A "<" makes ftfy take the text for markup, in which entities are meant.
    if "<" in text:
        return text
    from ftfy.fixes import unescape_html

    while (fixed := unescape_html(text)) != text:
        text = fixed
        # From here on ftfy's other passes have a say.
        if not text.isascii() or not text.isprintable():
            break
    return text


def clean(text: str) -> str:
    """Repair broken encodings and HTML entities, as OpenCLIP does before it lower-cases.

    Equal to ``html.unescape(html.unescape(ftfy.fix_text(text)))`` up to the kind and amount of
    white space, which the caller splits at.

    Args:
        text: Any string; lone surrogates become U+FFFD.

    Returns:
        The repaired text, white space and case unchanged.
    """
    if text.isascii():
        if text.isprintable() and "&" not in text:
            return text
        if not _UNSAFE_ASCII.search(text):
            return text
        if text.isprintable() and len(text) < _SEGMENT:
            fixed = _unescape_as_ftfy(text)
            if fixed.isascii() and fixed.isprintable():
                return html.unescape(html.unescape(fixed))
    elif len(text) < _SEGMENT and not _UNSAFE_UNICODE.search(text):
        _, is_bad = _load_ftfy()
        straight = text.translate(_STRAIGHT_QUOTES)
        # ftfy repeats its passes until nothing changes, so the straightened text is judged again.
        if (
            not is_bad(_FAR_FROM_UNICODE.sub("", text))
            and (straight == text or not is_bad(_FAR_FROM_UNICODE.sub("", straight)))
            and unicodedata.is_normalized("NFC", straight)
        ):
            return straight
    fix_text, _ = _load_ftfy()
    return html.unescape(html.unescape(fix_text(text)))
