"""The rows that the suite will write on a GPU, each with the work that it takes at least."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.parts.adamw.contenders import CONTENDERS
from benchmarks.parts.adamw.problem import FLAT, SMALL
from benchmarks.parts.common.options import parse
from benchmarks.parts.common.schema import DTYPES, case_of
from benchmarks.parts.predict import counts
from benchmarks.parts.predict.counts import Work
from benchmarks.parts.suite.machine import SIZES, names_on
from benchmarks.parts.suite.part import ROWS, Part
from benchmarks.parts.text.contenders import MODELS
from benchmarks.step_throughput import batch_sizes


@dataclass(frozen=True)
class Prediction:
    """A row that is to be measured.

    Attributes:
        part: Of the suite.
        subject, case, implementation, dtype: As the row will have them.
        work: One after the other.
    """

    part: str
    subject: str
    case: str
    implementation: str
    dtype: str
    work: tuple[Work, ...]

    @property
    def flop(self) -> float:
        return sum(work.flop for work in self.work)

    @property
    def bytes(self) -> float:
        return sum(work.bytes for work in self.work)

    def floor_ms(self, card: str) -> float:
        """Milliseconds at full rates."""
        return sum(work.floor_ms(card, self.dtype) for work in self.work)


Row = tuple[dict[str, Any], str, str, tuple[Work, ...]]  # fields of the case, name, dtype, work


def predict(parts: Sequence[Part]) -> list[Prediction]:
    """The rows of these parts whose work can be counted: ours, and bare products."""
    found = []
    for part in parts:
        subject = part.command[1].removeprefix("benchmarks.")
        if part.kind != ROWS or subject not in _ROWS:
            continue
        module = importlib.import_module(part.command[1])
        options = parse(module.build_parser(), part.command[2:], module.DEFAULTS)
        for fields, name, dtype, work in _ROWS[subject](options):
            case = case_of({"subject": subject, **fields})
            found.append(Prediction(part.name, subject, case, name, dtype, work))
    return found


def _ceilings(options: argparse.Namespace) -> Iterator[Row]:
    size = SIZES[options.device]
    for name in names_on(torch.device(options.device)):
        what = {"what": f"product of {size} x {size} x {size}"}
        yield what, "torch.mm", name, (counts.product(size, name),)


def _loss(options: argparse.Namespace) -> Iterator[Row]:
    for dim in options.dims:
        for dtype in (DTYPES[name] for name in options.dtypes):
            for batch in options.batch_sizes:
                fields = {"batch": batch, "dim": dim, "ranks": options.ranks}
                for impl in options.impl:
                    for form in options.keep:
                        name = f"clipfast{'' if impl == 'auto' else ' ' + impl}, {form}"
                        kept = form == "keep"
                        work = counts.loss(batch, dim, dtype, 6 if kept else 8, kept)
                        yield fields, name, dtype, (work,)


def _pool(options: argparse.Namespace) -> Iterator[Row]:
    for pool in options.pools:
        for dtype in (DTYPES[name] for name in options.dtypes):
            work = counts.pool(pool, options.batch, dtype)
            yield {"pool": pool, "batch": options.batch}, "clipfast", dtype, (work,)


def _adamw(options: argparse.Namespace) -> Iterator[Row]:
    # Small tensors cost the host, and no bytes to speak of.
    for name in (name for name in options.lists if name != SMALL):
        flat = options.elements
        elements = counts.elements_of(name, flat if name == FLAT else 0)
        for key in options.contenders:
            contender = CONTENDERS[key]
            dtype = DTYPES[str(contender.dtype).removeprefix("torch.")]
            work = counts.adamw(key, name, flat if name == FLAT else 0)
            yield {"list": name, "elements": elements}, contender.name, dtype, (work,)


def _text(options: argparse.Namespace) -> Iterator[Row]:
    for width in options.widths:
        embed = counts.config_of(MODELS[width]).embed_dim
        for precision in options.precisions:
            for source in options.captions:
                fields = {"width": width, "batch": options.batch, "captions": source}
                dtype = DTYPES[precision]
                work = counts.text_tower(width, options.layers, embed, options.batch, source)
                yield fields, "clipfast", dtype, (work,)


def _step(options: argparse.Namespace) -> Iterator[Row]:
    for model, batch in zip(options.models, batch_sizes(options), strict=True):
        for precision in options.precisions:
            fields = {"model": model, "batch": batch, "captions": options.captions}
            work = counts.step(model, batch, options.captions)
            yield fields, "clipfast", DTYPES[precision], work


_ROWS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "ceilings": _ceilings,
    "loss_throughput": _loss,
    "attention_pool": _pool,
    "adamw": _adamw,
    "text_tower": _text,
    "step_throughput": _step,
}
