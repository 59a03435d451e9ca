"""``clip_loss`` and ``ClipLoss`` against the paper's formula in float64, on one or many ranks."""

import functools
import logging
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from clipfast.loss import ClipLoss, available_impls, chosen_impl, clip_loss, gather_texts
from tests.loss.problems import (
    KINDS,
    error,
    fitted_loss,
    gradients,
    make_features,
    paper_loss,
)
from tests.peers import import_open_clip

HERE = [name for name in available_impls("cpu") if name != "triton"]


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


def open_clip_under_amp(images, texts, scale):
    """What open_clip.loss.ClipLoss computes of a model's features under --precision amp_bf16."""
    images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        target = torch.arange(len(images))
        return (
            F.cross_entropy(scale * images @ texts.T, target)
            + F.cross_entropy(scale * texts @ images.T, target)
        ) / 2


def errors(results, truth, scale, kind):
    """Of features that are copies of each other all gradients cancel to nothing: there the size of
    their terms stands for the truth's, s / (2 G) v for features and s for the log-scale."""
    batch = len(truth[1])
    terms = [0.0, *[scale / (2 * batch) * math.sqrt(batch)] * 2, scale]
    for value, exact, term in zip(results, truth, terms, strict=True):
        size = max(exact.norm().item(), 1e-30, term if kind == "duplicate" else 0.0)
        yield (value.double() - exact).norm().item() / size


@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_clip_loss_error_is_at_most_that_of_eager_in_fp32(impl, kind, scale):
    images, texts = make_features(96, 128, torch.float32, kind=kind)
    log_scale = torch.tensor([math.log(scale)])
    truth = gradients(fitted_loss, images.double(), texts.double(), log_scale.double())
    got = gradients(lambda *args: clip_loss(*args, impl=impl), images, texts, log_scale)
    eager = gradients(paper_loss, images, texts, log_scale)
    # fp32 holds a logit of size s to s / 2^24, whoever computes it.
    floor = 2e-6 + scale * 2.0**-22
    for ours, theirs in zip(
        errors(got, truth, scale, kind), errors(eager, truth, scale, kind), strict=True
    ):
        assert ours <= 1.1 * theirs + floor


