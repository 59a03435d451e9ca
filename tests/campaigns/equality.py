"""The same five steps on 1, 2 and 4 ranks, whole or in micro-batches, at every ZeRO stage, in fp32
and bf16: their weights against those of one plain process; ten minutes on two cores.

    python -m tests.campaigns.equality                # the whole matrix
    python -m tests.campaigns.equality --ranks 2      # a part of it
"""

import argparse
import itertools
import sys

from tests.engine.equality import Case, all_changes, distance, truth_of
from tests.engine.launching import free_port
from tests.ranks import run_ranks

MODELS = ("ViT", "RN bn-batch", "RN sync-bn")
PRECISIONS = ("fp32", "bf16")
MICRO_BATCHES = (1, 4)


def matrix(models: tuple[str, ...] = MODELS) -> list[Case]:
    """Every case of one number of ranks; those in micro-batches at stages 1 and 2 keep graphs."""
    return [
        Case(model, precision, stage, k, keep_graphs=2 if k > 1 and stage in (1, 2) else 0)
        for model, precision, k, stage in itertools.product(
            models, PRECISIONS, MICRO_BATCHES, range(4)
        )
    ]


def main() -> None:
    """Print the matrix.

    Raises:
        SystemExit: with status 1 where a case is further from the truth than its bound.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    options = parser.parse_args()
    cases = matrix(tuple(options.models))
    print("Furthest weight or statistic from one plain process's after 5 steps, by the largest")
    print("change; * where that is more than the bound. k: micro-batches per rank.\n")
    heads = ("model", "precision", "k", "bound", "ranks", *(f"ZeRO {s}" for s in range(4)))
    print("| " + " | ".join(heads) + " |")
    print("| --- " * len(heads) + "|")
    failed = 0
    for ranks in options.ranks:
        by_rank = run_ranks(ranks, all_changes, cases, free_port())
        for start in range(0, len(cases), 4):
            case = cases[start]
            truth = truth_of(case)
            cells = []
            for at in range(start, start + 4):
                # On every rank: they must agree with each other too.
                far = max(distance(found[at], truth.change) for found in by_rank)
                failed += far > truth.bound
                cells.append(f"{far:.1e}{'*' * (far > truth.bound)}")
            k = "1" if case.micro_batches == 1 else str(case.micro_batches)
            row = (case.model, case.precision, k, f"{truth.bound:.1e}", str(ranks), *cells)
            print("| " + " | ".join(row) + " |", flush=True)
    print(f"\n{len(cases) * len(options.ranks)} cases, {failed} beyond their bound")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
