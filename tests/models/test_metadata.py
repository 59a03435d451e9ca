"""What files of weights say of themselves: written, read, compared, refused where malformed."""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import clipfast
from clipfast.models import CLIP, create_model, export, load_weights, read_metadata
from clipfast.models.metadata import LIMIT, describe
from clipfast.models.weight_files import read_state, write_state
from clipfast.preprocessing import MEAN, STD, Preprocessing
from tests.models.helpers import random_images, random_tokens, small_model
from tests.models.test_weights import assert_same_state
from tests.peers import import_open_clip

SUFFIXES = pytest.mark.parametrize("suffix", [".pt", ".safetensors"])


def write_block(path: Path, block: str, model: CLIP | None = None) -> Path:
    """A file of whole weights whose metadata is `block`."""
    state = (model or small_model("ViT-tiny")).state_dict()
    described = describe(small_model("ViT-tiny").config)

    class Given:
        def to_json(self) -> str:
            return block

    write_state(state, path, Given() if block else described)
    return path


def edited(**changes: Any) -> str:
    """The block of the small ViT, with some entries replaced."""
    return json.dumps({**json.loads(describe(small_model("ViT-tiny").config).to_json()), **changes})


@SUFFIXES
def test_export_says_what_it_holds(suffix: str, tmp_path: Path) -> None:
    model = small_model("RN-tiny", scalars=(("logit_bias", -10.0),))
    export(nn.parallel.DataParallel(model), tmp_path / f"model{suffix}", step=1234)
    found = read_metadata(tmp_path / f"model{suffix}")
    assert found is not None
    assert (found.model, found.activation, found.tower) == (
        "RN-tiny", "quick_gelu", "ResNetConfig",
    )  # fmt: skip
    assert found.preprocessing == Preprocessing(64, MEAN, STD, "bicubic", "shortest")
    assert (found.context_length, found.step, found.version) == (77, 1234, clipfast.__version__)
    assert found.scalars == {"logit_bias": -10.0}
    assert found.architecture["vision_layers"] == (1, 1, 2, 1)
    assert found.architecture["vocab_size"] == 500


@SUFFIXES
def test_a_state_dict_says_nothing_without_an_architecture(suffix: str, tmp_path: Path) -> None:
    model, path = small_model("ViT-tiny"), tmp_path / f"model{suffix}"
    export(model.state_dict(), path)
    assert read_metadata(path) is None
    export(model.state_dict(), path, architecture=model.config)
    assert read_metadata(path) == describe(model.config)


def test_metadata_gives_openclip_its_preprocessing() -> None:
    import_open_clip()
    from open_clip.transform import PreprocessCfg

    given = Preprocessing(336).as_openclip()
    theirs = PreprocessCfg(**given)
    assert theirs == PreprocessCfg(size=336, mean=list(MEAN), std=list(STD))
    assert (theirs.interpolation, theirs.resize_mode) == ("bicubic", "shortest")


def test_metadata_leaves_files_plain_for_other_programs(tmp_path: Path) -> None:
    import safetensors.torch as safetensors

    model = small_model("ViT-tiny")
    for suffix in (".pt", ".safetensors"):
        export(model, tmp_path / f"model{suffix}", step=1)
    plain = torch.load(tmp_path / "model.pt", weights_only=True)
    mapped = torch.load(tmp_path / "model.pt", weights_only=True, mmap=True)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    for state in (plain, mapped, tensors):
        assert_same_state(state, model.state_dict())
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["clipfast"])["model"] == "ViT-tiny"


