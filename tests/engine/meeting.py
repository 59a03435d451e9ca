"""What a rank of the rendezvous' tests does, in a process of its own."""

import json
import os
from collections.abc import Mapping
from multiprocessing.connection import Connection

import torch.distributed as dist

from clipfast.engine.config import ConfigError
from clipfast.engine.launch import current_process
from clipfast.engine.rendezvous import meet


def rank(pipe: Connection, variables: Mapping[str, str], patience: float) -> None:
    """Meet the others and build torch's group, or say why not.

    Args:
        pipe: says "ready", hears when to begin, says "met" or the reason.
        variables: of the environment.
        patience: seconds, as of `meet`.
    """
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC")]:
        del os.environ[name]
    os.environ.update(variables)
    pipe.send("ready")
    pipe.recv()
    try:
        process = current_process()
        facts = json.loads(variables.get("FACTS", "{}"))
        meet(process.rank, process.world_size, patience, facts).close()
        dist.init_process_group("gloo")
        dist.barrier()
        pipe.send("met")
        dist.destroy_process_group()
    except ConfigError as error:
        pipe.send(f"refused: {error}")
