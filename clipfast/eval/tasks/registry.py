"""Tasks by name, as ``--eval.tasks`` asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clipfast.eval.evaluation import Evaluation
from clipfast.eval.registry import EvaluationData, build_evaluations, list_evaluations
from clipfast.eval.tasks.asked import Asked, TaskOptions
from clipfast.eval.tasks.fewshot import FewShotTask
from clipfast.eval.tasks.probe import ProbeTask
from clipfast.eval.tasks.retrieval import RetrievalTask
from clipfast.eval.tasks.task import SetTask
from clipfast.eval.tasks.zeroshot import ZeroShotTask
from clipfast.names import did_you_mean

_BUILDERS: dict[str, Callable[[Sequence[Asked], TaskOptions], Evaluation]] = {
    task.name: task for task in (ZeroShotTask, RetrievalTask, ProbeTask, FewShotTask)
}


def register_task(name: str, build: Callable[[Sequence[Asked], TaskOptions], Evaluation]) -> None:
    """Make a task known, for ``--eval.tasks NAME=SET``.

    Args:
        name: how it is asked for.
        build: makes one evaluation of all sets that are asked for; a subclass of ``SetTask`` will
            do.

    Raises:
        ValueError: the name is taken.
    """
    if name in _BUILDERS:
        raise ValueError(f"there is a task {name!r} already: give yours another name")
    _BUILDERS[name] = build


def list_tasks() -> list[str]:
    """Names that ``--eval.tasks`` takes before a set."""
    return list(_BUILDERS)


def build_tasks(
    values: Sequence[str], options: TaskOptions, data: EvaluationData
) -> dict[str, Evaluation]:
    """The evaluations that ``--eval.tasks`` asks for, in the order of their first set.

    Args:
        values: each ``TASK=SET``, ``TASK:NAME=SET``, or the name of a registered evaluation.
        options: of all sets.
        data: of the run, for registered evaluations.

    Returns:
        Evaluations by task.

    Raises:
        ValueError: see ``SetTask``; or a name that nothing was registered for, or an option of a
            set that is not there.
    """
    asked = [Asked.parse(value) for value in values]
    for one in asked:
        _check_name(one)
    built: dict[str, Evaluation] = {}
    for task in dict.fromkeys(one.task for one in asked):
        mine = [one for one in asked if one.task == task]
        if not mine[0].source:
            built |= build_evaluations([task], data)
        else:
            built[task] = _BUILDERS[task](mine, options)
    _check_sets(options, built)
    return built


def _check_name(one: Asked) -> None:
    if not one.source:
        if one.task in list_evaluations():
            return
        if one.task in _BUILDERS:
            raise ValueError(
                f"--eval.tasks {one}: say what it is measured on, {one.task}=SET, such as "
                f"{one.task}=cifar10:FOLDER"
            )
    if one.task in _BUILDERS:
        return
    known = [f"{name}=SET" for name in _BUILDERS] + list_evaluations()
    hint = did_you_mean(one.task, [*_BUILDERS, *list_evaluations()])
    raise ValueError(f"--eval.tasks {one}: no such task.{hint} Known: {', '.join(known)}")


def _check_sets(options: TaskOptions, built: dict[str, Evaluation]) -> None:
    """Refuse what is said of a set that no task has."""
    tasks = [task for task in built.values() if isinstance(task, SetTask)]
    if len(tasks) < len(built):
        # Somebody else's task may have sets that are not known here.
        return
    there = {label: None for task in tasks for label in task.sets}
    for option, said in options.of_sets().items():
        for name in said:
            if name not in there:
                raise ValueError(
                    f"{option} {name}: no set of --eval.tasks has this name; there are "
                    f"{', '.join(there) or 'none'}"
                )
