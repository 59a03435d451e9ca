"""The evaluations of a run: refused before it is built, run while it trains, drawn at its end."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipfast.engine.agreement import all_or_none, ranks_of, require_same
from clipfast.engine.config import Config, ConfigError, DataConfig
from clipfast.engine.encoder import RunData, RunEncoder
from clipfast.engine.plan import RunPlan
from clipfast.eval import Evaluation, EvaluationData, Measured
from clipfast.eval.registry import build_evaluations
from clipfast.eval.tasks import SetMeasured, SetTask, TaskOptions, build_tasks

_log = logging.getLogger(__name__)


class Evaluations:
    """All that ``--eval.names`` and ``--eval.tasks`` ask for.

    Args:
        plan: of the run.

    Raises:
        ConfigError: a name is unknown, an evaluation refuses the run's data, or a set of a task
            cannot be read or is another one on another rank.
    """

    def __init__(self, plan: RunPlan) -> None:
        data = plan.config.data
        self._plan = plan
        # Random pairs teach nothing that could be measured.
        wanted = plan.config.eval.names if data.synthetic is None else ()
        try:
            self._by_name: Mapping[str, Evaluation] = build_evaluations(
                wanted, _evaluation_data(data)
            )
            for evaluation in self._by_name.values():
                evaluation.check(RunData(plan, ranks_of(plan.process)))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if plan.config.eval.tasks and data.synthetic is None:
            tasks = all_or_none(plan.process, lambda: _tasks(plan))
            facts = [task.facts() for task in tasks.values() if isinstance(task, SetTask)]
            require_same(plan.process, {name: was for one in facts for name, was in one.items()})
            self._by_name = _joined(self._by_name, tasks)

    def run(
        self,
        engine: Any,
        on_measured: Callable[[Measured], None],
        between: Callable[[], None] = lambda: None,
    ) -> dict[str, Sequence[Measured]]:
        """Measure all, one after the other; a collective.

        Args:
            engine: the DeepSpeed engine; it comes back in the mode it was in.
            on_measured: called with each set's result.
            between: called by every rank before each batch; what it raises ends the evaluation.

        Returns:
            The results of each evaluation, the same on every rank.
        """
        was_training = engine.module.training
        engine.eval()
        measured = {}
        try:
            for name, evaluation in self._by_name.items():
                measured[name] = evaluation.run(RunEncoder(engine, self._plan, between))
                for entry in measured[name]:
                    on_measured(entry)
        finally:
            engine.train(was_training)
        return measured

    def summary(self, measured: Mapping[str, Sequence[Measured]]) -> list[str]:
        """Lines for the end of a run."""
        return [
            line
            for name, entries in measured.items()
            for line in self._by_name[name].summary(entries)
        ]

    def below_floors(self, measured: Mapping[str, Sequence[Measured]]) -> list[str]:
        """A line for each scalar that ``--eval.floors`` asks more of; empty where all is well."""
        scalars = {
            name: value
            for entries in measured.values()
            for entry in entries
            for name, value in entry.scalars.items()
        }
        lines = []
        if self._plan.config.data.synthetic is not None:
            return []
        for given, floor in self._plan.config.eval.floors.items():
            name = self._scalar(given)
            if name not in scalars:
                known = ", ".join(scalars) or "nothing"
                lines.append(f"--eval.floors {name}: not measured; there are {known}")
            # A value that is no number reaches no floor.
            elif not scalars[name] >= floor:
                lines.append(f"{name} is {scalars[name]:.3f}, below its floor of {floor:g}")
        return lines

    def _scalar(self, name: str) -> str:
        """A scalar's name, where a floor still has the pattern in the place of the set's name."""
        for source, pattern in self._plan.config.data.eval_sources.items():
            old, new = f"eval/{pattern}/", f"eval/{source}/"
            if name.startswith(old) and old != new:
                _log.warning("%s is now %s; the old name goes in version 0.3", old, new)
                return new + name.removeprefix(old)
        return name

    def draw(
        self,
        measured: Mapping[str, Sequence[Measured]],
        folder: Path,
        *,
        tasks_alone: bool = False,
    ) -> list[Path]:
        """Draw NAME.png for every evaluation that has a picture.

        Args:
            measured: as ``run`` gave it.
            folder: where the pictures go.
            tasks_alone: those of ``--eval.tasks``.

        Returns:
            Their paths.
        """
        paths = {
            name: folder / f"{name}.png"
            for name in measured
            if not tasks_alone or isinstance(self._by_name[name], SetTask)
        }
        return [
            path for name, path in paths.items() if self._by_name[name].figure(measured[name], path)
        ]

    def write(self, measured: Mapping[str, Sequence[Measured]]) -> list[Path]:
        """Write a result for each set of ``--eval.tasks``, as ``python -m clipfast.eval`` does.

        Args:
            measured: as ``run`` gave it.

        Returns:
            Their paths, in ``results/`` of the run's folder.

        Raises:
            OSError: one cannot be written.
        """
        folder, model = self._plan.folder, self._plan.architecture.name
        return [
            entry.write(folder / "results", model, str(folder))
            for entries in measured.values()
            for entry in entries
            if isinstance(entry, SetMeasured)
        ]


def _tasks(plan: RunPlan) -> dict[str, Evaluation]:
    config: Config = plan.config
    asked = config.eval
    options = TaskOptions(asked.limit, asked.classnames, asked.templates, asked.splits, asked.shots)
    tasks = build_tasks(asked.tasks, options, _evaluation_data(config.data))
    for task in tasks.values():
        task.check(RunData(plan))
    return tasks


def _joined(
    evaluations: Mapping[str, Evaluation], tasks: Mapping[str, Evaluation]
) -> dict[str, Evaluation]:
    """Both by their names; one that is named twice counts once."""
    joined = dict(evaluations)
    for name, task in tasks.items():
        if isinstance(task, SetTask) and name in joined:
            name = f"{name}-tasks"
        joined.setdefault(name, task)
    return joined


def _evaluation_data(data: DataConfig) -> EvaluationData:
    sources = data.eval_sources
    names = {pattern: name for name, pattern in sources.items()}
    return EvaluationData(tuple(sources), tuple(names.get(p, p) for p in data.train_patterns))
