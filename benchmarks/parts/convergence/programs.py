"""The two programs, each the whole of a process: the demo's engine, and OpenCLIP's train script.

Their first argument is a folder. Before its first step each writes there when it was and how much
of the processor the start had cost; what follows is the training.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.parts.convergence.settings import OURS, STARTED, model_file, recipe
from benchmarks.peers import import_open_clip


def start_of(contender: str) -> list[str]:
    """What starts a contender's program: arguments of Python, before the folder."""
    name = "train_ours" if contender == OURS else "train_theirs"
    return ["-c", f"from benchmarks.parts.convergence.programs import {name}; {name}()"]


def train_ours() -> None:
    """The demo's recipe, its options from the command line."""
    from clipfast.engine import main
    from clipfast.engine.builders import Builders

    folder = _folder()
    build = Builders.engine

    def build_and_note(*parts: Any) -> Any:
        engine = build(*parts)
        _note_start(folder)
        return engine

    main(recipe(), builders=Builders(engine=build_and_note))


def train_theirs() -> None:
    """OpenCLIP's ``open_clip_train.main``, its options from the command line."""
    folder = _folder()
    import_open_clip().add_model_config(model_file(folder))
    from open_clip_train import main as script

    create_loss = script.create_loss

    def create_and_note(options: Any) -> Any:
        _note_start(folder)
        return create_loss(options)

    # The last call before its epochs.
    script.create_loss = create_and_note
    script.main(sys.argv[1:])


def _folder() -> Path:
    return Path(sys.argv.pop(1))


def _note_start(folder: Path) -> None:
    # With the compilers that a first start runs.
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(usage.ru_utime + usage.ru_stime for usage in used)
    times = {"time": time.time(), "cpu_seconds": cpu_seconds}
    (folder / STARTED).write_text(json.dumps(times))