def test_exports_of_one_model_to_pt_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        export(small_model("ViT-tiny"), tmp_path / name, step=1)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@SUFFIXES
@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_from_file_builds_the_model_that_was_exported(
    name: str, suffix: str, tmp_path: Path
) -> None:
    model = small_model(name, text_head_width=32, scalars=(("logit_bias", -10.0),)).eval()
    export(model, tmp_path / f"model{suffix}")
    again = create_model.from_file(tmp_path / f"model{suffix}", recompute="full").eval()
    assert again.config == replace(model.config, recompute="full")
    assert_same_state(again.state_dict(), model.state_dict())
    images, tokens = random_images(2, 64), random_tokens(2, 77, 500)
    with torch.no_grad():
        for ours, theirs in zip(again(images, tokens), model(images, tokens), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_from_file_goes_by_the_shapes_where_a_file_says_nothing(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(name, scalars=(("logit_bias", -3.0),))
    export(model.state_dict(), tmp_path / "model.pt")
    again = create_model.from_file(tmp_path / "model.pt")
    assert again.config == replace(model.config)
    assert_same_state(again.state_dict(), model.state_dict())
    export(small_model(name).state_dict(), tmp_path / "altered.pt")
    with pytest.raises(ValueError, match=f"does not say which model .* nearest is '{name}'"):
        create_model.from_file(tmp_path / "altered.pt")


def test_from_file_resizes_positions_to_another_image_size(tmp_path: Path) -> None:
    export(small_model("ViT-tiny"), tmp_path / "model.pt")
    wanted = small_model("ViT-tiny", seed=1, image_size=96)
    load_weights(wanted, tmp_path / "model.pt", resize_positions=True)
    again = create_model.from_file(tmp_path / "model.pt", image_size=96)
    assert_same_state(again.state_dict(), wanted.state_dict())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_head_width": 32}, "vision_head_width is 64 in the file, 32 in the model"),
        ({"text_head_width": 32}, "text_head_width is 64 in the file, 32 in the model"),
    ],
)
def test_load_weights_refuses_what_shapes_do_not_show(
    fields: dict[str, int], message: str, tmp_path: Path
) -> None:
    export(small_model("ViT-tiny"), tmp_path / "model.pt")
    model = small_model("ViT-tiny", seed=1, **fields)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_weights(model, tmp_path / "model.pt")
    assert "create_model.from_file(" in str(error.value)
    assert_same_state(model.state_dict(), before)


def test_load_weights_of_another_model_names_the_one_that_the_file_says(tmp_path: Path) -> None:
    export(small_model("RN-tiny"), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"says that it is of 'RN-tiny': create_model\.from_file"):
        load_weights(small_model("ViT-tiny"), tmp_path / "model.pt")


@SUFFIXES
def test_load_weights_refuses_another_activation_unless_told(suffix: str, tmp_path: Path) -> None:
    path = write_block(tmp_path / f"model{suffix}", edited(activation="gelu"))
    model = small_model("ViT-tiny", seed=1)
    with pytest.raises(ValueError, match=r"trained with gelu \(as it says itself\), and ViT-tiny"):
        load_weights(model, path)
    with pytest.raises(ValueError, match="trained with gelu"):
        create_model.from_file(path, activation="quick_gelu")
    assert create_model.from_file(path).config.activation == "gelu"
    load_weights(model, path, other_activation=True)
    assert_same_state(model.state_dict(), small_model("ViT-tiny").state_dict())


