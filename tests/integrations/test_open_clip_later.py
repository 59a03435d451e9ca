"""``patch_open_clip`` follows what is set after the patch, or steps aside and says so."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import clipfast
from clipfast.integrations import open_clip_modules as modules
from tests.integrations.models import CONTEXT, SHRUNK_RESNET, SHRUNK_VIT, VOCABULARY, tiny

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
LARGER = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()


def make_tokens() -> Tensor:
    tokens = torch.randint(3, VOCABULARY - 1, (3, CONTEXT), generator=torch.Generator())
    tokens[torch.arange(3), torch.tensor([2, 5, CONTEXT - 1])] = VOCABULARY - 1
    return tokens


@pytest.fixture
def runs(monkeypatch) -> Iterator[list[int]]:
    """Grows whenever a tower runs in clipfast's form."""
    calls: list[int] = []
    run = modules._run_blocks

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return run(*args)

    monkeypatch.setattr(modules, "_run_blocks", counted)
    return calls


@pytest.fixture
def pair(patch_and_undo, runs) -> Callable[..., tuple[nn.Module, nn.Module]]:
    """A plain model and a patched one with the same weights."""

    def make(*args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
        plain = tiny(*args, **kwargs)
        patched = copy.deepcopy(plain)
        patch_and_undo(patched, loss=False)
        runs.clear()  # the patch itself compares
        return plain, patched

    return make


def outputs(model: nn.Module, images: Tensor = IMAGES) -> list[Any]:
    """What both towers give, and the gradients of all parameters from all of it."""
    model.zero_grad(set_to_none=True)
    results = []
    for value in (model.encode_image(images), model.encode_text(make_tokens())):
        results += value if isinstance(value, tuple) else [value]
    sum(value.double().square().sum() for value in results).backward()
    return results + [p.grad for p in model.parameters()]


def assert_follows(plain: nn.Module, patched: nn.Module, images: Tensor = IMAGES) -> None:
    actual, expected = outputs(patched, images), outputs(plain, images)
    assert [x is None for x in actual] == [x is None for x in expected]
    for a, b in zip(actual, expected, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def set_on_both(path: str, value: Any) -> Callable[[nn.Module], None]:
    *parents, name = path.split(".")

    def change(model: nn.Module) -> None:
        owner = model
        for parent in parents:
            owner = owner[int(parent)] if parent.isdigit() else getattr(owner, parent)
        setattr(
            owner, name, value() if callable(value) and not isinstance(value, nn.Module) else value
        )

    return change


class Lora(nn.Module):
    """What a library for adapters puts in a linear layer's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.ones(2, base.in_features).double())
        self.up = nn.Parameter(torch.ones(base.out_features, 2).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def adapt(model: nn.Module) -> None:
    for transformer in (model.transformer, model.visual.transformer):
        transformer.resblocks[1].mlp.c_fc = Lora(transformer.resblocks[1].mlp.c_fc)


def mix_tokens(model: nn.Module) -> None:
    class Mix(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.mean(dim=-2, keepdim=True)

    model.visual.transformer.resblocks[0].ls_1 = Mix()
    model.transformer.resblocks[0].ls_2 = Mix()


def replace_attention(model: nn.Module) -> None:
    for transformer in (model.transformer, model.visual.transformer):
        block = transformer.resblocks[0]
        block.attention = lambda q_x, **_: q_x


def replace_block(model: nn.Module) -> None:
    for transformer in (model.transformer, model.visual.transformer):
        # As unpickled from elsewhere: plain, and of the same structure.
        block = transformer.resblocks[0]
        buffer = io.BytesIO()
        torch.save(block, buffer)
        buffer.seek(0)
        transformer.resblocks[0] = torch.load(buffer, weights_only=False)


def more_heads(model: nn.Module) -> None:
    for block in model.transformer.resblocks:
        block.attn.num_heads *= 2
        block.attn.head_dim //= 2


def change_attention(model: nn.Module) -> None:
    for transformer in (model.transformer, model.visual.transformer):
        attention = transformer.resblocks[1].attn
        if hasattr(attention, "head_scale"):
            attention.head_scale = torch.full((2, 1, 1), 2.0).double()
        else:
            attention.bias_k = nn.Parameter(torch.ones(1, 1, 64).double())
            attention.bias_v = nn.Parameter(torch.ones(1, 1, 64).double())


def lengthen(model: nn.Module) -> None:
    """As checkpoints of longer captions ask for: the tokens of before no longer fit."""
    more = torch.ones(4, 64).double()
    longer = torch.cat([model.positional_embedding.detach(), more])[4:]
    model.positional_embedding = nn.Parameter(longer)


# What is set -> how many of the two towers go on in clipfast's form. None: OpenCLIP 4 keeps the
# scale of attention beside the number of heads, and 3 does not.
CHANGES: dict[str, tuple[Callable[[nn.Module], Any], int | None]] = {
    "nothing": (lambda model: None, 2),
    "output_tokens": (set_on_both("visual.output_tokens", True), 1),
    "pool_type": (set_on_both("visual.pool_type", "avg"), 1),
    "no projection": (set_on_both("visual.proj", None), 2),
    "no text projection": (set_on_both("text_projection", None), 2),
    "final_ln_after_pool": (set_on_both("visual.final_ln_after_pool", True), 2),
    "no final norm": (set_on_both("visual.ln_post", nn.Identity()), 2),
    "text_pool_type last": (set_on_both("text_pool_type", "last"), 1),
    "text_pool_type none": (set_on_both("text_pool_type", "none"), 1),
    "text_eos_id": (
        lambda model: (
            setattr(model, "text_pool_type", "eos"),
            setattr(model, "text_eos_id", VOCABULARY - 1),
        ),
        2,
    ),
    "no mask": (lambda model: model.register_buffer("attn_mask", None), 1),
    "mask of zeros": (
        set_on_both("attn_mask", lambda: torch.zeros(CONTEXT, CONTEXT).double()),
        1,
    ),
    "mask edited in place": (lambda model: model.attn_mask[0, 3].zero_(), 1),
    "checkpointing": (lambda model: model.set_grad_checkpointing(True), 2),
    "image tower locked": (lambda model: model.lock_image_tower(), 2),
    "text tower locked": (lambda model: model.lock_text_tower(1), 2),
    "eval": (lambda model: model.eval(), 2),
    "float": (lambda model: model.double(), 2),
    "image_mean": (set_on_both("visual.image_mean", (0.5, 0.5, 0.5)), 2),
    "fewer blocks": (lambda model: model.visual.transformer.prune_intermediate_layers([0]), 2),
    "adapters": (adapt, 0),
    "a part that mixes tokens": (mix_tokens, 0),
    "a method on the object": (replace_attention, 0),
    "another block": (replace_block, 0),
    "a forward on the object": (
        lambda model: setattr(model.visual.transformer, "forward", lambda x, **_: 2 * x),
        1,
    ),
    "more heads": (more_heads, None),
    "attention of another kind": (change_attention, 0),
    "a longer context": (lengthen, 2),
    "a wider norm": (set_on_both("ln_final.eps", 0.5), 2),
    "parametrised": (
        lambda model: parametrize.register_parametrization(
            model.visual.transformer.resblocks[0].mlp.c_fc, "weight", nn.Tanh()
        ),
        2,
    ),
    "weight norm": (
        lambda model: nn.utils.weight_norm(model.transformer.resblocks[0].mlp.c_proj),
        1,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_patched_model_follows(pair, runs, change):
    apply, expected = CHANGES[change]
    plain, patched = pair()
    for model in (plain, patched):
        apply(model)
    assert_follows(plain, patched)
    assert expected is None or len(runs) == expected


@pytest.mark.parametrize("name", ["output_tokens", "pool_type"])
def test_patched_text_tower_follows(pair, runs, name):
    plain, patched = pair(custom=True)
    for model in (plain, patched):
        setattr(model.text, name, True if name == "output_tokens" else "first")
    assert_follows(plain, patched)
    assert len(runs) == 1


def test_patched_model_takes_up_its_form_again_and_says_each_reason_once(pair, runs, caplog):
    _, patched = pair()
    with caplog.at_level(logging.WARNING, "clipfast.integrations"):
        for value in (True, True, False):
            patched.visual.output_tokens = value
            patched.visual(IMAGES)
    assert len(runs) == 1
    (record,) = caplog.records
    assert "visual" in record.message
    assert "output_tokens" in record.message


# Of every part of both towers that a hook can stand on.
HOOKED = ["transformer", "resblocks.0", "resblocks.1", "resblocks.0.attn", "resblocks.1.ln_2"]
HOOKED += ["resblocks.1.mlp", "resblocks.0.mlp.c_fc", "resblocks.1.mlp.gelu", "resblocks.0.ls_1"]


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_registered_later_see_what_open_clip_shows(pair, kind):
    plain, patched = pair()
    seen: dict[int, list[Any]] = {0: [], 1: []}
    for number, model in enumerate((plain, patched)):
        for tower in (model, model.visual):
            for name in HOOKED:
                path = "transformer" if name == "transformer" else f"transformer.{name}"
                register = getattr(tower.get_submodule(path), f"register_{kind}_hook")
                register(lambda *args, n=number: seen[n].append(args[-1]))
        outputs(model)
    assert len(seen[0]) == len(seen[1]) >= len(HOOKED)
    for expected, actual in zip(seen[0], seen[1], strict=True):
        pairs = zip(
            expected if isinstance(expected, tuple) else [expected],
            actual if isinstance(actual, tuple) else [actual],
            strict=True,
        )
        for a, b in pairs:
            if isinstance(a, Tensor):
                torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


def test_one_hook_alone_sends_one_tower_back(pair, runs, caplog):
    _, patched = pair()
    shapes = []
    handle = patched.visual.transformer.resblocks[1].register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape))
    )
    with caplog.at_level(logging.WARNING, "clipfast.integrations"):
        patched(IMAGES, make_tokens())
    assert shapes == [(3, 5, 64)]
    assert len(runs) == 1
    assert "hooks watch its resblocks.1" in caplog.text
    handle.remove()
    patched(IMAGES, make_tokens())
    assert len(runs) == 3


def test_global_hooks_see_what_open_clip_shows(pair):
    plain, patched = pair()
    shapes: list[tuple[int, ...]] = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: (
            shapes.append(tuple(output.shape)) if isinstance(output, Tensor) else None
        )
    )
    try:
        plain(IMAGES, make_tokens())
        expected = list(shapes)
        shapes.clear()
        patched(IMAGES, make_tokens())
        assert shapes == expected
    finally:
        hook.remove()


def test_class_replaced_by_somebody_else_is_noticed(pair, monkeypatch, runs):
    plain, patched = pair()
    kind = type(plain.transformer.resblocks[0])
    monkeypatch.setattr(kind, "forward", lambda self, q_x, *_, **__: q_x + self.ln_1(q_x))
    assert_follows(plain, patched)
    assert not runs


def test_patched_pool_follows(pair, caplog):
    plain, patched = pair(SHRUNK_RESNET)
    for model in (plain, patched):
        pool = model.visual.attnpool
        pool.num_heads //= 2
        nn.init.ones_(pool.v_proj.weight)
    assert_follows(plain, patched, LARGER)
    for model in (plain, patched):
        model.visual.attnpool.k_proj.forward = lambda x: x
        parametrize.register_parametrization(model.visual.attnpool.q_proj, "weight", nn.Tanh())
    with caplog.at_level(logging.WARNING, "clipfast.integrations"):
        assert_follows(plain, patched, LARGER)
    assert "forward of its k_proj was replaced" in caplog.text


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_patched_tower_is_quantised_as_the_plain_one(pair):
    plain, patched = (
        torch.ao.quantization.quantize_dynamic(model.visual.float().eval(), {nn.Linear})
        for model in pair()
    )
    kinds = [[type(module).__name__ for module in tower.modules()] for tower in (plain, patched)]
    assert kinds[0] == kinds[1]
    assert "DynamicQuantizedLinear" in str(plain)
    with torch.no_grad():
        torch.testing.assert_close(patched(IMAGES.float()), plain(IMAGES.float()))


def test_patched_model_is_traced_and_exported_as_the_plain_one(pair):
    plain, patched = pair()
    tokens = make_tokens()
    other = tokens.roll(1, 0)
    with torch.no_grad():
        expected = plain.encode_text(other)
        traced = torch.jit.trace_module(patched, {"encode_text": (tokens,)}, check_trace=False)
        torch.testing.assert_close(traced.encode_text(other), expected)
        exported = torch.export.export(patched, (IMAGES, tokens)).module()
        torch.testing.assert_close(exported(IMAGES, other)[1], plain(IMAGES, other)[1])


def test_patched_model_works_under_torch_func(pair):
    plain, patched = pair()
    tokens = make_tokens()

    def value(parameters: dict[str, Tensor], model: nn.Module) -> Tensor:
        u, v, _ = torch.func.functional_call(model, parameters, (IMAGES, tokens))
        return (u * v).sum()

    expected, actual = (
        torch.func.grad(value)({k: p.detach() for k, p in model.named_parameters()}, model)
        for model in (plain, patched)
    )
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-9, atol=1e-9)


def test_patched_model_in_half_precision_follows(pair):
    plain, patched = pair()
    for model in (plain, patched):
        model.to(torch.bfloat16)
    images, tokens = IMAGES.bfloat16(), make_tokens()
    for a, b in zip(patched(images, tokens), plain(images, tokens), strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_patched_model_raises_what_open_clip_raises(pair):
    plain, patched = pair()
    for tokens in (make_tokens()[:, :-2], make_tokens()[0], make_tokens().double()):
        for model in (plain, patched):
            with pytest.raises((RuntimeError, IndexError, ValueError)):
                model.encode_text(tokens)


def test_state_dict_and_copies_of_a_changed_model(pair, runs):
    plain, patched = pair()
    patched.visual.output_tokens = True
    twin = copy.deepcopy(patched)
    twin.load_state_dict(plain.state_dict())
    twin.visual.output_tokens = False
    assert_follows(plain, twin)
    assert len(runs) == 2


def test_patch_of_a_changed_class_is_left_alone(patch_and_undo, monkeypatch):
    """As in a version of OpenCLIP whose attention has an option that is not known here."""
    model = tiny()
    block = type(model.transformer.resblocks[0])
    attention = block.attention

    def scaled(self: Any, q_x: Tensor, **options: Any) -> Tensor:
        return 1.5 * attention(self, q_x, **options)

    monkeypatch.setattr(block, "attention", scaled)
    clipfast.integrations.open_clip_rules._seen.pop(block, None)
    patch = patch_and_undo(model, loss=False)
    clipfast.integrations.open_clip_rules._seen.pop(block, None)
    assert not patch.swapped
    for part in ("visual", "encode_text"):
        assert "computes something else" in patch.left_alone[part]


def test_patch_of_a_model_without_an_image_tower_names_it(patch_and_undo):
    model = tiny(SHRUNK_VIT, custom=True)
    del model.visual
    patch = patch_and_undo(model, loss=False)
    assert patch.left_alone["visual"] == "the model has none"
    assert "text" in patch.swapped
    del model.text
    patch = patch_and_undo(nn.ModuleList([tiny().visual]), loss=False)
    assert patch.left_alone.keys() >= {"visual", "text"}
