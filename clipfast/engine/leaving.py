"""What a finished run draws and writes of its last evaluation. Rank 0 alone acts."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipfast.engine.evaluate import Evaluations
from clipfast.engine.metrics import Metrics
from clipfast.engine.plan import RunPlan
from clipfast.engine.rows import read_rows
from clipfast.eval import Measured
from clipfast.eval.curves import curves_figure
from clipfast.files import explain

_Found = Mapping[str, Sequence[Measured]]


def draw_pictures(
    plan: RunPlan, evaluations: Evaluations, measured: _Found, metrics: Metrics, step: int
) -> list[Path]:
    """Pictures for ``--logging.figures`` and the services; one that cannot be written costs no more
    than itself.

    Args:
        plan: of the run.
        evaluations: that measured.
        measured: at the end.
        metrics: of the run.
        step: its last.

    Returns:
        Paths of those that stay.
    """
    name = plan.config.logging.figures
    if not plan.process.is_main:
        return []
    with tempfile.TemporaryDirectory(prefix="clipfast-pictures-") as beside:
        folder = Path(name or beside)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths = evaluations.draw(measured, folder, tasks_alone=not name)
            metrics.show(step, paths)
            if not name:
                return []
            curves = folder / "curves.png"
            curves_figure(read_rows(plan.folder / "metrics.jsonl"), curves)
        except OSError as error:
            metrics.say(f"No pictures: {explain(error, folder)}")
            return []
    return [*paths, curves]


def write_results(
    plan: RunPlan, evaluations: Evaluations, measured: _Found, metrics: Metrics
) -> list[Path]:
    """Results of ``--eval.tasks``. What cannot be written can be measured again from the weights.

    Args:
        plan: of the run.
        evaluations: that measured.
        measured: at the end.
        metrics: of the run.

    Returns:
        Their paths.
    """
    if not plan.process.is_main:
        return []
    try:
        return evaluations.write(measured)
    except (OSError, ValueError) as error:
        why = explain(error, plan.folder) if isinstance(error, OSError) else error
        metrics.say(f"No results: {why}")
        return []