@pytest.mark.parametrize("impl", [name for name in HERE if name != "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_clip_loss_of_bf16_features_has_at_most_half_of_open_clips_error(impl, kind, scale):
    images, texts = make_features(96, 128, torch.bfloat16, kind=kind)
    log_scale = torch.tensor([math.log(scale)])
    truth = gradients(fitted_loss, images.double(), texts.double(), log_scale.double())
    got = gradients(lambda *args: clip_loss(*args, impl=impl), images, texts, log_scale)
    theirs = gradients(open_clip_under_amp, images, texts, log_scale)
    ours, open_clip = (list(errors(r, truth, scale, kind)) for r in (got, theirs))
    # Cancelling gradients are rounded to bf16 from terms that are not zero.
    floor = 2e-3 if kind == "duplicate" else 0.0
    for index in (1, 2):
        if truth[index].norm() > 1e-30:
            assert ours[index] <= 0.5 * open_clip[index] + floor
    assert ours[0] <= open_clip[0] + 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_clip_loss_returns_gradients_of_the_features_type(dtype):
    images, texts = make_features(13, 31, dtype)
    loss, grad_images, grad_texts, grad_scale = gradients(
        clip_loss, images, texts, torch.tensor([2.6])
    )
    truth = gradients(paper_loss, images.double(), texts.double(), torch.tensor([2.6]).double())
    assert (grad_images.dtype, grad_texts.dtype, grad_scale.dtype) == (dtype, dtype, torch.float32)
    assert loss.dtype == torch.float32
    assert error(loss, truth[0]) < 1e-6
    assert max(error(grad_images, truth[1]), error(grad_texts, truth[2])) < 4e-3


@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clip_loss_repeats_bit_for_bit(impl, dtype):
    images, texts = make_features(300, 130, dtype)
    first, second = (
        gradients(lambda *args: clip_loss(*args, impl=impl), images, texts, torch.tensor([3.0]))
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize(("batch", "width"), [(1, 7), (2, 1), (5, 4096), (507, 3)])
def test_clip_loss_takes_odd_shapes(impl, batch, width):
    images, texts = make_features(batch, width, torch.float32)
    log_scale = torch.tensor([2.6])
    truth = gradients(fitted_loss, images.double(), texts.double(), log_scale.double())
    got = gradients(lambda *args: clip_loss(*args, impl=impl), images, texts, log_scale)
    eager = gradients(paper_loss, images, texts, log_scale)
    for value, plain, exact in zip(got, eager, truth, strict=True):
        difference = (value.double() - exact).norm()
        assert difference <= 1.1 * (plain.double() - exact).norm() + 4e-6 * (1 + exact.norm())


@pytest.mark.parametrize("impl", HERE)
def test_clip_loss_reads_strided_and_expanded_features(impl):
    images, texts = make_features(9, 40, torch.float32)
    views = (images.T.contiguous().T, texts[:, ::2], texts[:1].expand(9, 40))
    pairs = ((views[0], texts), (images[:, ::2], views[1]), (images, views[2]))
    for image_view, text_view in pairs:
        got = gradients(
            lambda *args: clip_loss(*args, impl=impl), image_view, text_view, torch.tensor([2.6])
        )
        truth = gradients(
            paper_loss, image_view.double(), text_view.double(), torch.tensor([2.6]).double()
        )
        for value, exact in zip(got, truth, strict=True):
            torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-6)
    image_view = images.T.contiguous().T.requires_grad_()
    clip_loss(image_view, texts, torch.tensor(10.0), impl=impl).backward()
    assert image_view.grad.shape == image_view.shape


@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize("exponent", [100, -100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clip_loss_of_huge_and_tiny_features_is_that_of_their_directions(impl, exponent, dtype):
    images, texts = make_features(6, 34, dtype)
    log_scale = torch.tensor([2.6])
    size = 2.0**exponent
    loss_function = functools.partial(clip_loss, impl=impl)
    truth = gradients(loss_function, images, texts, log_scale)
    got = gradients(loss_function, images * size, texts, log_scale)
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got[0], truth[0], rtol=1e-5, atol=0)
    assert error(got[1].double() * size, truth[1]) < limit
    assert error(got[2], truth[2]) < limit


@pytest.mark.parametrize("impl", HERE)
def test_clip_loss_of_a_zero_row_is_finite(impl):
    images, texts = make_features(7, 20, torch.float32)
    images[3] = 0
    got = gradients(lambda *a: clip_loss(*a, impl=impl), images, texts, torch.tensor([2.6]))
    assert all(value.isfinite().all() for value in got)
    assert (got[1][3] == 0).all()


@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize("keep", [True, False])
def test_clip_loss_survives_sums_that_no_single_shift_holds(impl, keep):
    # Every image points away from every text: at s = 100 the sums vanish under the usual shift.
    images = make_features(40, 30, torch.float32)[0].abs()
    texts = -images.flip(0)
    log_scale = torch.tensor([math.log(100.0)])
    truth = gradients(paper_loss, images.double(), texts.double(), log_scale.double())
    got = gradients(
        lambda *args: clip_loss(*args, impl=impl, keep_logits=keep), images, texts, log_scale
    )
    for value, exact in zip(got, truth, strict=True):
        assert error(value, exact) < 1e-4
    # And features that are not normalised: logits of several hundred.
    got = gradients(
        lambda *args: clip_loss(*args, impl=impl, keep_logits=keep, normalize=False),
        *(images, -texts, torch.tensor([2.6])),
    )
    truth = gradients(
        lambda u, v, s: paper_loss(u, v, s, normalize=False),
        *(images.double(), -texts.double(), torch.tensor([2.6]).double()),
    )
    for value, exact in zip(got, truth, strict=True):
        assert error(value, exact) < 1e-4


def test_clip_loss_keeps_logits_in_fp32_under_autocast():
    images, texts = make_features(64, 128, torch.float32)
    scale = torch.tensor(100.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = clip_loss(images, texts, scale)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, clip_loss(images, texts, scale), rtol=1e-6, atol=0)


@pytest.mark.parametrize("impl", HERE)
def test_clip_loss_under_autocast_has_the_gradients_of_without(impl):
    images, texts = make_features(64, 128, torch.float32)
    log_scale = torch.tensor([2.6])

    def under_autocast(*args):
        with torch.autocast("cpu", torch.bfloat16):
            return clip_loss(*args, impl=impl)

    truth = gradients(lambda *args: clip_loss(*args, impl=impl), images, texts, log_scale)
    got = [gradients(under_autocast, images, texts, log_scale)]
    if impl != "reference":  # torch's own autograd rounds where backward itself runs so
        with torch.autocast("cpu", torch.bfloat16):
            got.append(gradients(lambda *a: clip_loss(*a, impl=impl), images, texts, log_scale))
    for values in got:
        for value, exact in zip(values, truth, strict=True):
            torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("impl", HERE)
def test_clip_loss_scales_its_gradients_with_the_loss(impl):
    images, texts = make_features(8, 16, torch.float32)
    log_scale = torch.tensor([2.6])
    plain = gradients(lambda *args: clip_loss(*args, impl=impl), images, texts, log_scale)
    scaled = gradients(lambda *args: 1024.0 * clip_loss(*args, impl=impl), images, texts, log_scale)
    for value, exact in zip(scaled, plain, strict=True):
        torch.testing.assert_close(value, 1024.0 * exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize("side", [0, 1])
def test_clip_loss_of_nan_features_is_nan(impl, side):
    features = make_features(4, 8, torch.float32)
    features[side][2, 3] = float("nan")
    assert torch.isnan(clip_loss(*features, torch.tensor(10.0), impl=impl))


def test_clip_loss_gathered_texts_equal_texts_and_refuse_options():
    images, texts = make_features(6, 9, torch.float32)
    direct = gradients(clip_loss, images, texts, torch.tensor([2.6]))
    gathered = gradients(
        lambda u, v, s: clip_loss(u, gather_texts(v), s), images, texts, torch.tensor([2.6])
    )
    assert all(torch.equal(a, b) for a, b in zip(direct, gathered, strict=True))
    with pytest.raises(ValueError, match="gather_texts"):
        clip_loss(images, gather_texts(texts), torch.tensor(1.0), normalize=False)
    once = gather_texts(texts)
    clip_loss(images, once, torch.tensor(1.0))
    with pytest.raises(ValueError, match="again"):
        clip_loss(images, once, torch.tensor(1.0))


def test_clip_loss_keeps_the_strip_only_where_it_fits():
    images, texts = make_features(64, 16, torch.float32)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, id):
        for budget in (64 * 64 * 4, 64 * 64 * 4 - 1):
            clip_loss(
                images.clone().requires_grad_(), texts, torch.tensor(1.0), workspace_bytes=budget
            )
    assert sizes.count(64 * 64) == 1


def test_clip_loss_says_what_auto_chose(caplog):
    from clipfast.ops.contrastive import impls

    images, texts = make_features(4, 8, torch.float32)
    impls._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "clipfast.loss"):
        clip_loss(images, texts, torch.tensor(1.0))
        clip_loss(images, texts, torch.tensor(1.0))
    assert caplog.text.count(f"'{chosen_impl(images)}'") == 1
    assert chosen_impl(images) == available_impls("cpu")[0]


@pytest.mark.parametrize("impl", [name for name in HERE if name != "reference"])
def test_clip_loss_without_gradients_keeps_nothing(impl, monkeypatch):
    from clipfast.loss import fused

    asked = []
    ops = fused.operators(impl)

    def statistics(*arguments):
        asked.append(arguments[7])
        return ops.statistics(*arguments)

    monkeypatch.setattr(fused, "operators", lambda _: ops._replace(statistics=statistics))
    images, texts = make_features(4, 8, torch.float32)
    leaf = images.clone().requires_grad_()
    with torch.no_grad():
        clip_loss(leaf, texts, torch.tensor(1.0), impl=impl, keep_logits=True)
    clip_loss(images, texts, torch.tensor(1.0), impl=impl, keep_logits=True)
    clip_loss(leaf, texts, torch.tensor(1.0), impl=impl, keep_logits=True)
    assert asked == [False, False, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"impl": "fast"}, "expected one of auto, reference, cpu"),
        ({"impl": "cuda"}, "what can: "),
        ({"keep_logits": "yes"}, "True, False or 'auto'"),
        ({"workspace_bytes": 0}, "positive"),
    ],
)
def test_clip_loss_refuses_options_with_a_remedy(options, words):
    images, texts = make_features(4, 8, torch.float32)
    with pytest.raises(ValueError, match=words):
        clip_loss(images, texts, torch.tensor(1.0), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clip_loss_compiles_without_a_graph_break(dtype):
    images, texts = make_features(33, 20, dtype)
    torch._dynamo.reset()

    def doubled(u, v, s):
        return clip_loss(2 * u, gather_texts(v), s)

    compiled = torch.compile(doubled, fullgraph=True)
    got = gradients(compiled, images, texts, torch.tensor([2.6]))
    plain = gradients(doubled, images, texts, torch.tensor([2.6]))
    for value, exact in zip(got, plain, strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-7)


def test_clip_loss_works_with_torch_alone():
    # As where nothing was compiled and Triton is absent.
    script = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "hidden = ('clipfast._C', 'triton')\n"
        "u.find_spec = lambda n, *a: None if n in hidden else find(n, *a)\n"
        "import torch, clipfast\n"
        "x = torch.randn(5, 6, requires_grad=True)\n"
        "clipfast.clip_loss(x, torch.randn(5, 6), torch.tensor(10.0)).backward()\n"
        "from clipfast.loss import available_impls\n"
        "print(available_impls('cpu'), bool(x.grad.isfinite().all()), 'triton' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True
    )
    assert done.stdout.strip() == "['plain', 'reference'] True False", done.stderr


