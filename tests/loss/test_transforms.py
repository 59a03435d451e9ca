"""`clip_loss` under callers that derive twice, transform functions, or bring no values."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from clipfast.loss import available_impls, clip_loss, gather_texts
from clipfast.ops import batch_norm
from tests.loss.problems import make_features, paper_loss
from tests.ranks import run_ranks

FUSED = [name for name in available_impls("cpu") if name not in ("reference", "triton")]
SCALE = 14.3


def problem(batch=7, width=5):
    images, texts = (x.double() for x in make_features(batch, width))
    return images, texts, torch.tensor(SCALE, dtype=torch.float64)


def paper(images, texts, scale):
    return paper_loss(images, texts, scale)


def penalty(loss, names):
    """Gradients of a loss with a penalty on its gradients, by all that it depends on."""
    inputs = [x.clone().requires_grad_() for x in problem()]
    value = loss(*inputs)
    first = torch.autograd.grad(value, [inputs[i] for i in names], create_graph=True)
    (value + sum(g.square().sum() for g in first)).backward()
    return [x.grad for x in inputs]


@pytest.mark.parametrize("names", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_gradient_penalty_is_right_with_the_reference(names):
    got = penalty(lambda *x: clip_loss(*x, impl="reference"), names)
    for value, truth in zip(got, penalty(paper, names), strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("of", range(3))
@pytest.mark.parametrize("by", range(3))
def test_every_second_derivative_of_a_fused_form_is_refused(impl, of, by):
    dtype = torch.float64 if impl == "plain" else torch.float32
    inputs = [x.to(dtype).requires_grad_() for x in problem()]
    first = torch.autograd.grad(clip_loss(*inputs, impl=impl), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match=r'no second derivative.*impl="reference"'):
        torch.autograd.grad(first[of].sum(), inputs[by], allow_unused=True)


def test_first_derivatives_with_a_graph_are_the_same_bits():
    results = []
    for create_graph in (False, True):
        inputs = [x.float().requires_grad_() for x in problem(33, 16)]
        loss = clip_loss(*inputs)
        results.append(torch.autograd.grad(loss, inputs, create_graph=create_graph))
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


def _penalty_over_ranks(impl):
    inputs = [x.float().requires_grad_() for x in problem()]
    first = torch.autograd.grad(clip_loss(*inputs, impl=impl), inputs, create_graph=True)
    try:
        first[0].square().sum().backward()
    except NotImplementedError as error:
        return str(error)
    return "silent"


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_second_derivatives_are_refused_on_every_rank(impl):
    for message in run_ranks(2, _penalty_over_ranks, impl):
        assert "no second derivative" in message


def test_torch_func_gives_the_papers_derivatives():
    images, texts, scale = problem()
    torch.testing.assert_close(
        torch.func.grad(clip_loss, argnums=(0, 1, 2))(images, texts, scale),
        torch.func.grad(paper, argnums=(0, 1, 2))(images, texts, scale),
        rtol=1e-8,
        atol=1e-10,
    )
    hessians = [
        torch.func.hessian(lambda x, loss=loss: loss(x, texts, scale))(images)
        for loss in (clip_loss, paper)
    ]
    torch.testing.assert_close(*hessians, rtol=1e-8, atol=1e-9)
    stacked = [torch.stack([x, 2 * x.flip(0)]) for x in (images, texts)]
    many = torch.func.vmap(clip_loss, in_dims=(0, 0, None))(*stacked, scale)
    one_by_one = [paper(*pair, scale) for pair in zip(*stacked, strict=True)]
    torch.testing.assert_close(many, torch.stack(one_by_one))


def test_forward_mode_gives_the_directional_derivative():
    images, texts, scale = problem()
    direction = torch.randn_like(images)
    for call in (clip_loss, lambda u, v, s: clip_loss(u, gather_texts(v, impl="reference"), s)):
        with forward_ad.dual_level():
            loss = call(forward_ad.make_dual(images, direction), texts, scale)
            tangent = forward_ad.unpack_dual(loss).tangent
        truth = (torch.func.grad(paper)(images, texts, scale) * direction).sum()
        torch.testing.assert_close(tangent, truth)


@pytest.mark.parametrize("impl", FUSED)
def test_fused_forms_name_the_reference_under_transforms(impl):
    images, texts, scale = (x.float() for x in problem())
    with pytest.raises(NotImplementedError, match='use impl="reference"'):
        torch.func.grad(lambda x: clip_loss(x, texts, scale, impl=impl))(images)
    gathered = gather_texts(texts)
    with pytest.raises(NotImplementedError, match="text features themselves"):
        torch.func.grad(lambda x: clip_loss(x, gathered, scale))(images)


def _transform_over_ranks():
    images, texts, scale = (x.float() for x in problem())
    try:
        torch.func.grad(clip_loss)(images, texts, scale)
    except NotImplementedError as error:
        return str(error)
    return "silent"


def test_transforms_over_ranks_say_what_to_use():
    for message in run_ranks(2, _transform_over_ranks):
        assert "over ranks use loss.backward()" in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("impl", ["auto", "plain", "reference"])
def test_meta_tensors_give_shapes(impl, dtype):
    images = torch.empty(6, 8, device="meta", dtype=dtype, requires_grad=True)
    texts = torch.empty(6, 8, device="meta", dtype=dtype, requires_grad=True)
    scale = torch.empty((), device="meta", requires_grad=True)
    loss = clip_loss(images, texts, scale, impl=impl)
    assert (loss.shape, loss.dtype, loss.device.type) == ((), torch.float32, "meta")
    loss.backward()
    assert (images.grad.shape, texts.grad.dtype, scale.grad.shape) == ((6, 8), dtype, ())


def test_fake_tensors_give_shapes():
    with FakeTensorMode():
        images, texts = (torch.randn(6, 8, requires_grad=True) for _ in range(2))
        loss = clip_loss(images, texts, torch.tensor(math.e))
        loss.backward()
    assert (loss.shape, images.grad.shape) == ((), (6, 8))


def test_batch_norm_refuses_a_second_derivative():
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    mean, inv_std, _ = torch.ops.clipfast.batch_norm_statistics(x.detach(), 1e-5)
    y = batch_norm.batch_norm(x, mean, inv_std, weight, bias)
    # Of a sum the gradient that comes in has no graph.
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"batch_norm has no second derivative"):
        first.square().sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"image_features": [[1.0]]}, TypeError, "image_features must be a dense tensor; got list"),
        ({"text_features": None}, TypeError, "text_features must be a dense tensor; got NoneType"),
        ({"image_features": torch.eye(7).to_sparse()}, TypeError, "dense tensor; got torch.sparse"),
        ({"logit_scale": torch.tensor(14)}, TypeError, "logit_scale must be floating point"),
        ({"workspace_bytes": "1G"}, TypeError, "workspace_bytes: expected an int, got '1G'"),
        ({"batch_sizes": [7, 7]}, ValueError, r"the size of this one process, \[7\], got \[7, 7\]"),
    ],
)
def test_wrong_arguments_are_named(change, error, words):
    images, texts, scale = (x.float() for x in problem())
    arguments = {"image_features": images, "text_features": texts, "logit_scale": scale}
    with pytest.raises(error, match=words):
        clip_loss(**{**arguments, **change})
