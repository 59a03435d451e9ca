"""Checkpoints without a training run: two small files in the place of DeepSpeed's."""

import errno
import os
from pathlib import Path

import torch

from clipfast.checkpoint import Manifest
from clipfast.engine.checkpoint import Checkpoints
from clipfast.engine.deepspeed.files import CheckpointFiles
from tests.engine.plans import plan


class Engine:
    """DeepSpeed's two calls, with one small file of tensors and one of the optimizer."""

    def __init__(self) -> None:
        self.checkpoint_engine = CheckpointFiles()
        self.fails = False
        self.values = torch.arange(5000.0)
        self.loaded: list[str] = []

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        assert not save_latest
        for name in ("model.pt", "optimizer.pt"):
            state = {"tag": tag, "values": self.values}
            self.checkpoint_engine.save(state, str(Path(folder, tag, name)))
            if self.fails:
                self.checkpoint_engine.failed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def load_checkpoint(self, folder: str, tag: str) -> tuple[str, dict]:
        for path in Path(folder, tag).glob("*.pt"):
            self.checkpoint_engine.load(str(path), "cpu")
        self.loaded.append(tag)
        return tag, {}


def checkpoints(
    folder: Path, keep: int = 2, run: str = "a-run", keep_every: int = 0, **options
) -> Checkpoints:
    made = plan(**options)
    return Checkpoints(folder, keep, made.process, made.layout, run=run, keep_every=keep_every)


def resume(saved: Checkpoints, engine: Engine, which: str) -> Manifest | None:
    chosen = saved.choose(which)
    if chosen is not None:
        saved.load(engine, chosen)
    return chosen and chosen.manifest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
