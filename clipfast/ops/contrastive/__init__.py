"""The operators of the contrastive loss on one rank's strip of logits, and who implements them."""

from clipfast.ops.contrastive.declaration import Operators
from clipfast.ops.contrastive.impls import IMPLS, Choice, available_impls, choose, operators

__all__ = ["IMPLS", "Choice", "Operators", "available_impls", "choose", "operators"]
