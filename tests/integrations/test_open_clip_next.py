"""``patch_open_clip`` on versions of OpenCLIP that are not known here: nothing of it ends a run.

What OpenCLIP changed in version 4 stands here in small. With ``CLIPFAST_OPEN_CLIP`` naming a
checkout, all tests of this folder run on it, and so do its own training tests, on patched models.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clipfast
from benchmarks.peers import CHECKOUT
from clipfast.integrations import open_clip_loss as losses
from tests.integrations.models import LOSS, SHRUNK_VIT, tiny
from tests.integrations.test_open_clip import assert_same, make_batch, run
from tests.peers import import_open_clip


class Attention(nn.Module):
    """As OpenCLIP 4 has it in the place of torch's module: the same parameters, its own forward."""

    def __init__(self, old: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = old.num_heads, old.embed_dim // old.num_heads
        self.in_proj_weight, self.in_proj_bias = old.in_proj_weight, old.in_proj_bias
        self.ln_q, self.out_proj = nn.Identity(), old.out_proj
        self.drop = nn.Dropout(0.0)
        self.slope = 0.0

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.slope:  # an option of the next version
            distance = torch.arange(length, dtype=x.dtype)
            bias = -self.slope * (distance[:, None] - distance).abs()
            mask = bias if mask is None else mask + bias
        out = F.scaled_dot_product_attention(self.ln_q(q), k, v, attn_mask=mask)
        return self.drop(self.out_proj(out.transpose(1, 2).reshape(batch, length, width)))


class Block(nn.Module):
    """A block whose attention is called in another way, under another name."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        for name in ("ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"):
            setattr(self, name, getattr(old, name))
        if isinstance(self.attn, nn.MultiheadAttention):
            self.attn = Attention(self.attn)

    def get_weight_dtype(self) -> torch.dtype:
        return self.mlp.c_fc.weight.dtype

    def forward(
        self, q_x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        mask = None if attn_mask is None else attn_mask.to(q_x.dtype)
        x = q_x + self.ls_1(self.attn(self.ln_1(q_x), mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


@pytest.fixture
def renamed() -> nn.Module:
    """A model of the next version, whose classes have other names."""
    import_open_clip()
    Attention.__module__ = Block.__module__ = "open_clip.next"
    model = tiny(SHRUNK_VIT)
    if not isinstance(model.transformer.resblocks[0].attn, nn.MultiheadAttention):
        pytest.skip("made from the blocks of OpenCLIP 3")
    for transformer in (model.transformer, model.visual.transformer):
        transformer.resblocks = nn.ModuleList(Block(block) for block in transformer.resblocks)
    return model


def test_patch_knows_blocks_by_their_structure(patch_and_undo, renamed):
    images, tokens = make_batch(renamed)
    expected = run(renamed, images, tokens)
    patch = patch_and_undo(renamed, loss=False)
    assert patch.swapped.keys() == {"visual", "encode_text"}
    assert_same(run(renamed, images, tokens), expected, 1e-11)


def test_patch_leaves_an_option_of_the_next_version_alone(patch_and_undo, renamed):
    for block in renamed.transformer.resblocks:
        block.attn.slope = 0.5
    images, tokens = make_batch(renamed)
    expected = run(renamed, images, tokens)
    patch = patch_and_undo(renamed, loss=False)
    assert "computes something else" in patch.left_alone["encode_text"]
    assert "visual" in patch.swapped
    assert_same(run(renamed, images, tokens), expected, 1e-11)


@pytest.mark.parametrize("gone", ["use_horovod", "gather_with_grad", "world_size", "local_loss"])
def test_patched_loss_without_an_option_runs(patch_and_undo, gone):
    loss = import_open_clip().loss.ClipLoss()
    vars(loss).pop(gone, None)
    u, v = (F.normalize(torch.randn(5, 8, dtype=torch.float64), dim=1) for _ in range(2))
    scale = torch.tensor(9.0, dtype=torch.float64)
    logits = scale * u @ v.T
    target = torch.arange(5)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    patch_and_undo(tiny())
    if gone == "world_size":
        with (
            pytest.warns(UserWarning, match="without rank and world_size"),
            pytest.raises(AttributeError, match="world_size"),
        ):
            loss(u, v, scale)  # as OpenCLIP's own
    else:
        torch.testing.assert_close(loss(u, v, scale), expected)


def test_patched_loss_with_an_option_of_the_next_version_is_left_alone(patch_and_undo, monkeypatch):
    kind = import_open_clip().loss.ClipLoss
    original = kind.forward

    def forward(self: Any, *args: Any, smoothing_of_call: float = 0.0, **kwargs: Any) -> Tensor:
        return original(self, *args, **kwargs) * (1 + getattr(self, "smoothing", 0.0))

    monkeypatch.setattr(kind, "forward", forward)
    u, v = (F.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    loss, scale = kind(), torch.tensor(9.0)
    patch = patch_and_undo(tiny())
    plain = loss(u, v, scale)
    loss.smoothing = 0.5
    with pytest.warns(UserWarning, match="computes another loss"):
        torch.testing.assert_close(loss(u, v, scale), 1.5 * plain)
    loss.smoothing = 0.0
    with pytest.warns(UserWarning, match="more arguments than are known"):
        torch.testing.assert_close(loss(u, v, scale, smoothing_of_call=0.1), plain)
    patch.undo()


@pytest.mark.parametrize("case", ["a scale of two numbers", "another type", "a scale as a float"])
def test_patched_loss_serves_what_open_clips_serves(patch_and_undo, case):
    kind = import_open_clip().loss.ClipLoss
    u, v = (F.normalize(torch.randn(2, 8), dim=1) for _ in range(2))
    scale: Any = torch.tensor(9.0)
    if case == "a scale of two numbers":
        scale = torch.tensor([[9.0], [9.0]])
    elif case == "a scale as a float":
        scale = 9.0
    context = torch.autocast("cpu", torch.bfloat16, enabled=case == "another type")
    v = v.bfloat16() if case == "another type" else v
    with context:
        expected = kind()(u, v, scale)
        patch_and_undo(tiny())
        with pytest.warns(UserWarning, match="is left alone"):
            torch.testing.assert_close(kind()(u, v, scale), expected)


def test_patch_where_open_clips_loss_is_ours_already(patch_and_undo, monkeypatch):
    open_clip = import_open_clip()
    theirs = open_clip.loss.ClipLoss
    monkeypatch.setattr(open_clip.loss, "ClipLoss", clipfast.ClipLoss)
    for loss in (True, clipfast.ClipLoss()):
        patch = patch_and_undo(tiny(), loss=loss)
        reason = patch.left_alone[LOSS if loss is True else "loss"]
        assert reason == "it is clipfast's ClipLoss already"
        patch.undo()
    monkeypatch.undo()
    assert open_clip.loss.ClipLoss is theirs


def test_patch_where_open_clip_has_no_such_loss_or_module(patch_and_undo, monkeypatch):
    model = tiny()
    open_clip = import_open_clip()
    before = open_clip.loss.ClipLoss
    monkeypatch.setitem(sys.modules, "open_clip.loss", ModuleType("open_clip.loss"))
    patch = patch_and_undo(model)
    assert patch.left_alone[LOSS] == "this version of OpenCLIP has no such class"
    assert patch.swapped.keys() == {"visual", "encode_text"}
    assert losses.object_obstacle(before()) == "it is a ClipLoss"


def test_patch_of_a_siglip_model_leaves_the_loss_class_alone(patch_and_undo):
    model = tiny(custom=True)
    model.logit_bias = nn.Parameter(torch.tensor(-10.0))
    before = import_open_clip().loss.ClipLoss.forward
    patch = patch_and_undo(model)
    assert "SigLipLoss trains it" in patch.left_alone[LOSS]
    assert import_open_clip().loss.ClipLoss.forward is before


def test_patch_that_swaps_nothing_says_so(patch_and_undo):
    model = tiny(SHRUNK_VIT | {"pool_type": "avg"}, custom=True, no_causal_mask=True)
    patch = patch_and_undo(model, loss=False)
    assert str(patch).startswith("nothing was swapped")


def test_distill_loss_is_open_clips(patch_and_undo):
    loss = import_open_clip().loss.DistillClipLoss()
    u, v = (F.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    values = (u, v, torch.tensor(9.0), v, u, torch.tensor(5.0))
    expected = loss(*values)
    patch_and_undo(tiny())
    torch.testing.assert_close(loss(*values), expected)


def _gradients_under_ddp(is_patched: bool) -> list[Tensor]:
    from torch.nn.parallel import DistributedDataParallel

    open_clip = import_open_clip()
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = tiny(SHRUNK_VIT)
    model.set_grad_checkpointing(True)
    torch.manual_seed(rank)
    images, tokens = make_batch(model)
    if is_patched:
        clipfast.patch_open_clip(model)
    wrapped = DistributedDataParallel(model, static_graph=True)
    loss = open_clip.loss.ClipLoss(
        local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size
    )
    u, v, scale = wrapped(images, tokens)
    loss(u, v, scale).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_patched_model_trains_under_ddp_as_open_clips():
    from tests.ranks import run_ranks

    import_open_clip()
    expected, actual = (run_ranks(2, _gradients_under_ddp, patched) for patched in (False, True))
    for theirs, ours in zip(expected, actual, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def _gradients_under_fsdp() -> list[list[Tensor]]:
    from torch.distributed.fsdp import fully_shard

    from clipfast.integrations import open_clip_modules as modules

    results = []
    for is_patched in (False, True):
        model = tiny(SHRUNK_VIT).float()
        model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))
        images, tokens = make_batch(model)
        if is_patched:
            clipfast.patch_open_clip(model, loss=False)
        for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
            fully_shard(block)
        fully_shard(model)
        calls, blocks = [], modules._run_blocks
        modules._run_blocks = lambda *args, run=blocks, calls=calls: calls.append(1) or run(*args)
        u, v, _ = model(images, tokens)
        modules._run_blocks = blocks
        assert len(calls) == 2 * is_patched
        (u * v).sum().backward()
        results.append([p.grad.full_tensor() for p in model.parameters() if p.grad is not None])
    return results


def test_patched_model_trains_under_fsdp_as_open_clips():
    from tests.ranks import run_ranks

    import_open_clip()
    for expected, actual in run_ranks(2, _gradients_under_fsdp):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_scripted_patched_model_is_the_plain_one(patch_and_undo):
    model = tiny(SHRUNK_VIT).eval()
    tokens = make_batch(model)[1]
    expected = model.encode_text(tokens)
    patch_and_undo(model, loss=False)
    try:
        scripted = torch.jit.script(model)
    except Exception as error:  # OpenCLIP 4 has no TorchScript any more
        pytest.skip(f"this OpenCLIP cannot be scripted: {type(error).__name__}")
    torch.testing.assert_close(scripted.encode_text(tokens), expected)


# What needs a GPU, data or packages that are not there fails without the patch too.
THEIR_TESTS = ("test_task_base_unit.py", "test_task_specific_unit.py", "test_task_compile.py")
THEIR_TESTS += ("test_task_checkpoint.py", "test_task_fsdp_unit.py", "test_factory_task.py")
THEIR_TESTS += ("test_loss.py", "test_clap_task.py", "test_eval_task.py", "test_modern_text.py")


@pytest.mark.slow
def test_open_clips_own_training_tests_pass_with_the_patch():
    checkout = os.environ.get(CHECKOUT)
    if not checkout:
        pytest.skip(f"{CHECKOUT} names no checkout of OpenCLIP")
    tests = [path for name in THEIR_TESTS if (path := Path(checkout, "tests", name)).is_file()]
    if not tests:
        pytest.skip(f"{checkout} has no tests of these names")
    plugin = ["-p", "tests.integrations.their_tests", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", *plugin, *map(str, tests)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), CHECKOUT: str(Path(checkout).resolve())}
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
