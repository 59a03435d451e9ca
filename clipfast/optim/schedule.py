"""Learning rate against step."""

import math


def warmup_cosine(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to ``peak``, then a half cosine to zero.

        lr(t) = peak (t + 1) / w                              where t < w
        lr(t) = peak / 2 (1 + cos(pi (t - w) / (T - w)))      from there on

    Args:
        step: t, optimizer steps taken so far, from 0.
        peak: learning rate at the end of the warm-up.
        warmup_steps: w; 0 starts at the peak.
        total_steps: T, the steps of the whole run.

    Returns:
        The learning rate of the step about to be taken; zero from ``total_steps`` on.

    Source: Radford et al. 2021, section 2.5 (cosine schedule) and table 18 (warm-up).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * min(1.0, progress)))