@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize("wanted", ["images", "texts", "scale"])
def test_clip_loss_gives_gradients_to_any_subset(impl, wanted):
    images, texts = make_features(5, 6, torch.float32)
    leaves = {"images": images, "texts": texts, "scale": torch.tensor([14.3])}
    every = [leaf.clone().requires_grad_() for leaf in leaves.values()]
    truth = torch.autograd.grad(clip_loss(*every, impl=impl), every)
    leaves[wanted].requires_grad_()
    clip_loss(*leaves.values(), impl=impl).backward()
    for (name, leaf), exact in zip(leaves.items(), truth, strict=True):
        if name == wanted:
            torch.testing.assert_close(leaf.grad, exact, rtol=1e-6, atol=1e-8)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("impl", HERE)
def test_clip_loss_can_be_differentiated_twice_over_one_graph(impl):
    leaves = [x.requires_grad_() for x in make_features(9, 12, torch.float32)]
    loss = clip_loss(*leaves, torch.tensor(14.3), impl=impl)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("images", "texts", "scale", "error", "words"),
    [
        (torch.zeros(3, 4), torch.zeros(4, 3), torch.ones(1), ValueError, r"\(3, 4\)"),
        (torch.zeros(3), torch.zeros(3), torch.ones(1), ValueError, "batch, embedding"),
        (torch.zeros(0, 4), torch.zeros(0, 4), torch.ones(1), ValueError, "empty"),
        (torch.zeros(3, 4), torch.zeros(3, 4), torch.ones(2), ValueError, "one element"),
        (torch.zeros(3, 4), torch.zeros(3, 4), 10.0, TypeError, r"torch.tensor\(10.0\)"),
        (torch.zeros(3, 4), torch.zeros(3, 4).half(), torch.ones(1), TypeError, "one dtype"),
        (torch.zeros(3, 4).int(), torch.zeros(3, 4).int(), torch.ones(1), TypeError, "floating"),
    ],
)
def test_clip_loss_refuses_what_does_not_fit(images, texts, scale, error, words):
    with pytest.raises(error, match=words):
        clip_loss(images, texts, scale)


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


