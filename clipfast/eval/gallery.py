"""A picture of what a model retrieves."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipfast.eval.ranking import best

if TYPE_CHECKING:
    from PIL.Image import Image

_TOP = 5
_RIGHT, _WRONG = "#1a9641", "#bbbbbb"


@dataclass(frozen=True)
class Gallery:
    """Pictures and captions to show, with their features.

    Attributes:
        title: heads the gallery's column.
        image_features: ``[P, D]``.
        text_features: ``[C, D]``.
        image: the i-th picture.
        caption: the i-th caption.
        is_right: whether a picture and a caption, by their places, belong together.
    """

    title: str
    image_features: Tensor
    text_features: Tensor
    image: Callable[[int], "Image"]
    caption: Callable[[int], str]
    is_right: Callable[[int, int], bool] = operator.eq


def retrieval_figure(
    galleries: Sequence[Gallery],
    path: str | Path,
    caption_queries: int = 7,
    image_queries: int = 5,
    seed: int = 0,
) -> None:
    """Random queries with their five best answers, the right ones framed in green.

    Each gallery is a column: above, captions and the pictures they find; below, pictures and the
    captions they find. The queries are drawn with ``seed``, the same for every gallery.

    Args:
        galleries: one or more, drawn side by side.
        path: of the PNG.
        caption_queries: rows of captions.
        image_queries: rows of pictures.
        seed: of the queries.
    """
    from matplotlib.figure import Figure

    generator = torch.Generator().manual_seed(seed)
    smallest = min(min(len(g.image_features), len(g.text_features)) for g in galleries)
    count = min(smallest, caption_queries + image_queries)
    queries = torch.randperm(smallest, generator=generator)[:count].tolist()
    by_caption, by_image = queries[:caption_queries], queries[caption_queries:]

    width = 2 + _TOP
    figure = Figure(
        figsize=(1.15 * width * len(galleries), 1.05 * count + 0.5), dpi=100, layout="constrained"
    )
    columns = figure.subfigures(1, len(galleries), squeeze=False, wspace=0.04)[0]
    for column, gallery in zip(columns, galleries, strict=True):
        column.suptitle(gallery.title, fontsize=11, fontweight="bold")
        axes = column.subplots(
            count, _TOP + 1, squeeze=False, gridspec_kw={"width_ratios": [1.9] + [1] * _TOP}
        )
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for row, query in zip(axes, by_caption, strict=False):
            answers = best(gallery.text_features[query], gallery.image_features, _TOP)
            _draw_caption(row[0], f"“{gallery.caption(query)}”", "black")
            for axis, answer in zip(row[1:], answers, strict=False):
                _draw_image(axis, gallery.image(answer), gallery.is_right(answer, query))
        for row, query in zip(axes[len(by_caption) :], by_image, strict=True):
            answers = best(gallery.image_features[query], gallery.text_features, _TOP)
            _draw_image(row[0], gallery.image(query), None)
            for axis, answer in zip(row[1:], answers, strict=False):
                color = _RIGHT if gallery.is_right(query, answer) else "#555555"
                _draw_caption(axis, gallery.caption(answer), color)
    figure.savefig(path)


def _draw_image(axis: Any, image: "Image", is_right: bool | None) -> None:
    axis.imshow(image)
    if is_right is None:
        return
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color(_RIGHT if is_right else _WRONG)
    axis.spines[:].set_linewidth(3.5 if is_right else 0.8)


def _draw_caption(axis: Any, text: str, color: str) -> None:
    import textwrap

    axis.text(
        0.5,
        0.5,
        textwrap.fill(text, 15, max_lines=5),
        ha="center",
        va="center",
        fontsize=8,
        color=color,
        fontweight="bold" if color == _RIGHT else "normal",
        transform=axis.transAxes,
    )
