"""Puts the tables between the markers of Markdown files.

<!-- table: loss -->
| G, type | form | ...
<!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.parts.tables.convergence import (
    convergence,
    convergence_seeds,
    convergence_time,
)
from benchmarks.parts.tables.data import data, data_cores
from benchmarks.parts.tables.evaluation import probe, zeroshot
from benchmarks.parts.tables.gpu import gpu_floors, gpu_missing, predicted, step_parts
from benchmarks.parts.tables.headline import headline, headline_gpu
from benchmarks.parts.tables.loss import loss, loss_errors, loss_rivals
from benchmarks.parts.tables.memory import batch_memory
from benchmarks.parts.tables.near import near, near_kinds
from benchmarks.parts.tables.optimizer import adamw, adamw_demo, adamw_error, adamw_late
from benchmarks.parts.tables.planning import (
    plan_64_time,
    plan_64_travel,
    plan_592_time,
    plan_592_travel,
    plan_published,
)
from benchmarks.parts.tables.stores import stores, stores_broken, stores_costs
from benchmarks.parts.tables.towers import (
    attention_pool,
    patch_gain,
    step,
    text_tower,
    tokenizer,
)

ROOT = Path(__file__).resolve().parents[3]
TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "headline_gpu": headline_gpu,
    "gpu_floors": gpu_floors,
    "gpu_missing": gpu_missing,
    "predicted": predicted,
    "loss": loss,
    "loss_errors": loss_errors,
    "loss_rivals": loss_rivals,
    "step": step,
    "step_parts": step_parts,
    "patch_gain": patch_gain,
    "text_tower": text_tower,
    "attention_pool": attention_pool,
    "tokenizer": tokenizer,
    "adamw": adamw,
    "adamw_error": adamw_error,
    "adamw_late": adamw_late,
    "adamw_demo": adamw_demo,
    "convergence": convergence,
    "convergence_seeds": convergence_seeds,
    "convergence_time": convergence_time,
    "data": data,
    "data_cores": data_cores,
    "batch_memory": batch_memory,
    "zeroshot": zeroshot,
    "probe": probe,
    "near": near,
    "near_kinds": near_kinds,
    "stores": stores,
    "stores_broken": stores_broken,
    "stores_costs": stores_costs,
    "plan_592_time": plan_592_time,
    "plan_592_travel": plan_592_travel,
    "plan_64_time": plan_64_time,
    "plan_64_travel": plan_64_travel,
    "plan_published": plan_published,
}
_MARKED = re.compile(r"^<!-- table: (\S+) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)


def documents(root: Path = ROOT) -> list[Path]:
    """README and all pages of docs."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def names_in(text: str) -> list[str]:
    """The tables that a page asks for."""
    return [match[1] for match in _MARKED.finditer(text)]


def render(text: str) -> str:
    """A page with its tables as the rows have them.

    Raises:
        ValueError: The page asks for a table that there is not, or a marker has no end.
    """
    if text.count("<!-- table:") != len(names_in(text)):
        raise ValueError("a <!-- table: NAME --> has no <!-- end --> on a line of its own")

    def table(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise ValueError(f"no table {match[1]!r}; there are {', '.join(TABLES)}")
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return _MARKED.sub(table, text)
