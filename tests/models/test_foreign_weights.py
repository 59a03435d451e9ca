"""Weights as other programs leave them: unwrapped, renamed, checked before anything changes."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from clipfast.models import CLIP, create_model, export, load_weights
from clipfast.models.families import family_of
from clipfast.models.weight_files import read_contents, read_state
from tests.campaigns.weights_kinds import prefixed
from tests.campaigns.weights_wrapped import custom_text, hugging_face
from tests.models.helpers import assert_near, random_images, random_tokens, small_model
from tests.models.test_torchscript import save_archive
from tests.models.test_weights import assert_same_state, openclip_twin
from tests.peers import import_open_clip


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Without what loading says about activations."""
    warnings.filterwarnings("ignore", ".*which activation it was trained with")


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def copied(model: CLIP) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def refused(path: Path, model: CLIP, message: str, **options: bool) -> None:
    """The file is refused, and the model stays bit for bit."""
    before = copied(model)
    with pytest.raises(ValueError, match=message):
        load_weights(model, path, **options)
    assert_same_state(model.state_dict(), before)


def test_a_hugging_face_model_computes_what_its_equations_say(tmp_path: Path) -> None:
    model = small_model("ViT-tiny").eval()
    theirs = hugging_face(copied(model))
    other = small_model("ViT-tiny", seed=1).eval()
    load_weights(other, saved(theirs, tmp_path / "pytorch_model.bin"))
    x = torch.randn(3, 256)
    layer = "vision_model.encoder.layers.0.self_attn."
    # q, k, v apart, as CLIPAttention computes them.
    q, k, v = (
        nn.functional.linear(x, theirs[f"{layer}{n}_proj.weight"], theirs[f"{layer}{n}_proj.bias"])
        for n in "qkv"
    )
    attention = other.visual.transformer.resblocks[0].attn
    joint = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    assert torch.allclose(joint, torch.cat([q, k, v], dim=1), atol=1e-5)
    pooled = torch.randn(2, 192)
    projected = nn.functional.linear(pooled, theirs["text_projection.weight"])
    assert torch.allclose(pooled @ other.text_projection, projected, atol=1e-5)
    assert_same_state(other.state_dict(), model.state_dict())


def test_openclips_custom_text_model_gives_its_features(tmp_path: Path) -> None:
    open_clip = import_open_clip()
    ours = small_model("ViT-tiny").eval()
    plain = openclip_twin(ours)
    config = {"width": 192, "layers": 2, "heads": 3, "vocab_size": 500}
    torch.manual_seed(3)
    theirs = open_clip.model.CustomTextCLIP(
        256,
        {"layers": 7, "width": 256, "image_size": 64, "patch_size": 8},
        config,
        quick_gelu=True,
    ).eval()
    assert plain.state_dict().keys() != theirs.state_dict().keys()
    load_weights(ours, saved(theirs.state_dict(), tmp_path / "custom.pt"))
    images, tokens = random_images(2, 64), random_tokens(2, 77, 500)
    with torch.no_grad():
        assert_near(ours.encode_image(images), theirs.encode_image(images), 1e-5)
        assert_near(ours.encode_text(tokens), theirs.encode_text(tokens), 1e-5)


