"""What `export` refuses, by the error that it promises, before a byte is written."""

import math

import numpy as np
import pytest
import torch

from clipfast.models import create_model, export, read_metadata

MODEL = create_model("ViT-tiny")
STATE = MODEL.state_dict()
PROJECTION = STATE["text_projection"]


def changed(**tensors) -> dict:
    return {**STATE, **tensors}


REFUSED = {
    "no path": ((MODEL, None), {}, TypeError, "path must be text or a path; got None"),
    "a descriptor": ((MODEL, 3), {}, TypeError, "path must be text or a path"),
    "bytes": ((MODEL, b"x.pt"), {}, TypeError, "path must be text or a path"),
    "a store": ((MODEL, "s3://b/x.pt"), {}, ValueError, "not to 's3://'; export to a local path"),
    "a zero byte": ((MODEL, "a\0.pt"), {}, ValueError, "without zero bytes"),
    "no name": ((MODEL, ""), {}, ValueError, "end the name in .pt or .safetensors"),
    "capitals": ((MODEL, "x.PT"), {}, ValueError, "end the name in .pt or .safetensors"),
    "no model": ((None,), {}, TypeError, "export takes a model or its state dict; got None"),
    "a path for a model": (("x.pt",), {}, TypeError, "export takes a model or its state dict"),
    "a class": ((type(MODEL),), {}, TypeError, "export takes a model or its state dict"),
    "pairs": ((list(STATE.items()),), {}, TypeError, "export takes a model or its state dict"),
    "another module": ((torch.nn.Linear(2, 2),), {}, ValueError, "it lacks logit_scale"),
    "nothing": (({},), {}, ValueError, "not the state of a CLIP model: it lacks logit_scale"),
    "a whole checkpoint": (({**STATE, "epoch": 3},), {}, TypeError, r"got 3 \(int\) under 'epoch'"),
    "arrays": (
        ({name: tensor.numpy() for name, tensor in STATE.items()},),
        {},
        TypeError,
        "a state dict holds tensors by name",
    ),
    "a number for a name": (({**STATE, 3: PROJECTION},), {}, TypeError, "under 3"),
    "sparse": ((changed(text_projection=PROJECTION.to_sparse()),), {}, ValueError, "dense floats"),
    "complex": ((changed(text_projection=PROJECTION + 1j),), {}, ValueError, "dense floats"),
    "float8": (
        (changed(text_projection=PROJECTION.to(torch.float8_e4m3fn)),),
        {},
        ValueError,
        "text_projection .torch.float8_e4m3fn.*dense floats of 16 bits",
    ),
    "a NaN": (
        (changed(text_projection=PROJECTION * torch.nan),),
        {},
        ValueError,
        "refused to export to .*: 1 tensors hold NaN: text_projection. A run that diverged",
    ),
    "an infinity": (
        (changed(logit_scale=torch.tensor([torch.inf])),),
        {"architecture": MODEL.config, "step": 3},
        ValueError,
        "1 tensors hold an infinity: logit_scale",
    ),
    "an infinity in half": (
        (changed(logit_scale=torch.tensor([-torch.inf]).half()),),
        {},
        ValueError,
        "1 tensors hold an infinity: logit_scale",
    ),
    "text for a truth": (
        (MODEL,),
        {"allow_nonfinite": "no"},
        TypeError,
        "allow_nonfinite must be True or False",
    ),
    "integers": ((changed(text_projection=PROJECTION.int()),), {}, ValueError, "dense floats"),
    "a shape": (
        (changed(text_projection=PROJECTION[:3]),),
        {"architecture": MODEL.config},
        ValueError,
        r"not that of architecture ViT-tiny: 1 of another shape \(text_projection \[3, 256\]",
    ),
    "a part": (
        ({name: t for name, t in STATE.items() if "resblocks.2." not in name},),
        {"architecture": MODEL.config},
        ValueError,
        "24 missing",
    ),
    "another architecture": (
        (MODEL,),
        {"architecture": create_model("RN-tiny").config},
        ValueError,
        "not that of architecture RN-tiny",
    ),
    "a name for an architecture": (
        (MODEL,),
        {"architecture": "ViT-tiny"},
        TypeError,
        "architecture must be an Architecture",
    ),
    "a step before the first": ((MODEL,), {"step": -1}, ValueError, "step must be at least 0"),
    "a step as text": ((MODEL,), {"step": "7"}, TypeError, "step must be a whole number"),
    "half a step": ((MODEL,), {"step": 0.5}, TypeError, "step must be a whole number"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_export_refuses_by_the_promised_error_and_writes_nothing(tmp_path, what, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, options, kind, words = REFUSED[what]
    if len(arguments) == 1:
        arguments = (*arguments, tmp_path / "x.pt")
    with pytest.raises(kind, match=words) as caught:
        export(*arguments, **options)
    assert isinstance(caught.value, ValueError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere/x.pt", "folder.pt", "file/x.safetensors", "a" * 300])
def test_export_raises_the_error_of_a_path_that_cannot_be_written(tmp_path, name):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "file").touch()
    path = tmp_path / (name if "." in name else f"{name}.pt")
    with pytest.raises(OSError, match=str(path)):
        export(MODEL, path)


def test_export_takes_a_numpy_integer_for_a_step(tmp_path):
    export(MODEL, tmp_path / "x.safetensors", step=np.int64(3))
    assert read_metadata(tmp_path / "x.safetensors").step == 3


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_export_writes_what_is_not_finite_on_request_alone(tmp_path, suffix, value):
    path = tmp_path / f"x{suffix}"
    scalars = (("logit_bias", -10.0),)
    config = MODEL.config.override(scalars=scalars)
    state = changed(logit_bias=torch.tensor([value]))
    export(state, path, architecture=config, allow_nonfinite=True)
    with pytest.raises(ValueError, match="logit_bias"):
        create_model.from_file(path)
    again = create_model.from_file(path, allow_nonfinite=True)
    loaded = again.logit_bias.item()
    assert math.isnan(loaded) if math.isnan(value) else loaded == value