@SUFFIXES
@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("not json", "malformed: Expecting value"),
        ("[1]", "the block is of type list, not dict"),
        ("{" * 1000, "malformed"),
        ("[" * (LIMIT - 1), "malformed"),
        (" " * (LIMIT + 1), "bytes, more than"),
        ('{"model": ' + "9" * 5000 + "}", "malformed"),
        (edited(model=7), "model is of type int, not str"),
        (edited(activation=None), "activation is of type NoneType"),
        (edited(preprocess_cfg=[]), "preprocess_cfg is of type list"),
        (edited(preprocess_cfg={"size": "224"}), "preprocess_cfg.size is of type str"),
        (edited(preprocess_cfg={"size": 224, "mean": [0, 0]}), "mean has 2 numbers, not 3"),
        (edited(preprocess_cfg={"size": 9, "mean": [0, 0, float("nan")]}), "mean is nan"),
        (edited(preprocess_cfg={"size": 9, "mean": [0, 0, 10**400]}), "malformed"),
        (edited(architecture=[]), "architecture is of type list"),
        (edited(architecture={"embed_dim": {}}), "architecture.embed_dim is of type dict"),
        (edited(architecture={"embed_dim": 10**30}), "architecture.embed_dim is out of range"),
        (edited(scalars={"logit_bias": "x"}), "scalars.logit_bias is of type str"),
        (edited(scalars={"logit_bias": float("inf")}), "scalars.logit_bias is inf"),
        (edited(step=-1), "step is out of range"),
        (edited(step=True), "step is of type bool"),
        (edited(version={}), "version is of type dict"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "malformed"),
    ],
)  # fmt: skip
def test_malformed_metadata_is_refused(
    block: str, message: str, suffix: str, tmp_path: Path
) -> None:
    path = write_block(tmp_path / f"model{suffix}", block)
    for read in (
        read_metadata,
        create_model.from_file,
        lambda path: load_weights(small_model("ViT-tiny"), path),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)
        assert len(str(error.value)) < 600
    # The tensors are still there for those who read them otherwise.
    assert read_state(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ViT-huge"}, "says that it is of 'ViT-huge', .*register_model"),
        ({"architecture": {"text_layers": 16_000_000}}, "claims 16,000,000 blocks and holds"),
        ({"architecture": {"vision_layers": [10**6] * 9}}, "claims 9,000,000 blocks"),
        ({"architecture": {"text_layers": "2"}}, "cannot be built here"),
        ({"architecture": {"text_layers": 2.5}}, "text_layers must be a whole number"),
        ({"architecture": {"vision_width": -64}}, "cannot be built here"),
        ({"architecture": {"text_width": 1 << 24, "context_length": 1 << 24}}, "does not fit"),
        ({"scalars": {"a.b": 1.0}}, "cannot exist|cannot be built"),
        ({"scalars": {"visual": 1.0}}, "cannot exist|cannot be built"),
    ],
)
def test_from_file_refuses_models_that_do_not_exist(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_block(tmp_path / "model.safetensors", edited(**changes))
    with pytest.raises(ValueError, match=message) as error:
        create_model.from_file(path)
    assert str(path) in str(error.value)


def test_metadata_of_later_versions_may_say_more(tmp_path: Path) -> None:
    fields = {**describe(small_model("ViT-tiny").config).architecture, "new_field": 3}
    path = write_block(tmp_path / "model.pt", edited(later=[1, 2], architecture=fields))
    again = create_model.from_file(path)
    assert_same_state(again.state_dict(), small_model("ViT-tiny").state_dict())


def test_metadata_that_is_damaged_in_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    export(small_model("ViT-tiny"), path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'{"model"', b'{"modes"'))
    with pytest.raises(ValueError, match=r"cannot read clipfast.json in .*CRC"):
        read_metadata(path)
    safe = tmp_path / "model.safetensors"
    header = json.dumps({"__metadata__": {"clipfast": 7}}).encode()
    safe.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"cannot read .* as a safetensors file"):
        read_metadata(safe)


def test_metadata_of_a_zip_without_weights_is_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as file:
        file.writestr("a/b.txt", "text")
    assert read_metadata(tmp_path / "other.pt") is None


def test_preprocessing_names_its_differences() -> None:
    before = Preprocessing(224, (0.5, 0.5, 0.5), resize_mode="squash")
    texts = before.differences(Preprocessing(336))
    assert texts[0].startswith("trained at 224 pixels, this run reads 336: positions are")
    assert texts[1].startswith("trained with mean 0.5, 0.5, 0.5, this run has 0.481455, ")
    assert texts[2].startswith("trained with resize_mode squash, this run has shortest")
    assert len(texts) == 3
    assert Preprocessing(336).differences(Preprocessing(336)) == []