@pytest.mark.parametrize("local_loss", [False, True])
def test_clip_loss_module_gives_open_clips_logits_and_targets(local_loss):
    images, texts = (F.normalize(x, dim=1) for x in make_features(5, 8, torch.float64))
    scale, bias = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    theirs = import_open_clip().loss.ClipLoss(local_loss=local_loss, cache_labels=True)
    ours = ClipLoss(local_loss=local_loss, cache_labels=True)
    assert vars(theirs).keys() <= vars(ours).keys()
    for values in ((images, texts, scale), (images, texts, scale, bias)):
        for value, truth in zip(ours.get_logits(*values), theirs.get_logits(*values), strict=True):
            torch.testing.assert_close(value, truth)
    target = ours.get_ground_truth(images.device, 5)
    assert torch.equal(target, theirs.get_ground_truth(images.device, 5))
    per_image, per_text = ours.get_logits(images, texts, scale)
    by_hand = (F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)) / 2
    torch.testing.assert_close(ours(images, texts, scale), by_hand)


def test_clip_loss_module_refuses_horovod_and_a_wrong_world_size():
    with pytest.raises(NotImplementedError, match="Horovod"):
        ClipLoss(use_horovod=True)
    images, texts = make_features(4, 8, torch.float32)
    with pytest.raises(RuntimeError, match="world_size=2"):
        ClipLoss(world_size=2)(images, texts, torch.tensor(10.0))
