"""The page: one file, that loads nothing."""

from __future__ import annotations

import hashlib
import importlib
from base64 import b64encode
from pathlib import Path

import clipfast
from clipfast.eval.report.context import Context
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.sections import SECTIONS

_ASSETS = Path(__file__).parent / "assets"
_MOST_ODD = 200


def page(context: Context, folder: Path) -> Markup:
    """All of the page.

    No script and no style but those of the package can run or apply: the policy names their hashes.

    Args:
        context: of the results.
        folder: that paths of files start from.
    """
    style, script = (_asset(name) for name in ("style.css", "script.js"))
    made = []
    for name in SECTIONS:
        module = importlib.import_module(f"clipfast.eval.report.sections.{name}")
        content = module.section(context)
        if content is not None:
            made.append((name, module.TITLE, content))
    links = [tag("a", title, href=f"#{name}") for name, title, _ in made]
    parts = [tag("section", tag("h2", title), content, id=name) for name, title, content in made]
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", "Evaluation report"),
        tag("style", style),
    )
    body = tag(
        "body",
        tag(
            "header",
            tag("h1", "Evaluation report"),
            tag("p", _counts(context)),
            _odd(context, folder),
        ),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *parts),
        tag("footer", tag("p", f"Made by clipfast {clipfast.__version__}.")),
        tag("script", script),
    )
    return join(Markup("<!DOCTYPE html>\n"), tag("html", head, body, lang="en"), "\n")


def _asset(name: str) -> Markup:
    return Markup((_ASSETS / name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _counts(context: Context) -> str:
    sets = {result.dataset for result in context.results}
    return (
        f"{len(context.results)} results of {len(context.labels)} model(s) on {len(sets)} data "
        "set(s). Intervals are those of the results: Clopper-Pearson, 99.5%."
    )


def _odd(context: Context, folder: Path) -> Markup | None:
    """Asked for last: sections find what is damaged."""
    if not context.odd:
        return None
    lines = []
    for odd in context.odd[:_MOST_ODD]:
        path = odd.path.relative_to(folder) if odd.path.is_relative_to(folder) else odd.path
        lines.append(tag("li", tag("code", path), f": {odd.why}"))
    title = f"{len(context.odd)} file(s) or parts of them cannot be read and are left out"
    return tag("details", tag("summary", title), tag("ul", *lines), class_="odd")
