"""Checkpoints: complete or not there at all, the last few kept, final weights for everyone."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.engine.config import ConfigError
from clipfast.engine.launch import Process
from clipfast.models import export

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
    """

    def __init__(self, folder: Path, keep: int, process: Process) -> None:
        self.folder = folder
        self.keep = keep
        self.process = process

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = (p for p in self.folder.glob("step*") if _NAME.fullmatch(p.name))
        return sorted(
            (p for p in found if (p / _COMPLETE).is_file()), key=lambda p: int(p.name[4:])
        )

    def save(self, engine, step: int, state: dict[str, Any]) -> Path:
        """Save the whole state of a run on all ranks, then delete what is no longer kept.

        Args:
            engine: the DeepSpeed engine.
            step: optimizer steps taken.
            state: what else a run needs to go on; plain numbers and strings.

        Returns:
            The checkpoint's folder.
        """
        path = self.folder / f"step{step:08d}"
        if self.process.is_main and (path / _COMPLETE).exists():
            os.remove(path / _COMPLETE)
        dist.barrier()
        engine.save_checkpoint(str(self.folder), tag=path.name, save_latest=False)
        dist.barrier()
        if self.process.is_main:
            temporary = path / (_COMPLETE + ".tmp")
            temporary.write_text(json.dumps({"step": step, **state}))
            os.replace(temporary, path / _COMPLETE)
            for old in self.complete()[: -self.keep]:
                # Without its marker a half-deleted folder counts as incomplete.
                os.remove(old / _COMPLETE)
                shutil.rmtree(old)
        dist.barrier()
        return path

    def resume(self, engine, which: str) -> dict[str, Any] | None:
        """Load a checkpoint into the engine.

        Args:
            engine: the DeepSpeed engine, built with the same model and ZeRO stage.
            which: ``latest``, or the path of a checkpoint.

        Returns:
            The saved state with ``step``; None for ``latest`` where the run has no checkpoint yet.

        Raises:
            ConfigError: the path holds no complete checkpoint, or DeepSpeed could not load it.
        """
        if which == "latest":
            complete = self.complete()
            if not complete:
                return None
            path = complete[-1]
        else:
            path = Path(which)
            if not (path / _COMPLETE).is_file():
                raise ConfigError(
                    f"--resume {which}: no complete checkpoint there (no {_COMPLETE}); complete "
                    f"ones of this run: {[str(p) for p in self.complete()] or 'none'}"
                )
        loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name)
        if loaded is None:
            raise ConfigError(
                f"--resume {which}: DeepSpeed could not load {path}; resume with the number of "
                "ranks and the ZeRO stage it was saved with"
            )
        return json.loads((path / _COMPLETE).read_text())


def full_state_dict(engine, process: Process) -> dict[str, Tensor] | None:
    """The model's parameters and buffers, whole and in float32 where a float32 master exists.

    A collective: every rank calls it.

    Returns:
        Tensors on the CPU by name on rank 0, None elsewhere.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    state = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        if process.is_main:
            # No master outside ZeRO and bf16: there the parameter itself is all there is.
            state[name] = (parameter if full is None else full).detach().cpu().clone()
    if not process.is_main:
        return None
    state.update({name: buffer.cpu() for name, buffer in engine.module.named_buffers()})
    return state


def export_final(engine, path: Path, process: Process) -> None:
    """Write the weights as safetensors in OpenCLIP's names. A collective."""
    state = full_state_dict(engine, process)
    if state is not None:
        export(state, path)
    dist.barrier()
    if process.device.type == "cuda":
        torch.cuda.empty_cache()
