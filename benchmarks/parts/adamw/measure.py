"""Checks the contenders of ``adamw.py`` and times them on one list of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.parts.adamw.check import check
from benchmarks.parts.adamw.contenders import CONTENDERS, Contender, make, state_bytes, version
from benchmarks.parts.adamw.problem import MODELS, Problem, shapes_of
from benchmarks.parts.common.contest import Absence, NotMeasured, reason_of
from benchmarks.parts.common.graphs import recorder_of
from benchmarks.parts.common.harness import Row, measure_together

# More would not change the rate of a copy, and would need memory beside RN50x64's.
_LARGEST_COPY = 1 << 30
BASE = "torch-fused"
_GRAPH = "-graph"  # what the key of a replay ends in
HUNGRY = "torch-foreach"


def check_all(keys: Sequence[str], device: torch.device) -> tuple[dict[str, Row], list[Absence]]:
    """Check every contender on a small problem.

    Returns:
        What was found of those that passed, by key, and the others.
    """
    found, absent = {}, []
    for key in keys:
        contender = CONTENDERS[key]
        try:
            if device.type not in contender.devices:
                raise NotMeasured(f"runs on {', '.join(contender.devices)}")
            found[key] = check(contender, device)
        except Exception as error:  # a failure is a line of the report, whatever it is
            absent.append(Absence(contender.name, reason_of(error), contender.is_ours))
    return found, absent


def measure_list(
    name: str, elements: int, device: torch.device, runs: int, checks: dict[str, Row]
) -> tuple[list[Row], list[Absence]]:
    """All contenders that passed on one list of parameters.

    On the flat slice and on small tensors all of them alternate. On models' lists, for their
    memory, each alternates with torch's fused step alone, and foreach, which makes copies of
    everything, with none.

    Args:
        name: One of :data:`problem.LISTS`.
        elements: Of the flat slice.
        device: Where.
        runs: Timed runs of each contender.
        checks: Of :func:`check_all`.

    Returns:
        One row per contender, and those that do not run on this list.
    """
    problem = Problem(shapes_of(name, elements), device)
    measurement = Measurement(name, problem, runs)
    chosen = [CONTENDERS[key] for key in checks]
    groups = (
        [[*beside(contender, checks), contender] for contender in chosen]
        if name in MODELS
        else [chosen]
    )
    rows, absent = [], []
    total = (sum(map(len, groups)) + 2 * len(groups)) * (runs + 1)
    with tqdm(total=total, desc=name, unit=" runs", leave=False) as bar:
        for group in groups:
            new, missing = measurement.measure(group, checks, bar.update)
            # A companion has its row from the group that is its own.
            own = (group[-1].key, group[-1].key + _GRAPH)
            rows += [row for row in new if name not in MODELS or row["contender"] in own]
            # Torch's step is met again in every group.
            absent += [one for one in missing if one not in absent]
            if device.type == "cuda":
                torch.cuda.empty_cache()
    _set_times(rows)
    return rows, absent


def beside(contender: Contender, checks: dict[str, Row]) -> list[Contender]:
    """Whom a contender alternates with on models' lists."""
    is_alone = contender.key in (BASE, HUNGRY) or BASE not in checks
    return [] if is_alone else [CONTENDERS[BASE]]


class Measurement:
    """One list of parameters, and the operations that bound what its contenders can reach."""

    def __init__(self, name: str, problem: Problem, runs: int) -> None:
        self.name, self.problem, self.runs = name, problem, runs
        # Half of what torch's fused step works on: weights, gradients and two statistics.
        half = min(2 * 4 * problem.elements, _LARGEST_COPY)
        self.source = torch.ones(half // 4, device=problem.device)
        self.target = torch.zeros_like(self.source)

    def measure(
        self, contenders: Sequence[Contender], checks: dict[str, Row], tick: Callable[[], object]
    ) -> tuple[list[Row], list[Absence]]:
        """Time contenders, the copy and the product in alternation.

        Args:
            contenders: All of them in memory at once.
            checks: What was found of each by ``check.check``.
            tick: Called after each run.

        Returns:
            One row per contender, and those that do not run on this list.
        """
        params, optimizers, absent = {}, {}, []
        for contender in contenders:
            dtype = contender.dtype
            params.setdefault(dtype, self.problem.parameters(dtype))
            try:
                optimizers[contender.key] = make(contender, params[dtype])
                # The first step allocates the states and touches their pages.
                optimizers[contender.key].step()
            except NotMeasured as error:
                optimizers.pop(contender.key, None)
                absent.append(Absence(contender.name, reason_of(error), contender.is_ours))
        chosen = [contender for contender in contenders if contender.key in optimizers]
        functions = {
            "copy": lambda: self.target.copy_(self.source),
            "in_place": lambda: (self.target.mul_(1.0), self.source.mul_(1.0)),
        }
        functions |= {contender.key: optimizers[contender.key].step for contender in chosen}
        by_key = {contender.key: contender for contender in chosen}
        copy_row, in_place_row, *rows = measure_together(
            functions,
            check=lambda: all(contender.key in checks for contender in chosen),
            device=self.problem.device,
            warmup=1,
            runs=self.runs,
            ratios_to=["copy", "in_place", *([BASE] if BASE in functions else [])],
            after_run=tick,
            record=recorder_of(self.problem.device),
            recorded=by_key,
            changes=lambda key: changed_tensors(optimizers[key]),
            list=self.name,
            tensors=len(self.problem.shapes),
            elements=self.problem.elements,
            threads=torch.get_num_threads(),
        )
        # Read and written: once by the copy, twice by the products.
        copied, changed = 2 * self.source.nbytes, 4 * self.source.nbytes
        copy_rate = copied / (copy_row["median_ms"] * 1e6)
        in_place_rate = changed / (in_place_row["median_ms"] * 1e6)
        for row in rows:
            key, is_graph = row.get("replay_of", row["name"]), "replay_of" in row
            contender = by_key[key]
            moved = contender.bytes_per_element * self.problem.elements
            states = state_bytes(optimizers[contender.key])
            row.update(
                name=contender.name + ", graph" * is_graph,
                contender=contender.key + _GRAPH * is_graph,
                version=version(contender),
                bytes_moved=moved,
                us_per_tensor=1e3 * row["median_ms"] / len(self.problem.shapes),
                gb_per_s=moved / (row["median_ms"] * 1e6),
                copy_gb_per_s=copy_rate,
                in_place_gb_per_s=in_place_rate,
                of_copy=moved / copied / row["ratio_to_copy"],
                of_in_place=moved / changed / row["ratio_to_in_place"],
                floor_ms=moved / (max(copy_rate, in_place_rate) * 1e6),
                state_bytes_per_parameter=states / self.problem.elements,
                weight_bytes_per_parameter=contender.dtype.itemsize,
                **checks[contender.key],
            )
        return rows, absent


def changed_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What a step changes: weights and states, and the count of the steps skipped."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    kept = [value for state in optimizer.state.values() for value in state.values()]
    kept.append(getattr(optimizer, "_skipped", None))
    return [*params, *(value for value in kept if isinstance(value, Tensor))]


def _set_times(rows: list[Row]) -> None:
    """Say how many times as fast as torch's fused step each row is, None where that has none."""
    base = next((row for row in rows if row["contender"] == BASE), None)
    for row in rows:
        row["times_torch_fused"] = None
        if base is row:
            row["times_torch_fused"] = 1.0
        elif base is not None:
            by_copy = row["ratio_to_copy"] / base["ratio_to_copy"]
            row["times_torch_fused"] = 1 / row.get(f"ratio_to_{BASE}", by_copy)
