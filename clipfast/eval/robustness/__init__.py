"""Robustness: what is left of an accuracy where the images come from elsewhere.

Sources: Radford et al. 2021, section 3.3; Taori et al. 2020.
"""

from clipfast.eval.robustness.baselines import Baseline, read_baselines, read_results
from clipfast.eval.robustness.classmap import ClassMap, align, read_mapping
from clipfast.eval.robustness.fit import Fit, fit_logits
from clipfast.eval.robustness.measure import Adapted, Robustness, Score, measure
from clipfast.eval.robustness.shifts import Shift, open_shifts

__all__ = [
    "Adapted",
    "Baseline",
    "ClassMap",
    "Fit",
    "Robustness",
    "Score",
    "Shift",
    "align",
    "fit_logits",
    "measure",
    "open_shifts",
    "read_baselines",
    "read_mapping",
    "read_results",
]