def test_an_archive_tells_its_activation_by_its_modules(tmp_path: Path) -> None:
    for activation, other in (("quick_gelu", "gelu"), ("gelu", "quick_gelu")):
        path = tmp_path / f"{activation}.pt"
        save_archive(small_model("ViT-tiny", activation=activation), path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_weights(small_model("ViT-tiny", activation=activation), path)
        refused(path, small_model("ViT-tiny", activation=other), "as its modules tell")


def test_export_of_compiled_parts_has_plain_names(tmp_path: Path) -> None:
    model = small_model("ViT-tiny")
    state = {n.replace("visual.", "visual._orig_mod.", 1): t for n, t in copied(model).items()}
    export(state, tmp_path / "model.pt")
    assert read_state(tmp_path / "model.pt").keys() == model.state_dict().keys()


def test_what_stands_beside_the_model_is_left_out_with_a_warning(tmp_path: Path) -> None:
    model = small_model("ViT-tiny")
    state = {**prefixed(copied(model), "backbone."), "head.weight": torch.ones(3, 3)}
    path = saved({"state_dict": state}, tmp_path / "model.ckpt")
    with pytest.warns(UserWarning, match=r"under 'backbone\.'; 1 tensors beside it .*head\.weight"):
        load_weights(small_model("ViT-tiny", seed=1), path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_loaded_on_request_alone(
    dtype: torch.dtype, value: float, tmp_path: Path
) -> None:
    state = copied(small_model("ViT-tiny"))
    state["ln_final.bias"] = state["ln_final.bias"].to(dtype)
    state["ln_final.bias"][7] = value
    path, model = saved(state, tmp_path / "model.pt"), small_model("ViT-tiny", seed=1)
    what = "NaN" if math.isnan(value) else "an infinity"
    refused(path, model, f"refused to load .* 1 tensors hold {what}: ln_final.bias")
    load_weights(model, path, allow_nonfinite=True)
    assert torch.equal(model.ln_final.bias[7].isnan(), torch.tensor(math.isnan(value)))


class OwnModel(nn.Module):
    """A model of a project that nobody knows, which holds no module of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["ours", "theirs", "own", "compiled", "beside"])
def test_a_whole_pickled_model_is_named_as_one(kind: str, zipped: bool, tmp_path: Path) -> None:
    model, path = small_model("ViT-tiny"), tmp_path / "model.pt"
    content: object = {
        "ours": lambda: model,
        "theirs": lambda: openclip_twin(model),
        "own": OwnModel,
        "compiled": lambda: torch.compile(model),
        "beside": lambda: {"state_dict": model.state_dict(), "model": model},
    }[kind]()
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(path, model, r"it is a whole pickled model, .*Write model\.state_dict\(\)")


def test_code_beside_a_model_is_not_called_one(tmp_path: Path) -> None:
    call = {"model": Call(), "own": OwnModel()}
    with pytest.raises(ValueError, match=r"it asks for \w+\.getpid, which no weights need$"):
        load_weights(small_model("ViT-tiny"), saved(call, tmp_path / "model.pt"))


class Call:
    """A pickle that calls a function."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.getpid, ()


def test_a_model_from_a_file_is_finite_unless_asked(tmp_path: Path) -> None:
    model = small_model("ViT-tiny")
    model.ln_final.bias.data[7] = math.nan
    export(model, tmp_path / "model.pt", allow_nonfinite=True)
    with pytest.raises(ValueError, match="tensors hold NaN"):
        create_model.from_file(tmp_path / "model.pt")
    again = create_model.from_file(tmp_path / "model.pt", allow_nonfinite=True)
    assert again.ln_final.bias[7].isnan()


@pytest.mark.parametrize(
    ("given", "own"), [(torch.float64, torch.float32), (torch.float32, torch.float16)]
)
def test_values_that_overflow_in_the_models_type_are_refused(
    given: torch.dtype, own: torch.dtype, tmp_path: Path
) -> None:
    model = small_model("ViT-tiny").to(own)
    state = {name: tensor.to(given) for name, tensor in copied(model).items()}
    state["visual.proj"][0, 0] = -2.0 * torch.finfo(own).max
    path = saved(state, tmp_path / "model.pt")
    refused(path, model, f"too large .*visual.proj .{given} in {own}")
    # What rounds to the largest number is one.
    state["visual.proj"][0, 0] = torch.finfo(own).max
    load_weights(model, saved(state, path))
    assert model.visual.proj[0, 0] == torch.finfo(own).max


def test_tied_parameters_take_equal_tensors_alone(tmp_path: Path) -> None:
    model = small_model("ViT-tiny")
    model.ln_final.bias = model.transformer.resblocks[0].ln_1.bias
    state = copied(small_model("ViT-tiny", seed=1))
    path = saved(state, tmp_path / "model.pt")
    refused(path, model, r"ln_1.bias and ln_final.bias share memory in ViT-tiny")
    state["ln_final.bias"] = state["transformer.resblocks.0.ln_1.bias"].double()
    load_weights(model, saved(state, path))
    assert torch.equal(model.ln_final.bias, state["transformer.resblocks.0.ln_1.bias"])


def test_parameters_that_overlap_in_part_are_refused(tmp_path: Path) -> None:
    model, buffer = small_model("ViT-tiny"), torch.zeros(300)
    model.ln_final.bias = nn.Parameter(buffer[:192])
    model.ln_final.weight = nn.Parameter(buffer[100:292])
    path = saved(copied(small_model("ViT-tiny")), tmp_path / "model.pt")
    refused(path, model, "share memory")


def test_columns_of_one_buffer_are_filled_each(tmp_path: Path) -> None:
    model, buffer = small_model("ViT-tiny"), torch.zeros(192, 2)
    model.ln_final.bias = nn.Parameter(buffer[:, 0])
    model.ln_final.weight = nn.Parameter(buffer[:, 1])
    given = small_model("ViT-tiny", seed=1)
    load_weights(model, saved(given.state_dict(), tmp_path / "model.pt"))
    assert_same_state(model.state_dict(), given.state_dict())


@pytest.mark.parametrize("kind", ["expanded", "sparse", "inference"])
def test_a_model_that_cannot_be_written_is_refused_whole(kind: str, tmp_path: Path) -> None:
    path = saved(small_model("ViT-tiny", seed=1).state_dict(), tmp_path / "model.pt")
    model = small_model("ViT-tiny")
    if kind == "inference":
        with torch.inference_mode():
            odd = torch.zeros(192)
    else:
        odd = torch.zeros(1).expand(192) if kind == "expanded" else torch.zeros(192).to_sparse()
    model.ln_final.bias = nn.Parameter(odd, requires_grad=False)
    before = model.token_embedding.weight.clone()
    with pytest.raises(ValueError, match=r"1 tensors of ViT-tiny cannot be written: .*ln_final"):
        load_weights(model, path)
    assert torch.equal(model.token_embedding.weight, before)


def test_a_part_finds_no_index_and_says_so(tmp_path: Path) -> None:
    state = copied(small_model("ViT-tiny"))
    part = {n: t for n, t in state.items() if n.startswith("visual.")}
    path = saved(part, tmp_path / "pytorch_model-00002-of-00003.bin")
    refused(path, small_model("ViT-tiny"), "By its name it is part 2 of 3")


def test_an_index_of_hugging_face_names_is_read_whole(tmp_path: Path) -> None:
    model = small_model("ViT-tiny")
    state = hugging_face(copied(model))
    places = {}
    for i in (1, 2):
        part = {n: t for j, (n, t) in enumerate(state.items()) if j % 2 == i % 2}
        saved(part, tmp_path / f"pytorch_model-0000{i}-of-00002.bin")
        places.update(dict.fromkeys(part, f"pytorch_model-0000{i}-of-00002.bin"))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    other = small_model("ViT-tiny", seed=1)
    load_weights(other, tmp_path)
    assert_same_state(other.state_dict(), model.state_dict())


def test_contents_say_where_their_names_come_from(tmp_path: Path) -> None:
    state = copied(small_model("ViT-tiny"))
    for content, origin in (
        (state, ""),
        (hugging_face(state), "a CLIPModel of Hugging Face's transformers"),
        (custom_text(state), "OpenCLIP's CustomTextCLIP"),
    ):
        assert read_contents(saved(content, tmp_path / "model.pt")).origin == origin


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_models_here_are_of_no_other_family(name: str) -> None:
    assert family_of(small_model(name).state_dict()) is None
