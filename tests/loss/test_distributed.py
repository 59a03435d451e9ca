"""The loss over real gloo ranks against one process, and what it sends between them."""

import functools
import itertools
import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from clipfast.loss import ClipLoss, clip_loss, distributed, gather_texts
from tests.loss.problems import fitted_loss, gradients, make_features
from tests.ranks import run_ranks

LOG_SCALE = math.log(14.3)


def _rows_of(sizes, rank):
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


# (dtype, options, relative error): every case that is run on every set of ranks.
CASES = (
    (torch.float64, {"impl": "plain"}, 1e-10),
    (torch.float64, {"impl": "reference"}, 1e-10),
    (torch.float32, {"keep_logits": True}, 4e-6),
    (torch.float32, {"keep_logits": False}, 4e-6),
    (torch.float32, {"impl": "reference"}, 4e-5),
    (torch.bfloat16, {}, 5e-3),
    (torch.float16, {}, 5e-3),
)


def _gradients_on_this_rank(sizes, width):
    mine = _rows_of(sizes, dist.get_rank())
    results = []
    for dtype, options, _ in CASES:
        images, texts = make_features(sum(sizes), width, dtype)
        scale_dtype = torch.promote_types(dtype, torch.float32)
        log_scale = torch.tensor([LOG_SCALE], dtype=scale_dtype)
        for known in ({}, {"batch_sizes": sizes}):
            results.append(
                gradients(
                    functools.partial(clip_loss, **options, **known),
                    *(images[mine], texts[mine], log_scale),
                )
            )
    return results


