"""Checkpoints without a training run: two small files in the place of an engine's."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import safetensors.torch
import torch

from clipfast.checkpoint import Manifest
from clipfast.engine.checkpoint import Checkpoints
from clipfast.engine.checkpoint.store import CheckpointStore
from clipfast.engine.deepspeed.files import CheckpointFiles
from tests.engine.plans import plan


class Engine:
    """What is asked of an engine, with two small files of tensors."""

    def __init__(self) -> None:
        self.checkpoint_engine = CheckpointFiles()
        self.contents = self
        self.fails = False
        self.values = torch.arange(5000.0)
        self.loaded: list[str] = []

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        assert not save_latest
        for number in range(2):
            # A step's own name: no two steps have the same file.
            state = {f"weight/{tag[1:13]}[0:5000]": self.values, f"buffer/{number}": torch.ones(1)}
            path = Path(folder, tag, f"rank{number:05d}.safetensors")
            self.checkpoint_engine.save(state, str(path))
            if self.fails:
                self.checkpoint_engine.failed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def state(self) -> dict:
        return {"counters": {}}

    def load_folder(self, folder: Path, files: Iterable[str], state: dict) -> list[str]:
        for name in files:
            assert len(safetensors.torch.load_file(folder / name)) == 2
        self.loaded.append(folder.name)
        return []


def checkpoints(
    folder: Path,
    keep: int = 2,
    run: str = "a-run",
    keep_every: int = 0,
    store: CheckpointStore | None = None,
    **options,
) -> Checkpoints:
    made = plan(**options)
    return Checkpoints(
        folder,
        keep,
        made.process,
        made.layout,
        run=run,
        keep_every=keep_every,
        store=store,
        scratch=folder.with_name(".fetched"),
    )


def resume(saved: Checkpoints, engine: Engine, which: str) -> Manifest | None:
    chosen = saved.choose(which)
    if chosen is not None:
        saved.load(engine, chosen)
    return chosen and chosen.manifest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
