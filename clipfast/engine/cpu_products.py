"""The same library multiplies on every rank, and again when a run goes on."""

import os

import torch.distributed as dist

from clipfast.engine.launch import Process
from clipfast.ops.products import Libraries, current_libraries, set_libraries
from clipfast.ops.products.library import AUTO, VARIABLE


def agree(process: Process) -> dict[str, str]:
    """Rank 0's choice for all ranks; see ``clipfast.ops.products.library``.

    Args:
        process: this rank; on a GPU there is nothing to choose.

    Returns:
        The choice, for a checkpoint; empty on a GPU.
    """
    if process.device.type != "cpu":
        return {}
    names = [current_libraries().names if process.is_main else None]
    dist.broadcast_object_list(names)
    assert names[0] is not None
    set_libraries(Libraries(names[0]))
    return names[0]


def go_on_with(saved: dict[str, str], chosen: dict[str, str]) -> tuple[dict[str, str], str]:
    """Takes the choice of the run that goes on, so that its bits repeat.

    Args:
        saved: from a checkpoint; empty from one that has none, or from a GPU.
        chosen: what `agree` gave here.

    Returns:
        What is used from now on, and a note for a person where that is not what was saved.
    """
    if not saved or not chosen or saved == chosen:
        return chosen, ""
    reason = f"{VARIABLE} says otherwise" if os.environ.get(VARIABLE, AUTO) != AUTO else ""
    if not reason:
        try:
            set_libraries(Libraries(saved))
            return saved, ""
        except ValueError as error:
            reason = str(error)
    return chosen, f"This run's products are summed in another order from here on: {reason}"
