"""A page in one file, that loads nothing: its head, its sections, and the style of the package."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import clipfast
from clipfast.eval.report.markup import Markup, join, tag

_ASSETS = Path(__file__).parent / "assets"


def document(title: str, head: Markup, sections: Sequence[tuple[str, str, Markup]]) -> Markup:
    """The whole page.

    No script and no style but those of the package can run or apply: the policy names their hashes.

    Args:
        title: of the page.
        head: what stands below the title.
        sections: name, title and content of each.
    """
    style, script = (_asset(name) for name in ("style.css", "script.js"))
    links = [tag("a", heading, href=f"#{name}") for name, heading, _ in sections]
    parts = [
        tag("section", tag("h2", heading), content, id=name) for name, heading, content in sections
    ]
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    top = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), head),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *parts),
        tag("footer", tag("p", f"Made by clipfast {clipfast.__version__}.")),
        tag("script", script),
    )
    return join(Markup("<!DOCTYPE html>\n"), tag("html", top, body, lang="en"), "\n")


def _asset(name: str) -> Markup:
    return Markup((_ASSETS / name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
