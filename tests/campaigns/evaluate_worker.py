"""Builds a run and evaluates it many times without training; prints the number of each evaluation.

python evaluate_worker.py RECIPE COUNT OPTION...
"""

import runpy
import sys


def main() -> None:
    """Evaluate."""
    recipe, count, *options = sys.argv[1:]
    configuration = runpy.run_path(recipe)["config"]()
    from clipfast.engine.cli import parse
    from clipfast.engine.evaluate import Evaluations
    from clipfast.engine.launch import current_process, start
    from clipfast.engine.plan import decide
    from clipfast.engine.trainer import Trainer

    process = current_process()
    start(process)
    trainer = Trainer(decide(parse(configuration, options), process))
    evaluations = Evaluations(trainer.plan)
    for number in range(1, int(count) + 1):
        evaluations.run(trainer.engine, lambda measured: None)
        print(f"evaluation {number}", flush=True)


if __name__ == "__main__":
    main()
