"""AdamW with statistics and weights in half precision: its operators and their formats."""

from clipfast.ops.adamw.declaration import grad_norm_operator, step_operator
from clipfast.ops.adamw.formats import (
    BLOCK,
    NEAREST,
    decode,
    encode,
    float_of,
    follow,
    join_master,
    split_master,
)
from clipfast.ops.adamw.random_bits import MULTIPLIERS, philox

__all__ = [
    "BLOCK",
    "MULTIPLIERS",
    "NEAREST",
    "decode",
    "encode",
    "float_of",
    "follow",
    "grad_norm_operator",
    "join_master",
    "philox",
    "split_master",
    "step_operator",
]
