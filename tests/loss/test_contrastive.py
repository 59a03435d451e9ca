"""``clip_loss`` and ``ClipLoss`` against the paper's formula in float64, on one or many ranks."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from clipfast.loss import ClipLoss, clip_loss
from tests.peers import import_open_clip
from tests.ranks import run_ranks


def make_features(batch: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    texts = 0.5 * images + torch.randn(batch, width, generator=generator, dtype=torch.float64)
    return images.to(dtype), texts.to(dtype)


def paper_loss(images, texts, scale, normalize=True):
    """Figure 3 of the paper."""
    if normalize:
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    logits = scale * images @ texts.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def gradients(loss_function, images, texts, log_scale):
    leaves = [x.detach().clone().requires_grad_() for x in (images, texts, log_scale)]
    loss = loss_function(leaves[0], leaves[1], leaves[2].exp())
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize(("batch", "width"), [(1, 1), (2, 3), (7, 123), (123, 252), (64, 507)])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_clip_loss_equals_the_paper_in_fp64(batch, width, scale, normalize):
    images, texts = make_features(batch, width)
    if not normalize:
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    log_scale = torch.tensor([math.log(scale)], dtype=torch.float64)
    got = gradients(
        lambda u, v, s: clip_loss(u, v, s, normalize=normalize), images, texts, log_scale
    )
    want = gradients(lambda u, v, s: paper_loss(u, v, s, normalize), images, texts, log_scale)
    for value, truth in zip(got, want, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clip_loss_error_is_at_most_that_of_eager_in_the_same_dtype(dtype):
    images, texts = make_features(123, 252, dtype)
    log_scale = torch.tensor([math.log(100.0)])
    truth = gradients(paper_loss, images.double(), texts.double(), log_scale.double())
    got = gradients(clip_loss, images, texts, log_scale)
    eager = gradients(paper_loss, images, texts, log_scale.to(dtype))
    for value, plain, exact in zip(got, eager, truth, strict=True):
        error = (value.double() - exact).norm() / exact.norm()
        eager_error = (plain.double() - exact).norm() / exact.norm()
        assert error <= eager_error * 1.1 + 1e-6


def test_clip_loss_keeps_logits_in_fp32_under_autocast():
    images, texts = make_features(64, 128, torch.float32)
    scale = torch.tensor(100.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = clip_loss(images, texts, scale)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, clip_loss(images, texts, scale), rtol=1e-6, atol=0)


def test_clip_loss_of_nan_features_is_nan():
    images, texts = make_features(4, 8, torch.float32)
    images[2, 3] = float("nan")
    assert torch.isnan(clip_loss(images, texts, torch.tensor(10.0)))


@pytest.mark.parametrize("wanted", ["images", "texts", "scale"])
def test_clip_loss_gives_gradients_to_any_subset(wanted):
    images, texts = make_features(5, 6, torch.float32)
    leaves = {"images": images, "texts": texts, "scale": torch.tensor([14.3])}
    leaves[wanted].requires_grad_()
    clip_loss(*leaves.values()).backward()
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name == wanted)


@pytest.mark.parametrize(
    ("images", "texts", "scale", "error", "words"),
    [
        (torch.zeros(3, 4), torch.zeros(4, 3), torch.ones(1), ValueError, r"\(3, 4\)"),
        (torch.zeros(3), torch.zeros(3), torch.ones(1), ValueError, "batch, embedding"),
        (torch.zeros(0, 4), torch.zeros(0, 4), torch.ones(1), ValueError, "empty"),
        (torch.zeros(3, 4), torch.zeros(3, 4), torch.ones(2), ValueError, "one element"),
        (torch.zeros(3, 4), torch.zeros(3, 4).half(), torch.ones(1), TypeError, "one dtype"),
        (torch.zeros(3, 4).int(), torch.zeros(3, 4).int(), torch.ones(1), TypeError, "floating"),
    ],
)
def test_clip_loss_refuses_what_does_not_fit(images, texts, scale, error, words):
    with pytest.raises(error, match=words):
        clip_loss(images, texts, scale)


def _gradients_on_this_rank(batch: int, width: int):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    images, texts = make_features(batch * world_size, width)
    mine = slice(rank * batch, (rank + 1) * batch)
    return gradients(
        clip_loss, images[mine], texts[mine], torch.tensor([math.log(14.3)], dtype=torch.float64)
    )


@pytest.mark.parametrize("world_size", [2, 3])
def test_clip_loss_on_ranks_equals_one_process_after_the_mean(world_size):
    batch, width = 5, 12
    truth = gradients(
        paper_loss,
        *make_features(batch * world_size, width),
        torch.tensor([math.log(14.3)], dtype=torch.float64),
    )
    ranks = run_ranks(world_size, _gradients_on_this_rank, batch, width)
    for result in ranks:
        torch.testing.assert_close(result[0], truth[0], rtol=1e-12, atol=0)
    # A parameter's gradient is the mean over ranks of what flows back through each rank's features:
    # the rows are disjoint, so the mean divides each block by the number of ranks.
    for index in (1, 2):
        blocks = torch.cat([result[index] for result in ranks]) / world_size
        torch.testing.assert_close(blocks, truth[index], rtol=1e-9, atol=1e-12)
    scale = torch.stack([result[3] for result in ranks]).mean(0)
    torch.testing.assert_close(scale, truth[3], rtol=1e-9, atol=1e-12)


def _message_of_unequal_batches():
    images, texts = make_features(3 + dist.get_rank(), 4)
    try:
        clip_loss(images, texts, torch.tensor(10.0))
    except ValueError as error:
        return str(error)
    return ""


def test_clip_loss_names_the_ranks_batches_when_they_differ():
    for message in run_ranks(2, _message_of_unequal_batches):
        assert "[3, 4]" in message


def test_clip_loss_module_equals_open_clip_on_one_process():
    open_clip = import_open_clip()
    images, texts = (F.normalize(x, dim=1) for x in make_features(33, 64, torch.float32))
    log_scale = torch.tensor([math.log(14.3)])
    theirs, ours = open_clip.loss.ClipLoss(), ClipLoss()
    for value, truth in zip(
        gradients(ours, images, texts, log_scale),
        gradients(theirs, images, texts, log_scale),
        strict=True,
    ):
        torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-6)
    named = ours(images, texts, log_scale.exp(), output_dict=True)
    assert set(named) == set(theirs(images, texts, log_scale.exp(), output_dict=True))


def test_clip_loss_module_gives_the_bias_a_zero_gradient():
    images, texts = make_features(4, 8, torch.float32)
    bias = torch.tensor(3.0, requires_grad=True)
    ClipLoss()(images, texts, torch.tensor(10.0), logit_bias=bias).backward()
    assert bias.grad == 0


def test_clip_loss_module_refuses_horovod_and_a_wrong_world_size():
    with pytest.raises(NotImplementedError, match="Horovod"):
        ClipLoss(use_horovod=True)
    images, texts = make_features(4, 8, torch.float32)
    with pytest.raises(RuntimeError, match="world_size=2"):
        ClipLoss(world_size=2)(images, texts, torch.tensor(10.0))
