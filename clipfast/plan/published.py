"""Runs that others published, and the utilisation that they imply by our count of FLOP.

    python -m clipfast.plan.published

    utilisation = FLOP of a pair * pairs seen / (GPU-seconds * peak of the card)

A multiplication and an addition are two operations. Captions are computed at their full 77 tokens,
as those programs do. Hours are what was published: they hold whatever those runs also did, such as
waiting for data, evaluations and restarts.

- Radford et al. 2021, section 2.5: 592 V100 for 18 days and 256 V100 for 12; 32 epochs of 400
  million pairs at a batch of 32,768. They used gradient checkpointing, without saying where.
- OpenCLIP, docs/PRETRAINED.md, LAION-400M: ViT-B/32 on 128 A100 of 40 GB for about 36 hours, 4,600
  GPU-hours, batch 32,768; ViT-L/14 on 400 of them for about 127 hours, 50,800 GPU-hours, batch
  38,400, with gradient checkpointing. Pairs seen are taken as 32 epochs of 400 million.
"""

from dataclasses import dataclass

import torch

from clipfast.cards import peak_flop
from clipfast.models.catalogue import get_config
from clipfast.plan.flop import loss_flop, pair_flop, pass_flop
from clipfast.plan.text import digits, seconds, share, table

_TOKENS = 77


@dataclass(frozen=True)
class Published:
    """A run that was published.

    Attributes:
        source: who did.
        model: by our name.
        card: as ``clipfast.cards`` finds it.
        gpus: how many.
        hours: that it took.
        batch: pairs of a step.
        pairs: seen in all.
        recomputed: blocks were computed again; None where that is not known.
    """

    source: str
    model: str
    card: str
    gpus: int
    hours: float
    batch: int
    pairs: int = 32 * 400_000_000
    recomputed: bool | None = None

    @property
    def gpu_hours(self) -> float:
        """Of all cards."""
        return self.gpus * self.hours

    @property
    def step_seconds(self) -> float:
        """Of one step, all else included."""
        return self.hours * 3600 / (self.pairs / self.batch)

    def utilisation(self, recomputed: bool = False) -> float:
        """FLOP over what the cards could have done.

        Args:
            recomputed: count what every block computes again, too.
        """
        architecture = get_config(self.model)
        if recomputed:
            towers = pass_flop(architecture, _TOKENS, "full")
            flop = towers.forward + towers.backward
            flop += loss_flop(self.batch, architecture.embed_dim, 6)
        else:
            flop = pair_flop(architecture, _TOKENS, self.batch)
        peak = peak_flop(self.card, torch.float16)
        assert peak is not None
        return flop * self.pairs / (self.gpu_hours * 3600 * peak)


RUNS = (
    Published("Radford et al. 2021", "RN50x64", "V100", 592, 18 * 24, 32_768),
    Published("Radford et al. 2021", "ViT-L/14", "V100", 256, 12 * 24, 32_768),
    Published("OpenCLIP", "ViT-B/32", "A100", 128, 4_600 / 128, 32_768, recomputed=False),
    Published("OpenCLIP", "ViT-L/14", "A100", 400, 127, 38_400, recomputed=True),
)


def published_table() -> list[str]:
    """The runs and what they imply, as a table."""
    rows = []
    for run in RUNS:
        flop = pair_flop(get_config(run.model), _TOKENS, run.batch)
        known = {None: "not said", True: "yes", False: "no"}[run.recomputed]
        rows.append(
            [
                f"{run.model}, {run.source}",
                f"{run.gpus} {run.card}",
                digits(run.gpu_hours),
                seconds(run.step_seconds),
                digits(flop / 1e9),
                share(run.utilisation()),
                known,
                share(run.utilisation(recomputed=True)),
            ]
        )
    head = ["run", "cards", "GPU-hours", "step", "GFLOP of a pair", "utilisation"]
    return table([*head, "blocks computed again", "with that counted"], rows)


if __name__ == "__main__":
    print("\n".join(published_table()))
