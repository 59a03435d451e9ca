"""Loading and exporting weights: formats, names, messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipfast.models import CLIP, create_model, export, load_weights
from clipfast.models.weight_files import read_state
from tests.models.helpers import assert_near, random_images, random_tokens, small_model
from tests.peers import import_open_clip

BOTH = pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
SUFFIXES = pytest.mark.parametrize("suffix", [".pt", ".safetensors"])


def openclip_twin(model: CLIP, quick_gelu: bool = True) -> nn.Module:
    """OpenCLIP's model of the same architecture."""
    vision, text = model.config.vision, model.config.text
    layers = vision.layers if isinstance(vision.layers, int) else list(vision.layers)
    return import_open_clip().model.CLIP(
        embed_dim=model.config.embed_dim,
        vision_cfg={
            "layers": layers,
            "width": vision.width,
            "image_size": vision.image_size,
            "patch_size": getattr(vision, "patch_size", None),
        },
        text_cfg={
            "layers": text.layers,
            "width": text.width,
            "heads": text.heads,
            "vocab_size": text.vocab_size,
            "context_length": text.context_length,
        },
        quick_gelu=quick_gelu,
    )


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name].reshape(tensor.shape), tensor), name


@BOTH
@SUFFIXES
def test_exported_weights_load_in_openclip_and_give_its_features(
    name: str, suffix: str, tmp_path: Path
) -> None:
    ours = small_model(name).eval()
    theirs = openclip_twin(ours).eval()
    path = tmp_path / f"model{suffix}"
    export(ours, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    import_open_clip().load_checkpoint(theirs, str(path), strict=True)
    images, tokens = random_images(2, 64), random_tokens(2, 77, 500)
    with torch.no_grad():
        assert_near(ours.encode_image(images), theirs.encode_image(images), 1e-5)
        assert_near(ours.encode_text(tokens), theirs.encode_text(tokens), 1e-5)
    assert theirs.logit_scale.item() == ours.logit_scale.item()


@SUFFIXES
def test_export_then_load_weights_is_the_identity(suffix: str, tmp_path: Path) -> None:
    model, other = small_model("RN-tiny", seed=0), small_model("RN-tiny", seed=1)
    with torch.no_grad():
        model.logit_scale.fill_(3.25)
    export(model.state_dict(), tmp_path / f"model{suffix}")
    load_weights(other, tmp_path / f"model{suffix}")
    assert_same_state(other.state_dict(), model.state_dict())
    assert other.logit_scale.shape == (1,)


@SUFFIXES
def test_export_writes_logit_scale_without_a_dimension(suffix: str, tmp_path: Path) -> None:
    export(small_model("ViT-tiny"), tmp_path / f"model{suffix}")
    assert read_state(tmp_path / f"model{suffix}")["logit_scale"].shape == ()


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("bare", [True, False])
def test_load_weights_reads_openclip_training_checkpoints(
    prefix: str, bare: bool, tmp_path: Path
) -> None:
    ours = small_model("RN-tiny", seed=0)
    torch.manual_seed(1)
    theirs = openclip_twin(ours)
    state = {prefix + key: value for key, value in theirs.state_dict().items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    checkpoint = {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer}
    torch.save(state if bare else checkpoint, tmp_path / "epoch_3.pt")
    load_weights(ours, tmp_path / "epoch_3.pt")
    assert_same_state(ours.state_dict(), theirs.state_dict())


def test_load_weights_reads_the_format_of_torch_before_zip(tmp_path: Path) -> None:
    model, other = small_model("ViT-tiny", seed=0), small_model("ViT-tiny", seed=1)
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    load_weights(other, tmp_path / "old.pt")
    assert_same_state(other.state_dict(), model.state_dict())


def test_load_weights_casts_to_the_models_dtypes(tmp_path: Path) -> None:
    model = small_model("RN-tiny", seed=0)
    export(model, tmp_path / "model.pt")
    half = small_model("RN-tiny", seed=1).bfloat16()
    load_weights(half, tmp_path / "model.pt")
    assert half.visual.conv1.weight.dtype == torch.bfloat16
    assert torch.equal(half.visual.conv1.weight, model.visual.conv1.weight.bfloat16())
    assert torch.equal(half.visual.bn1.running_var, model.visual.bn1.running_var)


def test_load_weights_ignores_the_facts_in_openais_state_dicts(tmp_path: Path) -> None:
    model, other = small_model("ViT-tiny", seed=0), small_model("ViT-tiny", seed=1)
    facts = {"input_resolution": 64, "context_length": 77, "vocab_size": 500}
    facts = {key: torch.tensor(value) for key, value in facts.items()}
    torch.save({**model.state_dict(), **facts}, tmp_path / "model.pt")
    load_weights(other, tmp_path / "model.pt")
    assert_same_state(other.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not weights at all", "cannot read .* as a file of torch.save"),
        ({"epoch": 3}, "these are no tensors: epoch"),
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds a dict, not a state dict"),
        ({"fc.weight": torch.ones(2)}, "holds no CLIP weights: its names are fc.weight"),
    ],
)
def test_load_weights_refuses_what_is_no_clip(
    content: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load_weights(small_model("ViT-tiny"), path)


def test_load_weights_refuses_missing_and_damaged_files(tmp_path: Path) -> None:
    model = small_model("ViT-tiny")
    with pytest.raises(ValueError, match="no such file"):
        load_weights(model, tmp_path / "absent.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"\x08" + b"\0" * 30)
    with pytest.raises(ValueError, match=r"cannot read .* as a safetensors file"):
        load_weights(model, tmp_path / "bad.safetensors")


def test_load_weights_never_runs_a_pickle(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"state_dict": {"logit_scale": Trap()}}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="cannot read"):
        load_weights(small_model("ViT-tiny"), tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_load_weights_of_another_model_names_it_and_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export(create_model("RN-tiny").state_dict(), tmp_path / "model.pt")
    model = create_model("ViT-tiny")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit ViT-tiny") as error:
        load_weights(model, tmp_path / "model.pt")
    message = str(error.value)
    assert "missing: visual.class_embedding, visual.positional_embedding" in message
    assert "unexpected: visual.bn1.weight" in message
    assert "visual.conv1.weight is [16, 3, 3, 3] in the file, [256, 3, 8, 8] in the" in message
    assert "those of 'RN-tiny': use create_model('RN-tiny')" in message
    assert len(message) < 2000
    assert_same_state(model.state_dict(), before)


def test_load_weights_of_an_altered_model_counts_and_names_the_nearest(tmp_path: Path) -> None:
    model = create_model("ViT-tiny", vision_layers=6, embed_dim=128)
    export(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError) as error:
        load_weights(create_model("ViT-tiny"), tmp_path / "model.pt")
    message = str(error.value)
    block = "visual.transformer.resblocks.6."
    assert f"12 missing: {block}attn.in_proj_weight" in message
    assert "and 8 more" in message
    assert "2 of another shape: " in message
    assert "text_projection is [192, 128] in the file, [192, 256] in the model" in message
    assert "The nearest model is 'ViT-tiny'" in message


def test_load_weights_on_meta_names_the_remedy(tmp_path: Path) -> None:
    export(small_model("ViT-tiny"), tmp_path / "model.pt")
    with torch.device("meta"):
        model = small_model("ViT-tiny")
    with pytest.raises(ValueError, match="to_empty"):
        load_weights(model, tmp_path / "model.pt")
    model = model.to_empty(device="cpu")
    load_weights(model, tmp_path / "model.pt")
    assert_same_state(model.state_dict(), small_model("ViT-tiny").state_dict())


@pytest.mark.parametrize(("name", "size"), [("ViT-tiny", 96), ("RN-tiny", 128)])
def test_load_weights_resizes_positions_as_openclip_does(
    name: str, size: int, tmp_path: Path
) -> None:
    open_clip = import_open_clip()
    export(small_model(name), tmp_path / "model.pt")
    larger = small_model(name, seed=1, image_size=size)
    with pytest.raises(ValueError, match="positional_embedding is "):
        load_weights(larger, tmp_path / "model.pt")
    load_weights(larger, tmp_path / "model.pt", resize_positions=True)
    theirs = openclip_twin(larger)
    if name == "RN-tiny":
        theirs.visual.grid_size = (4, 4)  # OpenCLIP resizes a ViT's only; ask it all the same
        state = small_model(name).visual.attnpool.positional_embedding.detach()
        state = {"visual.positional_embedding": state}
        open_clip.model.resize_pos_embed(state, theirs)
        expected = state["visual.positional_embedding"]
        actual = larger.visual.attnpool.positional_embedding
    else:
        open_clip.load_checkpoint(theirs, str(tmp_path / "model.pt"))
        expected = theirs.visual.positional_embedding
        actual = larger.visual.positional_embedding
    torch.testing.assert_close(actual, expected, check_stride=False)


def test_export_refuses_what_is_no_whole_clip(tmp_path: Path) -> None:
    model = small_model("ViT-tiny")
    with pytest.raises(ValueError, match=r"end the name in \.pt or \.safetensors"):
        export(model, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="lacks logit_scale"):
        export(model.visual, tmp_path / "model.pt")
    state = {**model.state_dict(), "ln_final.weight": torch.empty(0)}
    with pytest.raises(ValueError, match=r"1 tensors hold no values \(ln_final.weight\): gather"):
        export(state, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_export_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    export(small_model("ViT-tiny"), path)
    before = path.read_bytes()

    def full_disk(state: object, file: object) -> None:
        file.write(b"half a file")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export(small_model("ViT-tiny", seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@SUFFIXES
def test_export_of_slices_of_a_flat_buffer_writes_the_slices_only(
    suffix: str, tmp_path: Path
) -> None:
    model = small_model("ViT-tiny")
    export(model, tmp_path / f"plain{suffix}")
    state = model.state_dict()
    flat = torch.cat([torch.zeros(10**6), *(tensor.flatten() for tensor in state.values())])
    offset = 10**6
    for name, tensor in state.items():
        state[name] = flat[offset : offset + tensor.numel()].view(tensor.shape)
        offset += tensor.numel()
    state["ln_final.bias"] = state["ln_final.weight"]
    export(state, tmp_path / f"flat{suffix}")
    sizes = {file.stem: file.stat().st_size for file in tmp_path.iterdir()}
    assert abs(sizes["flat"] - sizes["plain"]) < 10**5
    other = small_model("ViT-tiny", seed=1)
    load_weights(other, tmp_path / f"flat{suffix}")
    assert_same_state(other.state_dict(), state)
