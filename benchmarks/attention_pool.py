"""Time and memory of ``clipfast.AttentionPool2d``, forward and backward, against its peers.

Timed: from a feature map in channels_last to the pooled features, and back from a fixed gradient of
those to the gradients of the map and of all parameters. All contenders hold the same weights:

    clipfast      one query, absorbed into the keys' and values' weights
    OpenCLIP      its module: every token asks, and row 0 is taken
    OpenAI's form the same computation as first released, through torch's multi-head attention
    one query     the usual form with one query: keys and values of all tokens

Before anything is timed, each contender's output and gradients are compared with the usual form in
float64; what is off by more than its arithmetic explains gets no row. The errors are in the rows.
The floor is the time to read the map twice and to write its gradient, from the rate of a large
copy in the same run.

    python benchmarks/attention_pool.py                      what this machine's default is
    python benchmarks/attention_pool.py --pools RN50x64 --batch 32 --dtypes bfloat16

Rows go to ``benchmarks/results/attention_pool.jsonl`` and the plot beside it, under the default
options or with --save; with others, to where --json and --plot say.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.parts.common import harness, peers
from benchmarks.parts.common.contest import Absence, reason_of, require_ours
from benchmarks.parts.common.graphs import recorder_of
from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.plots import plot_rows
from benchmarks.parts.common.rows import RowFile, device_name
from benchmarks.peers import import_open_clip
from clipfast import AttentionPool2d

SUBJECT = "attention_pool"
OURS = "clipfast"
# Side of the map, channels, heads, width of the embedding.
POOLS = {
    "RN50": (7, 2048, 32, 1024),
    "RN50x4": (9, 2560, 40, 640),
    "RN50x16": (12, 3072, 48, 768),
    "RN50x64": (14, 4096, 64, 1024),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULTS = {
    "cpu": {"pools": ["RN50", "RN50x64"], "batch": 16, "runs": 3},
    "cuda": {"pools": list(POOLS), "batch": 256, "runs": 20},
}
COPIED_BYTES = 1 << 28  # more than any cache holds
# Relative L2 errors that arithmetic explains, of any contender.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}

Pool = Callable[[Tensor], Tensor]


def one_query(pool: AttentionPool2d, x: Tensor) -> Tensor:
    """The usual form with one query."""
    t = x.flatten(2).transpose(1, 2)
    t = torch.cat([t.mean(dim=1, keepdim=True), t], dim=1) + pool.positional_embedding
    q, k, v = pool.q_proj(t[:, :1]), pool.k_proj(t), pool.v_proj(t)
    q, k, v = (part.unflatten(2, (pool.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    return pool.c_proj(F.scaled_dot_product_attention(q, k, v).flatten(1))


def every_query(pool: AttentionPool2d, x: Tensor) -> Tensor:
    """OpenAI's form: all tokens ask, the mean token's answer is taken."""
    t = x.flatten(2).permute(2, 0, 1)
    t = torch.cat([t.mean(dim=0, keepdim=True), t]) + pool.positional_embedding[:, None]
    biases = torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias])
    answers, _ = F.multi_head_attention_forward(
        t, t, t, pool.embed_dim, pool.num_heads, None, biases, None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, need_weights=False, use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    return answers[0]


class Problem:
    """One pool's weights, a feature map and a gradient of the output."""

    def __init__(self, name: str, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        side, channels, heads, width = POOLS[name]
        torch.manual_seed(0)
        self.name, self.batch, self.dtype, self.device = name, batch, dtype, device
        self.shape = (side, channels, heads, width)
        self.pool = AttentionPool2d(*self.shape).to(device, dtype)
        # Rectified, like what the tower's last block gives.
        x = torch.randn(batch, channels, side, side, device=device).relu().to(dtype)
        self.x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        self.grad = torch.randn(batch, width, device=device).to(dtype)

    def contenders(self) -> tuple[dict[str, tuple[torch.nn.Module, Pool]], list[Absence]]:
        """The module whose gradients are taken and its forward pass, by name; who is missing."""
        absent = []
        side, channels, heads, width = self.shape
        found: dict[str, tuple[torch.nn.Module, Pool]] = {OURS: (self.pool, self.pool)}
        try:
            theirs = import_open_clip().modified_resnet.AttentionPool2d(
                side, channels, heads, width
            )
            theirs.to(self.device, self.dtype).load_state_dict(self.pool.state_dict())
            found[f"OpenCLIP {peers.open_clip_version()}"] = (theirs, theirs)
        except ImportError as error:
            absent.append(Absence("OpenCLIP", reason_of(error), is_ours=False))
        found["OpenAI's form"] = (self.pool, lambda x: every_query(self.pool, x))
        found["one query"] = (self.pool, lambda x: one_query(self.pool, x))
        return found, absent

    def step(self, module: torch.nn.Module, forward: Pool) -> list[Tensor]:
        """The output and the gradients, those of the parameters in the order of their names."""
        parameters = [parameter for _, parameter in sorted(module.named_parameters())]
        out = forward(self.x)
        return [out.detach(), *torch.autograd.grad(out, [self.x, *parameters], self.grad)]

    def truth(self) -> list[Tensor]:
        """The same in float64, by the usual form."""
        wide = AttentionPool2d(*self.shape).to(self.device, torch.float64)
        wide.load_state_dict(self.pool.state_dict())
        x = self.x.detach().double().requires_grad_()
        out = one_query(wide, x)
        parameters = [parameter for _, parameter in sorted(wide.named_parameters())]
        return [
            out.detach(),
            *torch.autograd.grad(out, [x, *parameters], self.grad.double()),
        ]

    def error(self, got: list[Tensor], truth: list[Tensor]) -> float:
        """The largest relative L2 error; the key bias's is taken by the query bias's gradient."""
        names = ["out", "x", *sorted(name for name, _ in self.pool.named_parameters())]
        sizes = dict(zip(names, truth, strict=True))
        sizes["k_proj.bias"] = sizes["q_proj.bias"]
        errors = [
            float((one.double() - true).norm() / sizes[name].norm())
            for name, one, true in zip(names, got, truth, strict=True)
        ]
        return max(errors)


def measure_floor(problem: Problem, runs: int) -> float:
    """Milliseconds to read the map twice and write its gradient, at the rate of a large copy."""
    source = torch.randn(COPIED_BYTES // 4, device=problem.device)
    target = torch.empty_like(source)
    row = harness.measure(
        "copy",
        lambda: target.copy_(source),
        check=lambda: torch.equal(target.copy_(source), source),
        device=problem.device,
        runs=max(runs, 10),
        memory=False,
    )
    return row["median_ms"] * 3 * problem.x.nbytes / (2 * source.nbytes)


def check_all(
    problem: Problem,
) -> tuple[dict[str, Callable[[], object]], dict[str, float], list[Absence]]:
    """What is to be timed, and its errors, by name; and the contenders that fail or are wrong."""
    contenders, absent = problem.contenders()
    truth, limit = problem.truth(), TOLERANCE[problem.dtype]
    steps: dict[str, Callable[[], object]] = {}
    errors = {}
    for name, contender in contenders.items():
        try:
            error = problem.error(problem.step(*contender), truth)
            if not error <= limit:
                raise harness.CheckFailed(f"error {error:.1e}; at most {limit:.0e} is right")
            errors[name] = error
            steps[name] = lambda c=contender: problem.step(*c)
        except Exception as error:  # a failure is a line of the report, whatever it is
            absent.append(Absence(name, reason_of(error), is_ours=name == OURS))
    return steps, errors, absent


def measure_problem(
    problem: Problem, runs: int, tick: Callable[[], object]
) -> tuple[list[harness.Row], list[Absence]]:
    """Check all contenders on one pool, time those that pass."""
    steps, errors, absent = check_all(problem)
    if not steps:
        return [], absent
    floor = measure_floor(problem, runs)
    side, channels, heads, width = problem.shape
    rows = harness.measure_together(
        steps,
        check=lambda: True,  # each has passed its own
        device=problem.device,
        warmup=1 if problem.device.type == "cpu" else 3,
        runs=runs,
        items=problem.batch,
        after_run=tick,
        record=recorder_of(problem.device),
        pool=problem.name,
        batch=problem.batch,
        dtype=str(problem.dtype).removeprefix("torch."),
        tokens=side * side,
        channels=channels,
        heads=heads,
        width=width,
        threads=torch.get_num_threads(),
    )
    for row in rows:
        row["error"] = errors[row.get("replay_of", row["name"])]
        row["floor_ms"] = floor
        row["ratio_to_floor"] = row["median_ms"] / floor
        row["case"] = f"{row['pool']} {row['dtype']}"
    return rows, absent


def print_table(rows: list[harness.Row]) -> None:
    """One line per contender."""
    for row in rows:
        memory = row["peak_extra_bytes"]
        told = "-" if memory is None else f"{memory / 2**20:,.0f} MiB"
        faster = row.get("ratio_to_clipfast")
        ratio = "" if faster is None else f"clipfast {faster:.1f}x faster"
        print(
            f"  {row['name']:16} {row['median_ms']:10.2f} ms  {row['ratio_to_floor']:8.1f}x floor "
            f"{told:>12}  error {row['error']:.1e}  {ratio}"
        )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--pools", nargs="+", choices=POOLS, help="models whose pool is timed")
    parser.add_argument("--batch", type=int, help="samples")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="of maps and weights")
    add_run_options(parser, DEFAULTS, save="write to results/, beside the rows of other cases")
    return parser


def default_dtypes(device: str) -> list[str]:
    """float32, and bfloat16 where the processor has instructions for it."""
    if device == "cuda":
        return ["bfloat16", "float32"]
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ["float32"] + ["bfloat16"] * has_bfloat16


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every pool, print tables, and save what was measured."""
    options = parse(build_parser(), argv, DEFAULTS)
    device = torch.device(options.device)
    dtypes = options.dtypes or default_dtypes(options.device)
    cases = [(pool, dtype) for pool in options.pools for dtype in dtypes]
    rows, absent = RowFile(SUBJECT, options, case_of), []
    for number, (pool, dtype) in enumerate(cases, 1):
        title = f"{pool}, {dtype}, batch {options.batch}, {options.device}"
        problem = Problem(pool, options.batch, DTYPES[dtype], device)
        with tqdm(desc=f"case {number}/{len(cases)}: {title}", unit=" runs", leave=False) as bar:
            new, missing = measure_problem(problem, options.runs, lambda bar=bar: bar.update(1))
        rows.add(new)
        told = f": x twice and dx once takes {new[0]['floor_ms']:.2f} ms" if new else ""
        print(title + told)
        print_table(new)
        for absence in missing:
            print(f"  {absence.name}: {absence.reason}")
        absent += [replace(one, name=f"{one.name} on {pool}, {dtype}") for one in missing]
    rows.finish(plot)
    require_ours(absent)


def case_of(row: harness.Row) -> tuple:
    """What rows of one case have in common, and no others."""
    return row["pool"], row["batch"], row["dtype"]


def plot(rows: Sequence[harness.Row], path: Path) -> Path:
    """Draw one bar per contender and pool."""
    places = dict.fromkeys(f"batch {row['batch']}, {device_name(row)}" for row in rows)
    if len(places) > 1:
        rows = [
            {**row, "case": f"{row['case']}, batch {row['batch']}, {device_name(row)}"}
            for row in rows
        ]
    return plot_rows(
        rows,
        path,
        title="Attention pooling" + (f", {next(iter(places))}" if len(places) == 1 else ""),
        group="case",
        unit="samples per second",
    )


if __name__ == "__main__":
    main()
