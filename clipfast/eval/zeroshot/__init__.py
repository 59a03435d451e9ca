"""Zero-shot classification: texts that name classes are the weights of a linear classifier.

Source: Radford et al. 2021, section 3.1.
"""

from clipfast.eval.zeroshot.cache import ClassifierCache
from clipfast.eval.zeroshot.classification import Classification, classify
from clipfast.eval.zeroshot.classifier import build_classifier
from clipfast.eval.zeroshot.predictor import ZeroShot

__all__ = ["Classification", "ClassifierCache", "ZeroShot", "build_classifier", "classify"]
