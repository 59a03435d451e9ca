"""``patch_open_clip`` on every kind of model that OpenCLIP has a configuration for, shrunk."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

import clipfast
from clipfast.integrations import open_clip_modules as modules
from clipfast.integrations.patching import Patched
from tests.integrations.models import (
    BATCH,
    CONTEXT,
    LOSS,
    SHRUNK_RESNET,
    SHRUNK_TEXT,
    SHRUNK_VIT,
    VOCABULARY,
    WIDTH,
    build,
    tiny,
)
from tests.peers import import_open_clip


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """The same kind of model in thousands of weights; towers of other libraries become ViTs."""
    config = copy.deepcopy(config)
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        vision = {}
    is_resnet = isinstance(vision.get("layers"), list)
    config["vision_cfg"] = vision | (SHRUNK_RESNET if is_resnet else SHRUNK_VIT)
    text = {key: value for key, value in config["text_cfg"].items() if not key.startswith("hf_")}
    ids = {key: VOCABULARY - 2 for key in ("bos_id", "eos_id", "pad_id")}
    text |= {key: small for key, small in ids.items() if (text.get(key) or 0) >= VOCABULARY}
    config["text_cfg"] = text | SHRUNK_TEXT
    if text.get("variable_text") or text.get("text_arch") == "modern":  # OpenCLIP 4
        config["custom_text"] = True
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": WIDTH, "heads": 2, "layers": 1}
        config["multimodal_cfg"] |= {"context_length": CONTEXT, "vocab_size": VOCABULARY}
    return config | {"embed_dim": 32}


def all_configs() -> dict[str, dict[str, Any]]:
    """One configuration of each kind, under the first name that has it."""
    kinds: dict[str, str] = {}
    folder = Path(import_open_clip().__file__).parent / "model_configs"
    for path in sorted(folder.glob("*.json")):
        config = json.loads(path.read_text())
        if not config.keys() >= {"vision_cfg", "text_cfg"} or "genlip_cfg" in config:
            continue  # of a model without an image tower, or of another class
        key = json.dumps(shrink(config), sort_keys=True)
        kinds.setdefault(key, path.stem)
    return {name: json.loads(key) for key, name in kinds.items()}


def make_batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images, and tokens of every length with something behind their end."""
    size = model.visual.image_size
    size = size if isinstance(size, int) else size[0]
    tokens = torch.randint(3, VOCABULARY - 1, (BATCH, CONTEXT))
    text = getattr(model, "text", model)
    eos = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
    pool_type = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    ends = torch.tensor([0, 2, 5, CONTEXT - 1, 5])
    tokens[range(BATCH), ends] = eos if pool_type == "eos" else VOCABULARY - 1
    dtype = next(model.visual.parameters()).dtype
    return torch.randn(BATCH, 3, size, size, dtype=dtype), tokens


