"""HTML that escapes whatever it is given."""

from __future__ import annotations

from html import escape
from typing import Any

_VOID = ("img", "input", "meta", "br", "source")


class Markup(str):
    """Text that is HTML already: only this module and files of the package make it."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element.

        tag("td", "<b>", class_="name")     <td class="name">&lt;b&gt;</td>

    Args:
        name: of the element.
        children: ``Markup`` stands as it is, None is left out, all else is escaped.
        attributes: ``class_`` is ``class``, ``aria_label`` is ``aria-label``. None and False are
            left out, True has no value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.removesuffix("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(_clean(value))}"')
    head = f"<{' '.join(words)}>"
    return Markup(head) if name in _VOID else Markup(f"{head}{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
    """Children one after the other, as ``tag`` takes them."""
    return Markup("".join(_text(child) for child in children))


def _text(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    return escape(_clean(child))


def _clean(value: Any) -> str:
    """Without what no HTML may hold: NUL and other control characters."""
    return "".join(c for c in str(value) if c >= " " or c in "\n\t")
