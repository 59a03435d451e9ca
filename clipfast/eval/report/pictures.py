"""Single images with what a model says of them (Radford et al. 2021, figure 21)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipfast.eval.report.charts.bars import bar
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.reading import Result

_JPEG = b"\xff\xd8\xff"
_RIGHT = join(" \N{CHECK MARK}", tag("span", " right", class_="unseen"))
_MOST_BYTES = 24 << 10


def pictures(result: Result, most: int) -> Markup | None:
    """The examples of a result, right ones and wrong ones in turn.

    Args:
        result: of zero-shot classification.
        most: examples that are shown.
    """
    examples = result.content.get("examples")
    if not examples:
        return None
    right = [example for example in examples if example["right"]]
    wrong = [example for example in examples if not example["right"]]
    # In turn, so that a few of both are there where only a few are shown.
    turns = range(max(len(right), len(wrong)))
    mixed = [kind[i] for i in turns for kind in (right, wrong) if i < len(kind)]
    figures = [_figure(result, example) for example in mixed[:most]]
    title = tag("h4", f"Images of {result.dataset}, and the likeliest classes")
    return join(title, tag("div", *figures, class_="examples"))


def _figure(result: Result, example: Mapping[str, Any]) -> Markup:
    classes = [str(name) for name in example["classes"]]
    named = ", ".join(classes) or "none of the classes"
    rows = []
    for entry in example["top"][:5]:
        is_right = str(entry["name"]) in classes
        chance = float(entry["probability"])
        rows.append(
            tag(
                "tr",
                tag(
                    "th",
                    entry["name"],
                    _RIGHT if is_right else None,
                    scope="row",
                ),
                tag("td", f"{chance:.1%}", class_="n"),
                tag("td", bar(chance)),
                class_="right" if is_right else None,
            )
        )
    said = "right" if example["right"] else "wrong"
    return tag(
        "figure",
        _image(result, example, named),
        tag(
            "figcaption",
            tag("b", named),
            " ",
            tag("span", said, class_=f"said {said}"),
            tag("table", tag("tbody", *rows), aria_label=f"Likeliest classes of {named}"),
        ),
        class_="example",
    )


def _image(result: Result, example: Mapping[str, Any], named: str) -> Markup:
    data = _read(result.path.parent, str(example.get("file", "")))
    if data is None:
        return tag("p", "its picture is not here", class_="absent")
    source = f"data:image/jpeg;base64,{b64encode(data).decode()}"
    return tag("img", src=source, alt=f"image {example.get('image')}: {named}", loading="lazy")


def _read(folder: Path, name: str) -> bytes | None:
    """A small JPEG below the result's folder; nothing else is put into the page."""
    path = (folder / name).resolve()
    if not name or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    if path.stat().st_size > _MOST_BYTES:
        return None
    data = path.read_bytes()
    return data if data.startswith(_JPEG) else None
