"""AdamW whose groups can bound their parameters from above."""

import torch


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` with one more group option, ``maximum``.

    After a group's update its parameters are clamped to ``maximum``. DeepSpeed hands an optimizer
    the float32 master copies, so the bound is kept by the master itself and the half-precision copy
    follows; clamping the copy alone is undone by the master at the next step. Groups without the
    option are left as they are.

    Source: Radford et al. 2021, section 2.5: the logit scale is clipped at 100.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every group, then the bounds. ``closure`` as in ``torch.optim``."""
        loss = super().step(closure)
        for group in self.param_groups:
            maximum = group.get("maximum")
            if maximum is not None:
                for parameter in group["params"]:
                    parameter.clamp_(max=maximum)
        return loss
