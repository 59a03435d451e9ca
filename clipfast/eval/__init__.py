"""Measures of a trained model, and the door through which others come in.

    class Spread(Evaluation):
        def run(self, encoder):
            features = encoder.pairs("shards/*.tar").image_features
            value = features.std(0).mean().item()
            return [Measured(scalars={"eval/spread": value}, lines=[f"spread {value:.3f}"])]

    register("spread", lambda data: Spread())

``--eval.names retrieval spread`` then measures both while a model trains. ``python -m
clipfast.eval``, and ``run`` from Python, measure a model from the file of its weights.
"""

from clipfast.eval.distinct import Distinct
from clipfast.eval.evaluation import Encoder, Evaluation, Measured, Pairs, PairSource
from clipfast.eval.ranking import RECALL_AT, chance, pair_ranks, recalls, right_ranks
from clipfast.eval.registry import EvaluationData, list_evaluations, register
from clipfast.eval.retrieval import Retrieval, RetrievalEvaluation
from clipfast.eval.running import run

__all__ = [
    "RECALL_AT",
    "Distinct",
    "Encoder",
    "Evaluation",
    "EvaluationData",
    "Measured",
    "PairSource",
    "Pairs",
    "Retrieval",
    "RetrievalEvaluation",
    "chance",
    "list_evaluations",
    "pair_ranks",
    "recalls",
    "register",
    "right_ranks",
    "run",
]
