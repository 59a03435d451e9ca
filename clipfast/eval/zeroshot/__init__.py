"""Zero-shot classification: texts that name classes are the weights of a linear classifier.

Source: Radford et al. 2021, section 3.1.
"""

from clipfast.eval.zeroshot.classifier import build_classifier, check_names, check_templates
from clipfast.eval.zeroshot.predictor import ZeroShot

__all__ = ["ZeroShot", "build_classifier", "check_names", "check_templates"]
