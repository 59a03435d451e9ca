"""What torch must know of resize_crops_. Beside plain torch it has this form:

cpu      csrc/resize (vectorised, on the calling thread)
"""

from __future__ import annotations

from clipfast.ops.registry import Compiled, Operator, declare
from clipfast.ops.resize import plain

resize_operator = declare(
    Operator(
        name="resize_crops_",
        schema=("(Tensor[] images, Tensor boxes, float[] mean, float[] std, Tensor(a!) out) -> ()"),
        plain=plain.resize_crops,
        fake=lambda images, boxes, mean, std, out: None,
        forms=(Compiled("cpu"),),
    )
)
