"""Time, memory and traffic of ``clipfast.FusedAdamW`` against other AdamWs.

Timed: one ``step()`` on all parameters, gradients present. The parameters are those of the paper's
largest ResNet and largest vision transformer, in shape and number, and one flat slice, as ZeRO
hands out. Gradients are normal, each tensor's scale log-normal.

An optimizer's step does little arithmetic: what bounds it is memory. Two large ``torch`` operations
are timed in alternation with the contenders, a copy and a product in place, and "of copy" and "of
in place" are a contender's rate, of the bytes counted from its types, by theirs. A CPU's copy reads
its target's lines before it overwrites them, unless it streams past the caches, and that is not
counted; an optimizer's step overwrites only what it has read, so it can pass 100% of a copy. The
floor is by the faster of the two.

On the flat slice all contenders alternate; on models' lists, for their memory, each alternates with
torch's fused step alone, and foreach, which makes copies of everything, with none: "x torch" then
goes by its copies.

Each contender is checked first (``adamw_check.py``): AdamW in float64, and ours the reference's
bits. What fails has no figures.

    python benchmarks/adamw.py                            what this machine's default is
    python benchmarks/adamw.py --lists flat --runs 20
    python benchmarks/adamw.py --quick                    seconds, for a look; nothing is kept

Rows go to ``benchmarks/results/adamw.jsonl`` and the plot beside it, under the default options or
with --save.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.parts.adamw import check as adamw_check
from benchmarks.parts.adamw import report as adamw_report
from benchmarks.parts.adamw.contenders import (
    CONTENDERS,
    Contender,
    NotMeasured,
    make,
    state_bytes,
    version,
)
from benchmarks.parts.common import harness
from benchmarks.parts.common.harness import Row
from clipfast.models import create_model

SUBJECT = "adamw"
FLAT = "flat"
LISTS = (FLAT, "ViT-L/14", "RN50x64")
DEFAULTS = {"cpu": {"runs": 5}, "cuda": {"runs": 20}}
# More would not change the rate of a copy, and would need memory beside RN50x64's.
_LARGEST_COPY = 1 << 30
# Random numbers that tensors are filled with over and over.
_NOISE = 1 << 22
BASE = "torch-fused"
HUNGRY = "torch-foreach"

Absences = dict[str, str]


def shapes_of(name: str, elements: int) -> list[torch.Size]:
    """The shapes of a model's parameters, or of one flat tensor of so many elements."""
    if name == FLAT:
        return [torch.Size([elements])]
    with torch.device("meta"):
        return [parameter.shape for parameter in create_model(name).parameters()]


