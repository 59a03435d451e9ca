"""Linear probes on features: logistic regression with L2, and the search for its strength."""

from clipfast.eval.probe.classifier import Classifiers
from clipfast.eval.probe.fewshot import SHOTS, Curve, few_shot, shots_to_match
from clipfast.eval.probe.fit import Fits, fit
from clipfast.eval.probe.linear import Labelled, LinearProbe, linear_probe
from clipfast.eval.probe.metrics import METRICS
from clipfast.eval.probe.rows import Part, Rows, as_rows
from clipfast.eval.probe.search import Found, search, strength, sweep

__all__ = [
    "METRICS",
    "SHOTS",
    "Classifiers",
    "Curve",
    "Fits",
    "Found",
    "Labelled",
    "LinearProbe",
    "Part",
    "Rows",
    "as_rows",
    "few_shot",
    "fit",
    "linear_probe",
    "search",
    "shots_to_match",
    "strength",
    "sweep",
]
