"""Measures of a trained model."""

from clipfast.eval.retrieval import RECALL_AT, pair_ranks, recalls

__all__ = ["RECALL_AT", "pair_ranks", "recalls"]