class Problem:
    """Parameters with gradients, made anew for each contender or shared by those of one dtype."""

    def __init__(self, shapes: Sequence[torch.Size], device: torch.device) -> None:
        self.shapes, self.device = shapes, device
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(_NOISE, generator=generator).to(device)
        self.scales = (1e-4 * torch.exp(2 * torch.randn(len(shapes), generator=generator))).tolist()

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.shapes))

    def parameters(self, dtype: torch.dtype) -> list[Tensor]:
        """Weights of deviation 0.05 and their gradients; every page is written."""
        params = []
        for shape, scale in zip(self.shapes, self.scales, strict=True):
            param, grad = (self._filled(shape, s, dtype) for s in (0.05, scale))
            param.grad = grad
            params.append(param)
        return params

    def _filled(self, shape: torch.Size, scale: float, dtype: torch.dtype) -> Tensor:
        filled = torch.empty(shape, dtype=dtype, device=self.device)
        values = (scale * self.noise[: filled.numel()]).to(dtype)
        for part in filled.view(-1).split(_NOISE):
            part.copy_(values[: part.numel()])
        return filled


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
    ) -> tuple[list[Row], Absences]:
        """Time contenders, the copy and the product in alternation.

        Args:
            contenders: All of them in memory at once.
            checks: What was found of each by ``adamw_check.check``.
            tick: Called after each run.

        Returns:
            A row a contender, and the reasons of those that do not run on this list.
        """
        params, optimizers, absent = {}, {}, {}
        for contender in contenders:
            dtype = contender.dtype
            params.setdefault(dtype, self.problem.parameters(dtype))
            try:
                optimizers[contender.key] = make(contender, params[dtype])
                # The first step allocates the states and touches their pages.
                optimizers[contender.key].step()
            except NotMeasured as error:
                optimizers.pop(contender.key, None)
                absent[contender.name] = str(error)
        chosen = [contender for contender in contenders if contender.key in optimizers]
        functions = {
            "copy": lambda: self.target.copy_(self.source),
            "in_place": lambda: (self.target.mul_(1.0), self.source.mul_(1.0)),
        }
        functions |= {contender.key: optimizers[contender.key].step for contender in chosen}
        copy_row, in_place_row, *rows = harness.measure_together(
            functions,
            check=lambda: all(contender.key in checks for contender in chosen),
            device=self.problem.device,
            warmup=1,
            runs=self.runs,
            ratios_to=["copy", "in_place", *([BASE] if BASE in functions else [])],
            after_run=tick,
            list=self.name,
            tensors=len(self.problem.shapes),
            elements=self.problem.elements,
            threads=torch.get_num_threads(),
        )
        # Read and written: once by the copy, twice by the products.
        copied, changed = 2 * self.source.nbytes, 4 * self.source.nbytes
        copy_rate = copied / (copy_row["median_ms"] * 1e6)
        in_place_rate = changed / (in_place_row["median_ms"] * 1e6)
        for row, contender in zip(rows, chosen, strict=True):
            moved = contender.bytes_an_element * self.problem.elements
            states = state_bytes(optimizers[contender.key])
            row.update(
                name=contender.name,
                contender=contender.key,
                version=version(contender),
                bytes_moved=moved,
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


def check_all(keys: Sequence[str], device: torch.device) -> tuple[dict[str, Row], Absences, list]:
    """Check every contender on a small problem.

    Returns:
        What was found of those that passed, the reasons of the others, and the names of ours among
        those that failed.
    """
    found, absent, failed = {}, {}, []
    for key in keys:
        contender = CONTENDERS[key]
        if device.type not in contender.devices:
            absent[contender.name] = f"runs on {', '.join(contender.devices)}"
            continue
        try:
            found[key] = adamw_check.check(contender, device)
        except NotMeasured as error:
            absent[contender.name] = str(error)
        except AssertionError as error:
            absent[contender.name] = f"wrong, so not timed: {error}"
            if contender.is_ours:
                failed.append(contender.name)
    return found, absent, failed


def beside(contender: Contender, checks: dict[str, Row]) -> list[Contender]:
    """Whom a contender alternates with on models' lists."""
    is_alone = contender.key in (BASE, HUNGRY) or BASE not in checks
    return [] if is_alone else [CONTENDERS[BASE]]


def measure_list(
    name: str, options: argparse.Namespace, checks: dict[str, Row]
) -> tuple[list[Row], Absences]:
    """All contenders on one list of parameters, together as the top of the file says."""
    problem = Problem(shapes_of(name, options.elements), torch.device(options.device))
    measurement = Measurement(name, problem, options.runs)
    chosen = [CONTENDERS[key] for key in checks]
    groups = (
        [chosen]
        if name == FLAT
        else [[*beside(contender, checks), contender] for contender in chosen]
    )
    rows, absent = [], {}
    total = (sum(map(len, groups)) + 2 * len(groups)) * (options.runs + 1)
    with tqdm(total=total, desc=name, unit=" runs", leave=False) as bar:
        for group in groups:
            new, missing = measurement.measure(group, checks, bar.update)
            # A companion has its row from the group that is its own.
            rows += [row for row in new if name == FLAT or row["contender"] == group[-1].key]
            absent |= missing
            if options.device == "cuda":
                torch.cuda.empty_cache()
    base = next((row for row in rows if row["contender"] == BASE), None)
    for row in rows:
        row["times_torch_fused"] = None
        if base is row:
            row["times_torch_fused"] = 1.0
        elif base is not None:
            by_copy = row["ratio_to_copy"] / base["ratio_to_copy"]
            row["times_torch_fused"] = 1 / row.get(f"ratio_to_{BASE}", by_copy)
    return rows, absent


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="without options: " + "; ".join(f"{k}: {v}" for k, v in DEFAULTS.items()),
    )
    parser.add_argument("--lists", nargs="+", choices=LISTS, default=list(LISTS))
    parser.add_argument("--elements", type=int, default=1 << 26, help="of the flat slice")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--runs", type=int, help="timed runs of each contender")
    parser.add_argument("--device", choices=DEFAULTS, help="CUDA where there is one, else the CPU")
    parser.add_argument("--save", action="store_true", help="write to results/ in any case")
    parser.add_argument(
        "--quick", action="store_true", help="a small flat slice, and no peer that compiles first"
    )
    return parser


def plan(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, with this machine's defaults; ``save`` is whether rows are kept."""
    parser = build_parser()
    options = parser.parse_args(argv)
    options.save |= vars(options) == vars(parser.parse_args([]))
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.runs = options.runs or DEFAULTS[options.device]["runs"]
    if options.quick:
        options.lists, options.elements, options.runs = [FLAT], 1 << 20, 3
        options.contenders = [key for key in options.contenders if key != "deepspeed-cpu"]
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Check, measure, print tables, and save what was measured with the default options."""
    options = plan(argv)
    checks, absent, failed = check_all(options.contenders, torch.device(options.device))
    rows: list[Row] = []
    for name in options.lists if checks else []:
        new, missing = measure_list(name, options, checks)
        print(adamw_report.table(new))
        rows += new
        absent |= missing
    for name, reason in absent.items():
        print(f"{name}: not measured: {reason}")
    if options.save and rows:
        path = harness.write_rows(
            SUBJECT, rows, retain=lambda row: not row["device"].startswith(options.device)
        )
        picture = adamw_report.plot(harness.read_rows(SUBJECT), harness.RESULTS / f"{SUBJECT}.png")
        print(f"rows: {path}\nplot: {picture}")
    if failed:
        raise SystemExit(f"wrong: {', '.join(failed)}")


if __name__ == "__main__":
    main()
