"""The weights of a run, whole and in float32, for everyone else to load."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfast.engine.agreement import from_main
from clipfast.engine.deepspeed.masters import exact_parameters
from clipfast.engine.launch import Process
from clipfast.models import export
from clipfast.models.placing import odd_values
from clipfast.models.weights import architecture_of


def full_state_dict(engine: Any, process: Process) -> dict[str, Tensor] | None:
    """The model's parameters and buffers, whole and in float32: the exact weights where a master or
    a remainder is kept, the half-precision ones where nothing else exists.

    A collective: every rank calls it.

    Args:
        engine: the DeepSpeed engine.
        process: this rank.

    Returns:
        Tensors on the CPU by name on rank 0, None elsewhere.
    """
    state = {}
    for name, parameter in exact_parameters(engine):
        if process.is_main:
            state[name] = parameter.detach().cpu().clone()
    if not process.is_main:
        return None
    state.update({name: buffer.cpu() for name, buffer in engine.module.named_buffers()})
    return state


def export_final(engine: Any, path: Path, process: Process, step: int | None = None) -> str:
    """Write the weights in OpenCLIP's names, with what they say of themselves. A collective.

    Those of a run that diverged are written too: nothing else may hold them.

    Args:
        engine: the DeepSpeed engine.
        path: where to write, `.safetensors` or `.pt`.
        process: this rank.
        step: optimizer steps taken.

    Returns:
        On every rank, which tensors are not finite; empty where all are.

    Raises:
        OSError: on every rank, where rank 0 cannot write them, with path and free space.
    """
    state = full_state_dict(engine, process)

    def write() -> str:
        assert state is not None
        architecture = architecture_of(engine.module)
        export(state, path, architecture=architecture, step=step, allow_nonfinite=True)
        return odd_values(state)

    odd = from_main(process, write)
    if process.device.type == "cuda":
        torch.cuda.empty_cache()
    return odd
