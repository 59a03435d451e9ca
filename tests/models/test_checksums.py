"""Weights whose bytes are other ones than their file says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipfast.models import load_weights
from tests.models.helpers import small_model
from tests.models.test_weights import assert_same_state


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": small_model("ViT-tiny", seed=1).state_dict()}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    model = small_model("ViT-tiny")
    with pytest.raises(ValueError, match=r"checksum of 1 storages is wrong.*take another copy"):
        load_weights(model, path)
    assert_same_state(model.state_dict(), small_model("ViT-tiny").state_dict())


def test_a_damaged_optimizer_does_not_keep_weights_from_loading(tmp_path: Path) -> None:
    path, given = tmp_path / "model.pt", small_model("ViT-tiny", seed=1)
    moments = {"exp_avg": torch.full((100_000,), 7.0)}
    torch.save({"state_dict": given.state_dict(), "optimizer": moments}, path)
    data = path.read_bytes()
    number = moments["exp_avg"][:100].numpy().tobytes()
    assert data.count(number)
    path.write_bytes(data.replace(number, bytes(len(number)), 1))
    model = small_model("ViT-tiny")
    load_weights(model, path, activation="quick_gelu")
    assert_same_state(model.state_dict(), given.state_dict())
