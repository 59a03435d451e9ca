"""Linear probes on features: logistic regression with L2, and the search for its strength."""

from clipfast.eval.probe.classifier import Classifiers
from clipfast.eval.probe.fit import Fits, fit
from clipfast.eval.probe.rows import Part, Rows, as_rows
from clipfast.eval.probe.search import Found, search, strength, sweep

__all__ = [
    "Classifiers",
    "Fits",
    "Found",
    "Part",
    "Rows",
    "as_rows",
    "fit",
    "search",
    "strength",
    "sweep",
]
