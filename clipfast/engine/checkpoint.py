"""Checkpoints: complete or not there at all, the last few kept, final weights for everyone."""

import itertools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from clipfast.engine.config import ConfigError
from clipfast.engine.export import export_final as export_final
from clipfast.engine.export import full_state_dict as full_state_dict
from clipfast.engine.launch import Process

_NAME = re.compile(r"step(\d{8,})")
_COMPLETE = "complete.json"


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint is a folder ``stepNNNNNNNN`` that DeepSpeed fills; ``complete.json`` is written
    into it last, after every rank has finished, so that a run killed while saving resumes from the
    one before.

    Args:
        folder: holds the checkpoints.
        keep: how many complete ones stay.
        process: this rank.
        layout: what a checkpoint must share with the run that loads it, such as the ZeRO stage.
    """

    def __init__(
        self, folder: Path, keep: int, process: Process, layout: dict[str, int | str]
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.process = process
        self.layout = layout

    def complete(self) -> list[Path]:
        """Complete checkpoints, the most recently saved last."""
        found = [p for p in self._folders() if (p / _COMPLETE).is_file()]
        # By time and not by step: after a resume from an earlier step the newest has a lower one.
        return sorted(found, key=lambda p: ((p / _COMPLETE).stat().st_mtime_ns, p.name))

    def save(self, engine: Any, step: int, state: dict[str, Any]) -> Path:
        """Save the whole state of a run on all ranks, then delete what is no longer kept.

        Args:
            engine: the DeepSpeed engine.
            step: optimizer steps taken.
            state: what else a run needs to go on; plain numbers and strings.

        Returns:
            The checkpoint's folder.
        """
        path = self.folder / f"step{step:08d}"
        if self.process.is_main:
            (path / _COMPLETE).unlink(missing_ok=True)
        dist.barrier()
        engine.save_checkpoint(str(self.folder), tag=path.name, save_latest=False)
        dist.barrier()
        if self.process.is_main:
            temporary = path / (_COMPLETE + ".tmp")
            temporary.write_text(json.dumps({"step": step, "layout": self.layout, **state}))
            os.replace(temporary, path / _COMPLETE)
            self._delete_all_but(path)
        dist.barrier()
        return path

    def resume(self, engine: Any, which: str) -> dict[str, Any] | None:
        """Load a checkpoint into the engine.

        Args:
            engine: the DeepSpeed engine.
            which: ``latest``, or the path of a checkpoint.

        Returns:
            The saved state with ``step``; None for ``latest`` where the run has no checkpoint yet.

        Raises:
            ConfigError: the path holds no complete checkpoint, or one of another layout.
        """
        # Rank 0 chooses for all: file systems do not show a new file everywhere at once.
        choice: list[Any] = [self._choose(which) if self.process.is_main else None]
        dist.broadcast_object_list(choice)
        path, state = choice[0]
        if state is None:
            if which == "latest":
                return None
            raise ConfigError(
                f"--resume {which}: no complete checkpoint there (no {_COMPLETE}); complete ones "
                f"of this run: {[str(p) for p in self.complete()] or 'none'}"
            )
        # What there was before there was another kind.
        saved = {"masters": "float32", "loss": "contrastive", **state["layout"]}
        differing = [
            f"{name} {saved.get(name)}, not {value}"
            for name, value in self.layout.items()
            if saved.get(name) != value
        ]
        if differing:
            raise ConfigError(
                f"--resume {which}: {path} was saved with {', '.join(differing)}. Resume with what "
                "it was saved with: parts of flat tensors, in blocks that share a scale, cannot be "
                "dealt out anew. To go on otherwise, with new Adam statistics, write its exact "
                f"weights (resume as saved, with --max-steps {state['step']}: final.safetensors), "
                "then start from them with --model.weights"
            )
        engine.load_checkpoint(str(path.parent), tag=path.name)
        return state

    def _choose(self, which: str) -> tuple[Path | None, dict[str, Any] | None]:
        complete = self.complete()
        path = (complete[-1] if complete else None) if which == "latest" else Path(which)
        if path is None or not (path / _COMPLETE).is_file():
            return path, None
        return path, json.loads((path / _COMPLETE).read_text())

    def _folders(self) -> list[Path]:
        return [p for p in self.folder.glob("step*") if _NAME.fullmatch(p.name)]

    def _delete_all_but(self, newest: Path) -> None:
        """Delete complete checkpoints beyond those kept, and what killed runs left half-written."""
        kept = [newest, *(p for p in self.complete()[-self.keep :] if p != newest)][: self.keep]
        for old in self._folders():
            if old not in kept:
                # Without its marker a half-deleted folder counts as incomplete.
                (old / _COMPLETE).unlink(missing_ok=True)
                shutil.rmtree(old)


def move_aside(folder: Path) -> Path | None:
    """Rename the folder of an earlier run of the same name to ``NAME.1``, ``NAME.2``, ...

    Returns:
        Where it went, None where there was none.
    """
    if not (folder / "metrics.jsonl").exists():
        return None
    number = next(n for n in itertools.count(1) if not Path(f"{folder}.{n}").exists())
    return folder.rename(f"{folder}.{number}")
