"""Model FLOP utilisation: what the model needs, by what the cards could do in the same time."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from clipfast.cards import peak_flop
from clipfast.engine.plan import RunPlan
from clipfast.models.step_flop import pair_flop


class Utilisation:
    """Model FLOP utilisation of a run's steps.

        mfu = pairs per second * FLOP of a pair / (ranks * peak of a card)

    FLOP are those of forward and backward, padding and what is computed again left out
    (``clipfast.models.step_flop``). The peak is the data sheet's, of dense products in the run's
    type. Nothing is said on a CPU, or of a card that is not in the table.

    Args:
        plan: of the run.
        say: shows a line where the model cannot be counted.
        card: the card's name; None asks torch.
    """

    def __init__(
        self, plan: RunPlan, say: Callable[[str], object], card: str | None = None
    ) -> None:
        self._plan = plan
        device = plan.process.device
        if card is None:
            card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = peak_flop(card, plan.dtype, plan.uses_tf32)
        if self._peak is not None:
            try:
                self._flop(torch.ones(1))
            except (
                Exception
            ) as error:  # a tower that somebody registered, on tensors without memory
                say(f"mfu is not logged: the model's FLOP cannot be counted ({error})")
                self._peak = None

    def figures(self, pairs_per_second: float, lengths: Tensor) -> dict[str, float]:
        """``mfu`` where it is known.

        Args:
            pairs_per_second: of all ranks.
            lengths: ``[B]`` on the CPU, tokens of some captions.
        """
        if self._peak is None:
            return {}
        done = pairs_per_second * self._flop(lengths)
        return {"mfu": done / (self._plan.process.world_size * self._peak)}

    def _flop(self, lengths: Tensor) -> float:
        architecture = replace(self._plan.architecture, recompute="none")
        return pair_flop(architecture, lengths, self._plan.config.batch_size)