def run(model: nn.Module, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Features of both towers, and all gradients from fixed ones of the features."""
    model.zero_grad(set_to_none=True)
    features = {
        "image": model.encode_image(images, normalize=True),
        "text": model.encode_text(tokens, normalize=True),
    }
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    for value in features.values():
        total = total + (value * torch.randn(value.shape, generator=generator)).double().sum()
    if total.requires_grad:
        total.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {**{name: value.detach() for name, value in features.items()}, **gradients}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    sizes = {name: value.norm() for name, value in expected.items()}
    for name, value in expected.items():
        # The key bias shifts all scores alike: its gradient is rounding, beside its weight's.
        scale = max(sizes[name], sizes.get(name.replace("bias", "weight"), sizes[name]))
        difference = (actual[name].double() - value.double()).norm()
        assert difference <= tolerance * scale, f"{name}: {difference / scale:.1e}"


def text_fits(text: dict[str, Any]) -> bool:
    return (
        not text.get("no_causal_mask")
        and text.get("text_arch") != "modern"
        and not text.get("embed_cls")
        and not text.get("output_tokens")
        and text.get("pool_type", "argmax") in ("argmax", "eos")
    )


def image_fits(vision: dict[str, Any]) -> bool:
    return (
        not vision.get("attentional_pool")
        and not vision.get("output_tokens")
        and vision.get("pool_type", "tok") == "tok"
    )


def test_patch_every_configuration_keeps_features_and_gradients(patch_and_undo):
    configs = all_configs()
    assert len(configs) > 10
    for name, config in configs.items():
        model = build(config)
        images, tokens = make_batch(model)
        expected = run(model, images, tokens)
        patch = patch_and_undo(model)
        assert_same(run(model, images, tokens), expected, 1e-11)

        is_resnet = isinstance(config["vision_cfg"]["layers"], list)
        has_own_text = config.get("custom_text") or "multimodal_cfg" in config
        image_part = "visual.attnpool" if is_resnet else "visual"
        text_part = "text" if has_own_text else "encode_text"
        fits = {image_part: image_fits(config["vision_cfg"])}
        fits |= {text_part: text_fits(config["text_cfg"])}
        fits |= {LOSS: config.get("init_logit_bias") is None}
        assert patch.swapped.keys() == {part for part, fit in fits.items() if fit}, name
        assert patch.left_alone.keys() == {part for part, fit in fits.items() if not fit}, name
        patch.undo()


@pytest.mark.parametrize(
    ("vision", "custom", "text", "part", "reason"),
    [
        ({}, False, {"no_causal_mask": True}, "encode_text", "not causal"),
        ({}, False, {"pool_type": "last"}, "encode_text", "pool_type='last'"),
        ({}, False, {"pool_type": "first"}, "encode_text", "pool_type='first'"),
        ({}, True, {"embed_cls": True}, "text", "embed_cls"),
        ({}, True, {"output_tokens": True}, "text", "output_tokens"),
        ({}, True, {"qk_norm": True}, "text", "CustomResidualAttentionBlock"),
        ({"qk_norm": True}, False, {}, "visual", "CustomResidualAttentionBlock"),
        ({"pool_type": "avg"}, False, {}, "visual", "pool_type='avg'"),
        ({"attentional_pool": True}, False, {}, "visual", "attentional_pool"),
    ],
)
def test_patch_names_what_it_leaves_alone(patch_and_undo, vision, custom, text, part, reason):
    model = tiny(SHRUNK_VIT | vision, custom, **text)
    patch = patch_and_undo(model)
    assert reason in patch.left_alone[part]
    assert part not in patch.swapped
    assert f"left alone  {part}: " in str(patch)


def test_patch_leaves_other_towers_alone(patch_and_undo):
    model = tiny(custom=True)
    model.visual, model.text = nn.Flatten(), nn.Embedding(3, 4)
    patch = patch_and_undo(model, loss=False)
    assert patch.left_alone["visual"] == "it is a Flatten"
    assert patch.left_alone["text"] == "it is a Embedding"
    assert not patch.swapped


def test_patch_leaves_a_subclass_or_an_odd_mask_alone(patch_and_undo):
    model = tiny(custom=True)
    model.text.__class__ = type("Other", (type(model.text),), {})
    assert patch_and_undo(model).left_alone["text"] == "it is a Other"
    model = tiny()
    model.attn_mask[0, 3] = 0
    assert "mask" in patch_and_undo(model).left_alone["encode_text"]
    model = tiny()
    attention = model.transformer.resblocks[1].attn
    if hasattr(attention, "dropout"):
        attention.dropout = 0.1
    else:  # OpenCLIP 4
        attention.attn_drop.p = 0.1
    assert "dropout" in patch_and_undo(model).left_alone["encode_text"]


def test_patch_refuses_what_is_no_open_clip_model():
    with pytest.raises(TypeError, match=r"open_clip\.create_model, got Linear"):
        clipfast.patch_open_clip(nn.Linear(2, 2))


@pytest.mark.parametrize("vision", [SHRUNK_VIT, SHRUNK_RESNET], ids=["ViT", "ResNet"])
@pytest.mark.parametrize("custom", [False, True], ids=["CLIP", "CustomTextCLIP"])
def test_patch_serves_layer_scale_checkpointing_and_eval(patch_and_undo, vision, custom):
    model = tiny(
        {**vision, "ls_init_value": 0.5}, custom, ls_init_value=0.3, pool_type="eos", eos_id=2
    )
    images, tokens = make_batch(model)
    expected = run(model, images, tokens)
    patch = patch_and_undo(model)
    assert {"visual", "visual.attnpool"} & patch.swapped.keys()
    model.set_grad_checkpointing(True)
    assert_same(run(model, images, tokens), expected, 1e-11)
    patch.undo()
    model.eval()
    with torch.no_grad():
        expected = run(model, images, tokens)
        patch_and_undo(model)
        assert_same(run(model, images, tokens), expected, 1e-11)


def test_patch_serves_a_model_with_frozen_parts(patch_and_undo):
    model = tiny(SHRUNK_VIT)
    images, tokens = make_batch(model)
    model.lock_text_tower(unlocked_layers=2)
    model.lock_image_tower(unlocked_groups=1)
    expected = run(model, images, tokens)
    patch_and_undo(model)
    assert_same(run(model, images, tokens), expected, 1e-11)


@pytest.mark.parametrize("vision", [SHRUNK_VIT, SHRUNK_RESNET], ids=["ViT", "ResNet"])
@pytest.mark.parametrize("precision", ["fp32", "amp_bf16", "bf16"])
def test_patch_rounds_no_more_than_open_clip(patch_and_undo, vision, precision):
    open_clip = import_open_clip()
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": SHRUNK_TEXT}
    exact = build(config)
    images, tokens = make_batch(exact)
    truth = run(exact, images, tokens)
    cast = torch.bfloat16 if precision == "bf16" else None
    model = build(config, cast_dtype=cast).float()
    if precision == "bf16":
        open_clip.model.convert_weights_to_lp(model, torch.bfloat16)
    images = images.to(torch.bfloat16 if precision == "bf16" else torch.float32)

    def error() -> tuple[float, float]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "amp_bf16"):
            found = run(model, images, tokens)
        pairs = [(found[name].double() - value, value) for name, value in truth.items()]
        features = [sum(x.square().sum() for x in group) for group in zip(*pairs[:2], strict=True)]
        gradients = [sum(x.square().sum() for x in group) for group in zip(*pairs[2:], strict=True)]
        return tuple((a / b).sqrt().item() for a, b in (features, gradients))

    theirs = error()
    patch_and_undo(model)
    ours = error()
    for own, other in zip(ours, theirs, strict=True):
        assert own <= 1.3 * other + 1e-6


def test_patch_keeps_parameters_state_dict_and_class_names(patch_and_undo):
    model = tiny(SHRUNK_RESNET)
    kinds = [type(module) for module in model.modules()]
    parameters = dict(model.named_parameters())
    state, text = model.state_dict(), repr(model)
    patch = patch_and_undo(model)
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    assert repr(model) == text
    assert all(isinstance(m, kind) for m, kind in zip(model.modules(), kinds, strict=True))
    patch.undo()
    patch.undo()
    assert [type(module) for module in model.modules()] == kinds


def test_patch_twice_swaps_once(patch_and_undo):
    model = tiny()
    kinds = [type(module) for module in model.modules()]
    first, second = patch_and_undo(model), patch_and_undo(model)
    assert first.swapped == second.swapped
    assert not any(len({Patched} & set(type(m).__bases__)) for m in model.modules())
    second.undo()
    assert isinstance(model, modules.TextTower)
    first.undo()
    assert [type(module) for module in model.modules()] == kinds


def test_patched_model_is_copied_patched_and_pickled_plain(patch_and_undo):
    model = tiny(SHRUNK_RESNET)
    images, tokens = make_batch(model)
    patch_and_undo(model, loss=False)
    expected = run(model, images, tokens)
    twin = copy.deepcopy(model)
    assert isinstance(twin, modules.TextTower)
    assert next(twin.parameters()) is not next(model.parameters())
    assert_same(run(twin, images, tokens), expected, 0)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for plain in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert not any(isinstance(module, Patched) for module in plain.modules())
        assert_same(run(plain, images, tokens), expected, 1e-11)


def test_patch_keeps_hooks(patch_and_undo):
    model = tiny()
    images, tokens = make_batch(model)
    block = model.transformer.resblocks[1]
    watched = {"transformer": model.transformer, "block": block, "attn": block.attn}
    watched |= {"ln_1": block.ln_1, "mlp": block.mlp, "c_fc": block.mlp.c_fc}
    watched |= {"ln_final": model.ln_final, "embedding": model.token_embedding}
    calls: dict[str, list[str]] = {name: [] for name in watched}

    def note(name: str, what: str) -> Callable:
        return lambda *_, **__: calls[name].append(what)

    for name, module in watched.items():
        module.register_forward_pre_hook(note(name, "before"))
        module.register_forward_hook(note(name, "after"))
        if name != "embedding":  # its input has no gradient
            module.register_full_backward_hook(note(name, "backward"))
    run(model, images, tokens)
    expected, calls = calls, {name: [] for name in watched}
    patch_and_undo(model)
    run(model, images, tokens)
    assert calls == expected


def test_patch_leaves_intermediates_padded(patch_and_undo):
    model = tiny()
    images, tokens = make_batch(model)
    expected = model.forward_intermediates(images, tokens)
    patch_and_undo(model)
    actual = model.forward_intermediates(images, tokens)
    for key, values in expected.items():
        values = values if isinstance(values, list) else [values]
        others = actual[key] if isinstance(actual[key], list) else [actual[key]]
        for value, other in zip(values, others, strict=True):
            torch.testing.assert_close(other, value, rtol=1e-11, atol=1e-12)


class _Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_patch_looks_inside_wrappers(patch_and_undo):
    model = tiny()
    patch = patch_and_undo(_Wrapper(torch.compile(model)))
    assert {"visual", "encode_text"} <= patch.swapped.keys()
    assert isinstance(model, modules.TextTower)


def test_patched_training_step_is_open_clips(patch_and_undo):
    open_clip = import_open_clip()
    trajectories = []
    for is_patched in (False, True):
        model = tiny(SHRUNK_RESNET)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        loss_module = open_clip.loss.ClipLoss(cache_labels=True)
        if is_patched:
            patch_and_undo(model)
        model.output_dict = True
        losses = []
        for seed in range(4):
            torch.manual_seed(seed)
            losses.append(sum(loss_module(**model(*make_batch(model)), output_dict=True).values()))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        trajectories.append(torch.stack(losses).detach())
    torch.testing.assert_close(*trajectories, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "vision",
    [
        pytest.param(SHRUNK_VIT, id="ViT"),
        pytest.param(SHRUNK_RESNET, id="ResNet", marks=pytest.mark.thorough),
    ],
)
def test_patched_model_compiles_with_few_graphs(patch_and_undo, vision):
    model = tiny(vision).float()
    batches = [make_batch(model) for _ in range(6)]
    for number, (_, tokens) in enumerate(batches):
        tokens[:, 1 + number] = VOCABULARY - 1  # other lengths each time
    expected = [run(model, *batch) for batch in batches]
    patch_and_undo(model)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.forward, backend=counter)

    def run_compiled(images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        outputs = compiled(images, tokens)
        return {"image": outputs[0].detach(), "text": outputs[1].detach()}

    frames = []
    for batch, want in zip(batches, expected, strict=True):
        found = run_compiled(*batch)
        assert_same(found, {name: want[name] for name in found}, 1e-4)
        frames.append(counter.frame_count)
    assert frames[-1] == frames[2], f"graphs after each batch: {frames}"
    torch._dynamo.reset()
