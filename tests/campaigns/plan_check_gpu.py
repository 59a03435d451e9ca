"""What the planner says of this GPU, against runs of it: memory of a rank, and time of a step.

    python -m tests.campaigns.plan_check_gpu                      # a process for each case
    python -m tests.campaigns.plan_check_gpu --limit 30 --models ViT-B/32

One rank, random pairs. Memory is torch's peak of what is allocated. The plan's time is at the
stated utilisation, so the ratio says what utilisation the run has. Each case runs with blocks
compiled and not: a step of the engine beside that of `benchmarks/step_throughput.py` says what the
rest takes.
A case that fails or takes too long is named, and the others go on.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

from clipfast.engine import Config, DataConfig, ModelOptions, ZeroConfig

# Model, batch, micro-batch, ZeRO stage, recomputation, precision.
Case = tuple[str, int, int | None, int, str, str]
CASES: tuple[Case, ...] = (
    ("ViT-B/32", 512, None, 0, "none", "bf16"),
    ("ViT-B/32", 512, None, 1, "none", "bf16"),
    ("RN50", 256, None, 1, "none", "bf16"),
    ("ViT-B/32", 512, None, 1, "full", "bf16"),
    ("ViT-B/32", 2048, 512, 1, "none", "bf16"),
    ("RN50", 256, None, 1, "full", "bf16"),
    ("ViT-L/14", 128, None, 1, "none", "bf16"),
    ("RN50x64", 24, None, 1, "selective", "bf16"),
    ("ViT-B/32", 512, None, 2, "none", "fp16"),
    ("ViT-B/32", 512, None, 3, "none", "bf16"),
    ("RN50", 1024, 256, 1, "none", "fp32"),
)
_COMPILE = ("none", "blocks")
_TOKENS = 22  # a caption's of --data.train synthetic, a tenth added
# Compiling, choosing kernels and making states; then what is timed.
_WARM, _TIMED = 4, 7


def measure(case: Case, compiled: str) -> dict[str, Any]:
    """Plan a case and run it, in this process."""
    import torch

    from clipfast.engine.builders import Builders
    from clipfast.engine.deepspeed.wrap import set_learning_rate
    from clipfast.engine.launch import current_process, start
    from clipfast.engine.plan import decide
    from clipfast.engine.rank_bytes import rank_bytes
    from clipfast.engine.step import train_step
    from clipfast.plan.machines import MACHINES
    from clipfast.plan.memory import choose_mode
    from clipfast.plan.planning import step_seconds
    from clipfast.plan.question import Question, decided

    model, batch, micro_batch, stage, recompute, precision = case
    config = Config(
        model=ModelOptions(model, recompute=recompute, compile=compiled),  # type: ignore[arg-type]
        data=DataConfig(train=("synthetic",)),
        zero=ZeroConfig(stage),  # type: ignore[arg-type]
        batch_size=batch,
        micro_batch=micro_batch,
        precision=precision,  # type: ignore[arg-type]
    )
    process = current_process()
    plan = decide(config, process)
    need = rank_bytes(plan, _TOKENS)
    name = torch.cuda.get_device_name(process.device)
    has = torch.cuda.get_device_properties(process.device).total_memory
    alike = [m for m in MACHINES.values() if m.gpu and m.gpu.name.partition("-")[0] in name]
    assert alike, f"{name} is no card that plans know: {', '.join(MACHINES)}"
    machine = min(alike, key=lambda each: abs(each.gpu.memory - has) if each.gpu else has)
    question = Question(config, machine, 1, _TOKENS)
    planned = step_seconds(question, choose_mode(question, decided(question)[0]))
    start(process)
    torch.manual_seed(0)
    builders = Builders()
    loader = builders.loader(plan)
    engine = builders.build_engine(plan)
    engine.train()
    set_learning_rate(engine, 1e-4)
    batches, times = iter(loader), []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(_WARM + _TIMED):
        pairs = next(batches)
        torch.cuda.synchronize()
        began = time.perf_counter()
        loss, _ = train_step(engine, pairs, plan.micro_batches, plan.objective)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        assert loss.isfinite(), "a step's loss is no number: its time means nothing"
    return {
        "planned_seconds": planned,
        "seconds": statistics.median(times[_WARM:]),
        "first_seconds": times[0],
        "planned_bytes": need.total,
        "bytes": torch.cuda.max_memory_allocated(),
        "card": name,
    }


def attempt(case: Case, compiled: str, limit: float) -> dict[str, Any] | str:
    """The same in a process of its own, or why there is nothing."""
    given = json.dumps([case, compiled])
    command = [sys.executable, "-m", "tests.campaigns.plan_check_gpu", "--case", given]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"not ended after {limit:.0f} s"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def row(case: Case, compiled: str, found: dict[str, Any] | str) -> str:
    """A line of the table."""
    model, batch, micro_batch, stage, recompute, precision = case
    what = f"{model}, {batch}" + (f" in {micro_batch}s" if micro_batch else "")
    what += f", ZeRO {stage}, recompute {recompute}, {precision}, compiled {compiled}"
    if isinstance(found, str):
        return f"| {what} | {found} |"
    times = [found["planned_seconds"], found["seconds"]]
    sizes = [found["planned_bytes"], found["bytes"]]
    cells = [f"{1e3 * times[0]:.1f}", f"{1e3 * times[1]:.1f}", f"{times[0] / times[1]:.2f}"]
    cells += [f"{found['first_seconds']:.1f}"]
    cells += [f"{sizes[0] / 2**20:.0f}", f"{sizes[1] / 2**20:.0f}", f"{sizes[0] / sizes[1]:.2f}"]
    return "| " + " | ".join([what, *cells, found["card"]]) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    """Check every case and print a line of each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limit", type=float, default=120, help="seconds for a case")
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.case:
        case, compiled = json.loads(options.case)
        print(json.dumps(measure(tuple(case), compiled)))
        return
    heads = ["run", "step planned, ms", "measured", "ratio", "first step, s"]
    print("| " + " | ".join([*heads, "MiB planned", "measured", "ratio", "card"]) + " |")
    for case, compiled in product(CASES, _COMPILE):
        if options.models and case[0] not in options.models:
            continue
        print(row(case, compiled, attempt(case, compiled, options.limit)), flush=True)


if __name__ == "__main__":
    main()
