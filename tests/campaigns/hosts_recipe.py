"""A run that says when its gathers of texts and its image tower were at work.

On a CPU the engine waits for a gather at once: gloo dies of two collectives under way. As on a GPU
they are behind the image tower here, one at a time in a thread, unless the variable CLIPFAST_GATHER
is "awaited".
"""

import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.engine import ModelOptions, main
from clipfast.engine.builders import Builders, build_model
from clipfast.loss import distributed
from clipfast.loss.distributed import BatchShares
from clipfast.models import CLIP, Architecture, ResNetConfig, TextConfig, register_model
from tests.campaigns.recipe import config

# An image tower of a few hundred milliseconds, and few bytes of gradients.
register_model(
    Architecture(
        "RN-hosts", 224, ResNetConfig((2, 2, 2, 2), 24, 64), TextConfig(1, 16, head_width=16)
    )
)
Interval = tuple[float, float]


class Watched:
    """Gathers in order, in a thread, and the moments of what is watched.

    Args:
        is_awaited: each is waited for where it starts.
    """

    def __init__(self, is_awaited: bool) -> None:
        self._is_awaited = is_awaited
        self._thread = ThreadPoolExecutor(1)
        self._under_way: list[Future[None]] = []
        self.times: dict[str, list[Interval]] = {"gather": [], "image tower": []}

    def start(self, local: Tensor, shares: BatchShares) -> Tensor:
        """In the place of ``distributed.start_gather``."""
        gathered = local.new_empty(shares.global_batch, *local.shape[1:])
        future = self._thread.submit(self._gather, gathered, local.contiguous())
        if self._is_awaited:
            future.result()
        self._under_way.append(future)
        return gathered

    def finish(self, pending: Tensor, shares: BatchShares) -> Tensor:
        """In the place of ``distributed.finish_gather``."""
        for future in self._under_way:
            future.result()
        self._under_way.clear()
        return pending

    def model(self, plan: Any) -> CLIP:
        """The run's, whose image tower is watched."""
        made = build_model(plan)
        began = [0.0]

        def before(*_: Any) -> None:
            began[0] = time.perf_counter()

        def after(*_: Any) -> None:
            self.times["image tower"].append((began[0], time.perf_counter()))

        made.visual.register_forward_pre_hook(before)
        made.visual.register_forward_hook(after)
        return made

    def _gather(self, gathered: Tensor, local: Tensor) -> None:
        began = time.perf_counter()
        # A thread begins with gradients on.
        with torch.no_grad():
            dist.all_gather_into_tensor(gathered, local)
        self.times["gather"].append((began, time.perf_counter()))


if __name__ == "__main__":
    watched = Watched(os.environ.get("CLIPFAST_GATHER") == "awaited")
    distributed.start_gather = watched.start
    distributed.finish_gather = watched.finish
    asked = replace(config(), model=ModelOptions("RN-hosts"))
    result = main(asked, builders=Builders(model=watched.model))
    file = Path(result.folder, f"times{os.environ['RANK']}.json")
    file.write_text(json.dumps(watched.times))
