"""What the planner says of this machine, against runs of it: memory of a rank, and time of a step.

    python -m tests.campaigns.plan_check                # on a quiet machine, by the clock
    python -m tests.campaigns.plan_check --clock cpu    # beside others, by processor time

Operators are timed by themselves in processes of their own, and the step that is checked is not
among what a plan is made of. A step whose loss is no number ends the check. Prints a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from clipfast.engine import Config, DataConfig, ModelOptions, ZeroConfig
from clipfast.plan.check import Check, check, check_table
from clipfast.plan.machines import THIS_CPU
from clipfast.plan.question import Question

_TOKENS = 22  # a caption's of --data.train synthetic, a tenth added

# Model, batch, ranks, micro-batch, ZeRO stage, recomputation.
Case = tuple[str, int, int, int | None, int, str]
CASES: tuple[Case, ...] = (
    ("RN-tiny", 64, 1, None, 0, "none"),
    ("RN-tiny", 64, 1, 16, 0, "none"),
    ("RN-tiny", 64, 2, None, 0, "none"),
    ("RN-tiny", 64, 2, None, 1, "none"),
    ("ViT-tiny", 128, 1, None, 0, "none"),
    ("ViT-tiny", 128, 1, None, 0, "selective"),
    ("ViT-tiny", 128, 1, None, 0, "full"),
    ("ViT-tiny", 128, 2, 16, 1, "full"),
    ("ViT-B/32", 16, 1, None, 0, "none"),
    ("ViT-B/32", 16, 1, None, 0, "full"),
    ("ViT-B/32", 32, 2, None, 0, "none"),
    ("ViT-B/32", 32, 2, None, 1, "none"),
    ("RN50", 4, 1, None, 0, "none"),
    ("RN50", 4, 1, None, 0, "selective"),
    ("RN50", 8, 2, None, 1, "none"),
)


def question_of(case: Case) -> Question:
    """What is planned and run.

    Args:
        case: One of `CASES`, or like it.
    """
    model, batch, ranks, micro_batch, stage, recompute = case
    config = Config(
        model=ModelOptions(model, recompute=recompute),  # type: ignore[arg-type]
        data=DataConfig(train=("synthetic",)),
        zero=ZeroConfig(stage),  # type: ignore[arg-type]
        batch_size=batch,
        micro_batch=micro_batch,
    )
    return Question(config, THIS_CPU, ranks, _TOKENS)


def main(argv: Sequence[str] | None = None) -> None:
    """Check every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--models", nargs="*", help="only these")
    options = parser.parse_args(argv)
    done: list[Check] = []
    for case in CASES:
        if options.models and case[0] not in options.models:
            continue
        done.append(check(question_of(case), options.clock))
        print(check_table(done[-1:], options.clock)[-1], flush=True)
    print("\n".join(["", *check_table(done, options.clock)]))
    for name, ratios, most in (
        ("time", [each.time_ratio for each in done], 0.2),
        ("memory", [each.memory_ratio for each in done], 0.1),
    ):
        inside = sum(abs(ratio - 1) <= most for ratio in ratios)
        print(f"{name}: {inside} of {len(ratios)} within {most:.0%}")


if __name__ == "__main__":
    main()