@pytest.mark.parametrize(
    "sizes", [[5], [20, 20], [17, 17, 17], [3, 3, 3, 3], [3, 4], [1, 6, 2], [1, 1]], ids=str
)
def test_clip_loss_on_ranks_equals_one_process_after_the_mean(sizes):
    width = 30
    ranks = run_ranks(len(sizes), _gradients_on_this_rank, sizes, width)
    for number, results in enumerate(zip(*ranks, strict=True)):
        dtype, _, tolerance = CASES[number // 2]
        images, texts = make_features(sum(sizes), width, dtype)
        truth = gradients(
            fitted_loss,
            *(images.double(), texts.double(), torch.tensor([LOG_SCALE], dtype=torch.float64)),
        )
        for result in results:
            assert torch.equal(result[0], results[0][0])
            torch.testing.assert_close(
                result[0].double(), truth[0], rtol=tolerance, atol=tolerance / 100
            )
        # A parameter's gradient is the mean over ranks of what flows back through each rank's
        # features: the rows are disjoint, so the mean divides each block by the number of ranks.
        for index in (1, 2):
            blocks = torch.cat([result[index] for result in results]).double() / len(sizes)
            assert (blocks - truth[index]).norm() <= tolerance * truth[index].norm()
        scale = torch.stack([result[3] for result in results]).double().mean(0)
        torch.testing.assert_close(scale, truth[3], rtol=tolerance, atol=tolerance)


def _far_apart(_):
    images = make_features(6, 30, torch.float64)[0].abs().float()
    texts = -images.flip(0)
    mine = _rows_of([3, 3], dist.get_rank())
    return gradients(clip_loss, images[mine], texts[mine], torch.tensor([math.log(100.0)]))


def test_clip_loss_on_ranks_survives_sums_that_no_single_shift_holds():
    images = make_features(6, 30, torch.float64)[0].abs().float().double()
    truth = gradients(
        fitted_loss, images, -images.flip(0), torch.tensor([math.log(100.0)]).double()
    )
    ranks = run_ranks(2, _far_apart, None)
    torch.testing.assert_close(ranks[0][0].double(), truth[0], rtol=1e-5, atol=0)
    blocks = torch.cat([result[1] for result in ranks]).double() / 2
    assert (blocks - truth[1]).norm() <= 1e-4 * truth[1].norm()


def _messages():
    rank = dist.get_rank()
    cases = [
        (make_features(3, 4 + rank, torch.float32), {}),
        (make_features(3, 4, (torch.float32, torch.bfloat16)[rank]), {}),
        (make_features(3, 4, torch.float32), {"batch_sizes": [3, 4, 5]}),
        (make_features(3, 4, torch.float32), {"batch_sizes": [4, 4]}),
    ]
    messages = []
    for features, options in cases:
        with pytest.raises(ValueError) as caught:
            clip_loss(*features, torch.tensor(10.0), **options)
        messages.append(str(caught.value))
    return messages


def test_clip_loss_names_what_ranks_bring_when_it_does_not_match():
    for rank, messages in enumerate(run_ranks(2, _messages)):
        assert "[3, 4] torch.float32, [3, 5] torch.float32" in messages[0]
        assert "[3, 4] torch.float32, [3, 4] torch.bfloat16" in messages[1]
        assert "sizes of 2 ranks" in messages[2]
        assert f"with 3 at rank {rank}, got [4, 4]" in messages[3]


class _CountElements(TorchDispatchMode):
    """Elements of the global tensors of the collectives, and their order among other events."""

    def __init__(self):
        super().__init__()
        self.elements = {}
        self.events = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function.name()
        if name.startswith("_c10d_functional::"):
            self.events.append(name.removeprefix("_c10d_functional::"))
            if "wait" not in name:
                tensor = result if "all_gather" in name else arguments[0]
                self.elements.setdefault(self.events[-1], []).append(tensor.numel())
        return result


def _count(batch, width, budgets):
    images, texts = make_features(2 * batch, width, torch.float32)
    mine = _rows_of([batch, batch], dist.get_rank())
    room = budgets[dist.get_rank()]
    with _CountElements() as counted:
        results = gradients(
            lambda *args: clip_loss(*args, batch_sizes=[batch, batch], workspace_bytes=room),
            *(images[mine], texts[mine], torch.tensor([2.6])),
        )
    return counted.elements, list(results)


def test_clip_loss_sends_two_g_d_elements_and_four_g():
    batch, width = 32, 24
    whole = 2 * batch
    for sent, _ in run_ranks(2, _count, batch, width, (None, None)):
        assert sorted(sent["all_gather_into_tensor"]) == [whole, whole * width]
        assert sent["all_reduce"] == [whole, 2 * whole + 1]
        assert sent["reduce_scatter_tensor"] == [whole * width]
        total = sum(sum(sizes) for sizes in sent.values())
        assert total <= 2 * whole * width + 4 * whole + 1


def test_clip_loss_on_ranks_with_unequal_memory_has_the_same_collectives():
    batch, width = 150, 24
    # The first rank works on 64 rows at a time and keeps nothing; the second keeps all.
    unequal = run_ranks(2, _count, batch, width, (1, 2**30))
    equal = run_ranks(2, _count, batch, width, (None, None))
    for (sent, results), (expected, others) in zip(unequal, equal, strict=True):
        assert sent == expected
        for value, other in zip(results, others, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-7)


STARTS = ("all_gather_into_tensor", "all_reduce", "reduce_scatter_tensor")


class _Note(torch.autograd.Function):
    """Notes when a tower runs forward and backward."""

    @staticmethod
    def forward(ctx, x, name, events):
        events.append(name)
        ctx.name, ctx.events = name, events
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        ctx.events.append(ctx.name + " backward")
        return grad, None, None


def _order(overlap, said="awaited"):
    os.environ[distributed.VARIABLE] = said
    distributed.overlaps = lambda _: overlap
    images, texts = (x.requires_grad_() for x in make_features(4, 6, torch.float32))
    with _CountElements() as counted:
        gathered = gather_texts(_Note.apply(texts, "texts", counted.events), batch_sizes=[4, 4])
        loss = clip_loss(_Note.apply(images, "images", counted.events), gathered, torch.ones(1))
        loss.backward()
    return counted.events


def test_clip_loss_collectives_run_while_the_image_tower_does():
    for events in run_ranks(2, _order, True):
        collectives = ["all_gather_into_tensor", "all_gather_into_tensor", "images"]
        assert events[:4] == ["texts", *collectives]
        start = events.index("reduce_scatter_tensor")
        assert events[start + 1 :] == ["images backward", "wait_tensor", "texts backward"]


def test_clip_loss_has_one_collective_under_way_at_a_time_on_the_cpu():
    for events in run_ranks(2, _order, False):
        collectives = [event for event in events if event not in ("images", "texts")]
        starts = [i for i, event in enumerate(collectives) if event in STARTS]
        assert len(starts) == 5
        assert all(collectives[i + 1] == "wait_tensor" for i in starts)


def test_clip_loss_leaves_one_gather_behind_the_image_tower_on_a_cpu_that_is_told_so():
    for events in run_ranks(2, _order, False, "hidden"):
        # Features and norms are one message. The tower runs, then it is waited for.
        assert events[:4] == ["texts", "all_gather_into_tensor", "images", "wait_tensor"]
        under_way = 0
        for event in events:
            under_way += (event in STARTS) - (event == "wait_tensor" and under_way > 0)
            assert under_way <= 1


def _both_ways(dtype):
    sizes = [5, 3]
    found = []
    for way in ("awaited", "hidden"):
        os.environ[distributed.VARIABLE] = way
        features = make_features(sizes[torch.distributed.get_rank()], 7, dtype)
        images, texts = (x.requires_grad_() for x in features)
        gathered = gather_texts(texts, batch_sizes=sizes)
        loss = clip_loss(images, gathered, torch.full((1,), 3.0))
        loss.backward()
        found.append([loss.detach(), images.grad, texts.grad])
    return [torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(*found, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gather_behind_the_image_tower_brings_the_same_bits_to_uneven_ranks(dtype):
    assert run_ranks(2, _both_ways, dtype) == [[True] * 3] * 2


def test_a_gather_on_a_cpu_is_hidden_or_awaited(monkeypatch):
    monkeypatch.setenv(distributed.VARIABLE, "later")
    with pytest.raises(ValueError, match="CLIPFAST_CPU_GATHER is hidden or awaited; got 'later'"):
        distributed.hides_on_a_cpu()


FLAGS = ({}, {"local_loss": True}, {"local_loss": True, "gather_with_grad": True})


def _loss_of_logits(loss_function, images, texts, scale):
    """The same by hand from what `get_logits` gives, as losses that derive from OpenCLIP's do."""
    per_image, per_text = loss_function.get_logits(images, texts, scale)
    target = loss_function.get_ground_truth(images.device, len(per_image))
    loss = (F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)) / 2
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return loss + (mean / dist.get_world_size() - loss.detach())


def _module_under_ddp():
    rank = dist.get_rank()
    images, texts = (x[_rows_of([5, 5], rank)].float() for x in make_features(10, 12))
    results = []
    for flags, make in itertools.product(FLAGS, (ClipLoss.__call__, _loss_of_logits)):
        torch.manual_seed(0)
        tower = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(12, 8))
        loss_function = ClipLoss(**flags, rank=rank, world_size=2)
        features = torch.nn.functional.normalize(tower(torch.stack([images, texts])), dim=-1)
        loss = make(loss_function, features[0], features[1], torch.tensor(10.0))
        loss.backward()
        results.append((loss.detach(), tower.module.weight.grad))
    return results


def test_clip_loss_module_under_ddp_has_the_true_gradient_whatever_the_flags():
    torch.manual_seed(0)
    tower = torch.nn.Linear(12, 8)
    images, texts = (x.float() for x in make_features(10, 12))
    loss = fitted_loss(tower(images), tower(texts), torch.tensor(10.0))
    loss.backward()
    for results in run_ranks(2, _module_under_ddp):
        assert len(results) == 2 * len(FLAGS)
        for got, grad in results:
            torch.testing.assert_close(got, loss.detach(), rtol=1e-5, atol=0)
            torch.testing.assert_close(grad, tower.weight.grad, rtol=1e-4, atol=1e-6)


def _compiled(sizes):
    images, texts = make_features(sum(sizes), 12, torch.float32)
    mine = _rows_of(sizes, dist.get_rank())
    torch._dynamo.reset()
    compiled = torch.compile(lambda u, v, s: clip_loss(2 * u, v, s), fullgraph=True)
    try:
        return gradients(compiled, images[mine], texts[mine], torch.tensor([LOG_SCALE]))
    except ValueError as error:
        return str(error)


def _compiled_cases():
    return [_compiled([4, 4]), _compiled([3, 4])]


def test_clip_loss_compiles_on_ranks_without_a_graph_break():
    images, texts = make_features(8, 12, torch.float32)
    truth = gradients(
        fitted_loss, images.double(), texts.double(), torch.tensor([LOG_SCALE]).double()
    )
    ranks = run_ranks(2, _compiled_cases)
    for equal, unequal in ranks:
        torch.testing.assert_close(equal[0].double(), truth[0], rtol=1e-5, atol=0)
        assert "[3, 4]" in unequal
    for index in (1, 2):
        blocks = torch.cat([equal[index] for equal, _ in ranks]).double() / 2
        torch.testing.assert_close(blocks, truth[index], rtol=1e-4, atol=1e-7)
    scale = torch.stack([equal[3] for equal, _ in ranks]).double().mean(0)
    torch.testing.assert_close(scale, truth[3], rtol=1e-4, atol=1e-6)


def _under_anomaly_detection(_):
    mine = _rows_of([4, 4], dist.get_rank())
    images, texts = make_features(8, 12, torch.float32)
    with torch.autograd.set_detect_anomaly(True):
        gradients(clip_loss, images[mine], texts[mine], torch.tensor([LOG_SCALE]))
    local = ClipLoss()(images[mine], texts[mine], torch.tensor(10.0))
    equal = ClipLoss(rank=dist.get_rank(), world_size=2, equal_batches=True)
    return local, equal(images[mine], texts[mine], torch.tensor(10.0))


def test_clip_loss_module_stays_local_or_is_global_and_anomaly_detection_is_quiet():
    images, texts = make_features(8, 12, torch.float32)
    whole = clip_loss(images, texts, torch.tensor(10.0), normalize=False)
    for rank, (local, equal) in enumerate(run_ranks(2, _under_anomaly_detection, None)):
        mine = _rows_of([4, 4], rank)
        own = clip_loss(images[mine], texts[mine], torch.tensor(10.0), normalize=False)
        torch.testing.assert_close(local, own, rtol=1e-6, atol=0)
        torch.testing.assert_close(equal, whole, rtol=1e-5, atol=0)
