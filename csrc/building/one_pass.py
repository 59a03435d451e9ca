"""One run of ninja for sources that torch's build would compile in several, one after another.

In torch's build flags belong to a whole extension: sources that need flags of their own take a call
of the compiler of their own, and every call ends with a wait for its slowest file. Here the calls
only write their ninja files, as torch writes them, and one file that takes them all in is run.
Objects, flags and the record of what depends on which header stay those of torch's build.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


class OnePass:
    """Calls of torch's compiler that are collected, then run together.

    Args:
        cpp_extension: torch.utils.cpp_extension. Of it one private function is replaced for a
            while; where a later torch has none of that name, each call compiles at once, as before.
        folder: where ninja runs and keeps its records; made where it is absent.
    """

    _RUN = "_run_ninja_build"

    def __init__(self, cpp_extension: ModuleType, folder: Path) -> None:
        self._module, self._folder = cpp_extension, folder
        self._waiting: list[str] = []

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Within it a call of the compiler writes its ninja file and compiles nothing."""
        with self._runs_by(lambda _run, directory, *_args, **_kwargs: self._add(directory)):
            yield

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Within it the next call of the compiler also compiles what was collected."""
        with self._runs_by(self._run_all):
            yield

    def _add(self, directory: str) -> None:
        self._waiting.append(directory)

    def _run_all(self, run: Callable[..., Any], directory: str, *args: Any, **kwargs: Any) -> None:
        directories = [directory, *self._waiting]
        self._waiting.clear()
        lines = [f"subninja {_escaped(str(Path(one, 'build.ninja')))}" for one in directories]
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "build.ninja").write_text("\n".join(lines) + "\n")
        run(str(self._folder), *args, **kwargs)

    @contextlib.contextmanager
    def _runs_by(self, instead: Callable[..., None]) -> Iterator[None]:
        original = getattr(self._module, self._RUN, None)
        if original is None:
            yield
            return
        setattr(
            self._module,
            self._RUN,
            lambda directory, *args, **kwargs: instead(original, directory, *args, **kwargs),
        )
        try:
            yield
        finally:
            setattr(self._module, self._RUN, original)


def _escaped(path: str) -> str:
    """A path as ninja reads it."""
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
