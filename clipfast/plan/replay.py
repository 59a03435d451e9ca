"""How long a pass takes on this CPU, from its operators alone: each distinct one is timed by itself
on numbers of its own, and a pass is their sum.

The model itself is never run. What Python does between operators is left out, so tiny models are
planned some per cent too fast.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from clipfast.engine.optimizer import build_optimizer
from clipfast.engine.plan import RunPlan
from clipfast.loss import clip_loss
from clipfast.models.fake import fake_pass
from clipfast.models.recompute import Mode
from clipfast.plan.trace import Call, Calls

Clock = Callable[[], float]
# Of one operator; a large one is called three times in any case.
_SECONDS, _MOST_CALLS = 0.02, 15
# More than any cache holds.
_COPIED = 64 << 20
_SIDE = 4096


@dataclass(frozen=True)
class PassSeconds:
    """Seconds of each pass of one micro-batch.

    Attributes:
        text_forward, image_forward, text_backward, image_backward: of the towers.
    """

    text_forward: float
    image_forward: float
    text_backward: float
    image_backward: float


def replay(plan: RunPlan, lengths: Sequence[int], clock: Clock = time.perf_counter) -> PassSeconds:
    """Time the towers' operators.

    Args:
        plan: of the run, on a CPU.
        lengths: tokens of each caption of a micro-batch.
        clock: in seconds; ``time.process_time`` leaves out what other programs take.
    """
    architecture = replace(plan.architecture, recompute=cast(Mode, plan.recompute))
    device = torch.device("cpu")
    with fake_pass(architecture, len(lengths), plan.dtype, lengths, device) as towers:
        text, text_forward = _calls(towers.encode_text)
        image, image_forward = _calls(towers.encode_image)
        gradients = torch.ones_like(image), torch.ones_like(text)
        _, image_backward = _calls(lambda: image.backward(gradients[0]))
        _, text_backward = _calls(lambda: text.backward(gradients[1]))
    known: dict[Call, float] = {}

    def total(calls: Calls) -> float:
        for call in calls.counts:
            if call not in known:
                known[call] = _seconds_of_call(call, clock)
        return sum(known[call] * times for call, times in calls.counts.items())

    return PassSeconds(*map(total, (text_forward, image_forward, text_backward, image_backward)))


def loss_seconds(plan: RunPlan, clock: Clock = time.perf_counter) -> float:
    """A rank's strip of the loss and its gradients: as many squares as there are ranks.

    Args:
        plan: of the run.
        clock: in seconds.
    """
    shape = (plan.local_batch, plan.architecture.embed_dim)
    images, texts = (torch.randn(shape, dtype=plan.dtype, requires_grad=True) for _ in range(2))
    scale = torch.tensor([14.0], requires_grad=True)
    return plan.process.world_size * seconds_of(
        lambda: clip_loss(images, texts, scale, group="local").backward(), clock
    )


def update_seconds(plan: RunPlan, clock: Clock = time.perf_counter) -> float:
    """The optimizer's time for one parameter, in the run's formats.

    Args:
        plan: of the run.
        clock: in seconds.
    """
    layer = torch.nn.Linear(_SIDE, _SIDE, bias=False)
    if plan.optimizer_holds_masters:
        layer.to(plan.dtype)
    optimizer = build_optimizer(plan, layer)
    layer.weight.grad = torch.ones_like(layer.weight)
    return seconds_of(optimizer.step, clock) / _SIDE**2


def bytes_per_second(clock: Clock = time.perf_counter) -> float:
    """Of a copy, read and written together.

    Args:
        clock: in seconds.
    """
    source = torch.ones(_COPIED, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return 2 * _COPIED / seconds_of(lambda: target.copy_(source), clock)


def seconds_of(call: Callable[[], object], clock: Clock) -> float:
    """The median time of a call.

    Args:
        call: does the work.
        clock: in seconds.
    """
    call()
    times: list[float] = []
    began = clock()
    while len(times) < 3 or (clock() - began < _SECONDS and len(times) < _MOST_CALLS):
        before = clock()
        call()
        times.append(clock() - before)
    return statistics.median(times)


def _seconds_of_call(call: Call, clock: Clock) -> float:
    arguments = call.make()
    with torch.no_grad():
        return seconds_of(lambda: call.run(arguments), clock)


def _calls(run: Callable[[], torch.Tensor | None]) -> tuple[torch.Tensor, Calls]:
    with Calls() as calls:
        out = run()
    return cast(torch.Tensor, out), calls
