"""The weights that a run starts from: what their file says is compared with the run."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from clipfast.engine import ConfigError, ModelOptions
from clipfast.engine.builders import build_model
from clipfast.models import create_model, export
from clipfast.models.metadata import describe
from clipfast.models.weight_files import write_state
from tests.engine.plans import plan


def start_from(path: Path, rank: int = 0, activation: str = "quick_gelu") -> list[str]:
    """What is said while a run's model is built from a file."""
    model = ModelOptions("RN-tiny", compile="none", weights=str(path), activation=activation)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        build_model(plan(ranks=2, rank=rank, model=model))
    return [str(each.message) for each in said if str(path) in str(each.message)]


def test_a_run_says_once_that_its_weights_saw_other_images(tmp_path):
    path = tmp_path / "model.safetensors"
    export(create_model("RN-tiny"), path)
    assert start_from(path) == []
    export(create_model("RN-tiny", image_size=128), path)
    (text,) = start_from(path)
    assert text.startswith(f"--model.weights {path}: trained at 128 pixels, this run reads 64")
    assert start_from(path, rank=1) == []
    model = create_model("RN-tiny")
    found = describe(model.config)
    pixels = replace(found.preprocessing, mean=(0.5, 0.5, 0.5), resize_mode="squash")
    write_state(model.state_dict(), path, replace(found, preprocessing=pixels))
    mean, mode = start_from(path)
    assert "trained with mean 0.5, 0.5, 0.5, this run has 0.481455" in mean
    assert "trained with resize_mode squash, this run has shortest" in mode


def test_a_run_says_once_which_activation_it_assumes(tmp_path):
    path = tmp_path / "model.pt"
    export(create_model("RN-tiny").state_dict(), path)
    (text,) = start_from(path)
    assert "trained with: quick_gelu is assumed" in text
    assert start_from(path, rank=1) == []
    (text,) = start_from(path, activation="gelu")
    assert "trained with: gelu is assumed" in text


def test_a_run_does_not_start_from_weights_of_another_activation(tmp_path):
    path = tmp_path / "model.safetensors"
    model = create_model("RN-tiny")
    write_state(model.state_dict(), path, replace(describe(model.config), activation="gelu"))
    with pytest.raises(ConfigError, match=r"--model\.weights: .* was trained with gelu"):
        start_from(path)
