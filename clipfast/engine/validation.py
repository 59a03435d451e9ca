"""The run's objective on pairs that are held out: the loss that training does not see."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipfast.engine.agreement import ranks_of
from clipfast.engine.config import VALIDATION, ConfigError
from clipfast.engine.encoder import RunEncoder, held
from clipfast.engine.plan import RunPlan


class Validation:
    """Mean loss over batches of held-out pairs, by all ranks together; nothing without such pairs.

    A contrastive loss depends on the batch: among more pairs it is larger. It compares with the
    training loss where the batch is as large. Pairs come in the order of the shards. Those that
    fill no last batch are left out. The model is in evaluation mode and no gradient is taken:
    neither parameters, running statistics, random numbers nor the order of training move.

    Args:
        plan: of the run.

    Raises:
        ConfigError: a shard is unfit, or there are fewer pairs than ranks or than two.
    """

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        options, ranks = plan.config.logging, plan.process.world_size
        self._patterns = options.validation
        self.batch = self.batches = 0
        if not self._patterns:
            return
        try:
            found = held(plan.config.data, self._patterns, VALIDATION, ranks_of(plan.process))
        except (ValueError, OSError) as error:
            raise ConfigError(f"--logging.validation: {error}") from error
        pairs = min(found, plan.config.data.eval_limit)
        wanted = min(options.validation_batch or plan.config.batch_size, pairs)
        # Every rank brings as many.
        self.batch = wanted // ranks * ranks
        if self.batch < max(2, ranks):
            raise ConfigError(
                f"--logging.validation: {pairs} pairs in batches of at most {wanted} are too few "
                f"for {ranks} rank(s): name more shards, or raise --logging.validation-batch"
            )
        self.batches = pairs // self.batch

    def run(self, engine: Any, between: Callable[[], None]) -> dict[str, float]:
        """Measure; a collective.

        Args:
            engine: the DeepSpeed engine; it comes back in the mode it was in.
            between: see ``RunEncoder``.

        Returns:
            ``validation/loss`` and the seconds it took; empty where nothing is held out.
        """
        if not self._patterns:
            return {}
        began = time.monotonic()
        was_training = engine.module.training
        engine.eval()
        try:
            encoder = RunEncoder(engine, self._plan, between)
            loss = self._mean_loss(*encoder.features(self._patterns, VALIDATION))
        finally:
            engine.train(was_training)
        return {"validation/loss": loss, "seconds/validation": time.monotonic() - began}

    @torch.no_grad()
    def _mean_loss(self, images: Tensor, texts: Tensor, scalars: list[Tensor]) -> float:
        plan, process = self._plan, self._plan.process
        local = self.batch // process.world_size
        sizes = [local] * process.world_size
        total = torch.zeros((), dtype=torch.float64, device=images.device)
        for number in range(self.batches):
            first = number * self.batch + process.rank * local
            # In the type that training multiplies them in.
            image, text = (x[first : first + local].to(plan.dtype) for x in (images, texts))
            prepared = plan.objective.prepare(text, sizes)
            total += plan.objective.loss(image, prepared, *scalars, batch_sizes=sizes)
        return total.item() / self.batches
