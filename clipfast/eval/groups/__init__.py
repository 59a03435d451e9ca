"""A zero-shot task by groups of images, and what other sets of labels would make of them.

Source: Radford et al. 2021, section 7.1.
"""

from clipfast.eval.groups.breakdown import Breakdown, Group, break_down
from clipfast.eval.groups.columns import Column, columns_of
from clipfast.eval.groups.disparity import Disparity, disparity
from clipfast.eval.groups.labelsets import LabelSet, Shares, read_added, shares

__all__ = [
    "Breakdown",
    "Column",
    "Disparity",
    "Group",
    "LabelSet",
    "Shares",
    "break_down",
    "columns_of",
    "disparity",
    "read_added",
    "shares",
]
