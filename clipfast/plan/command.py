"""The command: a recipe's options, and those of the machine that it is planned for."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from clipfast.engine.cli import parse
from clipfast.engine.config import ConfigError
from clipfast.engine.environment import processes_claimed
from clipfast.engine.recipes import read_recipe
from clipfast.files import explain, write_whole
from clipfast.plan.check import check, check_table
from clipfast.plan.data import contents
from clipfast.plan.machines import CPU, MACHINES, Machine, machine_of
from clipfast.plan.measured import ClockName, MeasuredRates, measure
from clipfast.plan.memory import choose_mode
from clipfast.plan.planning import Planned, plan_run
from clipfast.plan.question import PAIRS, UTILISATION, Question, decided
from clipfast.plan.rates import Rates
from clipfast.plan.record import record
from clipfast.plan.report import report
from clipfast.plan.supply import DECODED_PER_CORE, KILOBYTES

_EPILOG = """Every option of the recipe means what it means to a run: --model.recompute full,
--zero-stage 2, --micro-batch 32, --precision bf16, --optimizer.stats fp16, --data.train SHARDS.
What each number counts, and its sources: docs/planning.md"""


def build_parser() -> argparse.ArgumentParser:
    """The planner's own options."""
    parser = argparse.ArgumentParser(
        prog="python -m clipfast.plan",
        description="What a recipe's run will need: memory, time, data, bytes on the wire.",
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="its file, such as recipes/rn50x64.py")
    parser.add_argument("--gpus", type=_count, help="how many; default: those launched, or 1")
    parser.add_argument("--gpu", help=f"{', '.join([*MACHINES, CPU])}; default: what is here")
    parser.add_argument("--gpus-per-node", type=_count, help="of a server; default: 8")
    parser.add_argument(
        "--network-gbit", type=_positive, help="Gbit/s of a server to the others, one direction"
    )
    parser.add_argument(
        "--utilisation",
        type=_share,
        default=UTILISATION,
        help=f"share of the card's peak that the towers reach; default: {UTILISATION}",
    )
    parser.add_argument(
        "--pairs", type=_count, help=f"of an epoch; default: the shards', or {PAIRS}"
    )
    parser.add_argument("--caption-tokens", type=_count, help="of a caption; default: the shards'")
    parser.add_argument(
        "--image-kb", type=_positive, help=f"kB of a pair; default: the shards', or {KILOBYTES:g}"
    )
    parser.add_argument(
        "--decode-rate",
        type=_positive,
        default=DECODED_PER_CORE,
        help=f"images/s that a core decodes; default: {DECODED_PER_CORE:g}",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="with --gpu cpu and --data.train synthetic: take some steps and compare",
    )
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: seconds of this machine's processors, which other programs do not lengthen",
    )
    parser.add_argument("--json", help="write the plan to this file too")
    parser.add_argument("--plot", help="draw the run over 1 to 4,096 GPUs to this file")
    return parser


def run(arguments: Sequence[str] | None = None) -> int:
    """Plan, print and write.

    Args:
        arguments: without the program's name; None takes ``sys.argv``.

    Returns:
        0; 1 where the run does not fit; 2 for options that cannot work.
    """
    options, rest = build_parser().parse_known_args(arguments)
    try:
        question = _question(options, rest)
        if options.check:
            print("\n".join(check_table([check(question, options.clock)], options.clock)))
            return 0
        planned = plan_run(question, _rates(question, options.clock))
        print("\n".join(report(planned)))
        _write(options, planned)
    except (ConfigError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    assert planned.memory is not None
    return 0 if planned.memory.fits else 1


def _rates(question: Question, clock: ClockName) -> Rates | None:
    """Of a CPU what is measured now; None for the stated ones of a card."""
    if question.machine.gpu is not None:
        return None
    return MeasuredRates(measure(choose_mode(question, decided(question)[0]), clock))


def _write(options: argparse.Namespace, planned: Planned) -> None:
    for path in (options.json, options.plot):
        try:
            if path and path == options.json:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_whole(Path(path), json.dumps(record(planned), indent=1).encode())
            elif path:
                from clipfast.plan.plot import plot, sweep

                plot(sweep(planned.question), path)
        except OSError as error:
            raise ConfigError(explain(error, path)) from error


def _question(options: argparse.Namespace, rest: list[str]) -> Question:
    config = parse(read_recipe(options.recipe), rest)
    try:
        found = contents(config.data)
    except OSError as error:
        raise ConfigError(str(error)) from error
    tokens = options.caption_tokens or found.caption_tokens
    return Question(
        config=config,
        machine=_machine(options),
        gpus=options.gpus or processes_claimed(),
        caption_tokens=tokens,
        pairs=options.pairs or found.pairs,
        utilisation=options.utilisation,
        kilobytes=options.image_kb or found.kilobytes,
        decoded_per_core=options.decode_rate,
    )


def _machine(options: argparse.Namespace) -> Machine:
    machine = machine_of(options.gpu or _here())
    if machine.gpu is None:
        cores = len(os.sched_getaffinity(0))
        if (options.gpus or processes_claimed()) > cores:
            raise ConfigError(f"--gpu cpu is this machine, whose {cores} cores serve {cores} ranks")
        if options.plot:
            raise ConfigError("--plot draws cards: pass --gpu with one of them")
        return machine
    if options.check:
        raise ConfigError("--check runs on this machine: pass --gpu cpu")
    if options.gpus_per_node:
        machine = replace(machine, per_node=options.gpus_per_node)
    if options.network_gbit:
        machine = replace(machine, outside=options.network_gbit * 1e9 / 8)
    return machine


def _here() -> str:
    """The card of this machine.

    Raises:
        ConfigError: it is none of those that are known.
    """
    if not torch.cuda.is_available():
        return CPU
    name = torch.cuda.get_device_name()
    total = torch.cuda.get_device_properties(0).total_memory
    for key, machine in MACHINES.items():
        assert machine.gpu is not None
        kind = key.partition("-")[0].upper()
        if kind in name and abs(machine.gpu.memory - total) < 0.1 * total:
            return key
    raise ConfigError(f"this machine's {name} is no card that is known: pass --gpu")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a whole number above 0, got {text}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number above 0, got {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a share above 0 and up to 1, got {text}")
    return value
