"""Tasks that are measured on data sets while a model trains: ``--eval.tasks TASK=SET``."""

from clipfast.eval.tasks.asked import Asked, TaskOptions
from clipfast.eval.tasks.registry import build_tasks, list_tasks, register_task
from clipfast.eval.tasks.task import Found, SetMeasured, SetTask

__all__ = [
    "Asked",
    "Found",
    "SetMeasured",
    "SetTask",
    "TaskOptions",
    "build_tasks",
    "list_tasks",
    "register_task",
]
