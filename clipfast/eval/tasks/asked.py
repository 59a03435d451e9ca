"""What ``--eval.tasks`` asks for, and what is said of all its sets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_HEAD = re.compile(r"([A-Za-z][\w-]*)(?::([\w./-]+))?")
_FORM = "expected TASK=SET or TASK:NAME=SET, such as zeroshot=cifar10:FOLDER"


@dataclass(frozen=True)
class Asked:
    """A task, and the set that it is measured on.

    Attributes:
        task: such as "zeroshot".
        name: that the set is to have in tags and tables; empty: its own.
        source: the set, as ``open_set`` or ``open_captions`` takes it; empty: an evaluation that
            brings its own data.
    """

    task: str
    name: str
    source: str

    def __str__(self) -> str:
        head = f"{self.task}:{self.name}" if self.name else self.task
        return f"{head}={self.source}" if self.source else head

    @classmethod
    def parse(cls, value: str) -> Asked:
        """Read one word.

        Args:
            value: ``TASK=SET``, ``TASK:NAME=SET``, or the name of a registered evaluation.

        Raises:
            ValueError: it is none of these.
        """
        head, equals, source = value.partition("=")
        found = _HEAD.fullmatch(head)
        if found is None or (equals and not source) or (found[2] and not equals):
            raise ValueError(f"--eval.tasks {value}: {_FORM}")
        return cls(found[1], found[2] or "", source)


@dataclass(frozen=True)
class TaskOptions:
    """What is said of the sets of all tasks.

    Attributes:
        limit: images of a split that are looked at, at most, drawn once; 0: all.
        classnames: by a set's name, a file or list of class names.
        templates: by a set's name, a file or list of prompts.
        splits: by a set's name, the split that is measured; "test" elsewhere.
        shots: images per class of few-shot probes.
        seeds: of their draws.
    """

    limit: int = 0
    classnames: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    shots: Sequence[int] = (1, 4, 16)
    seeds: Sequence[int] = (0,)

    def of_sets(self) -> dict[str, Mapping[str, str]]:
        """What is said of single sets, by its option."""
        return {
            "--eval.classnames": self.classnames,
            "--eval.templates": self.templates,
            "--eval.splits": self.splits,
        }
