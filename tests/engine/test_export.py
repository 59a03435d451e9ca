"""The final weights of a run that diverged: written, and said to be what they are."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clipfast.engine import Config, ModelOptions, trainer
from clipfast.engine.builders import Builders
from clipfast.engine.export import export_final
from clipfast.engine.plan import decide
from clipfast.engine.trainer import Trainer
from clipfast.models import load_weights
from tests.engine.launching import free_port, start_rank
from tests.models.helpers import small_model
from tests.ranks import run_ranks


def write_twice(folder: str, port: int) -> list[str]:
    """What is said of weights before and after they diverge."""
    process = start_rank(port)
    options = ModelOptions("ViT-tiny", compile="none")
    plan = decide(Config(model=options, batch_size=4), process)
    engine = Builders(model=lambda _: small_model("ViT-tiny")).build_engine(plan)
    said = [export_final(engine, Path(folder) / "sound.safetensors", process)]
    with torch.no_grad():
        engine.module.ln_final.bias[7] = math.nan
    return [*said, export_final(engine, Path(folder) / "final.safetensors", process, step=3)]


def test_weights_of_a_diverged_run_are_written_and_named(tmp_path: Path) -> None:
    ((sound, odd),) = run_ranks(1, write_twice, str(tmp_path), free_port())
    assert sound == ""
    assert odd == "1 tensors hold NaN: ln_final.bias"
    load_weights(small_model("ViT-tiny"), tmp_path / "sound.safetensors")
    path, model = tmp_path / "final.safetensors", small_model("ViT-tiny", seed=1)
    with pytest.raises(ValueError, match=r"tensors hold NaN: ln_final\.bias"):
        load_weights(model, path)
    load_weights(model, path, allow_nonfinite=True)
    assert model.ln_final.bias.isnan().nonzero().tolist() == [[7]]
    assert torch.equal(model.visual.proj, small_model("ViT-tiny").visual.proj)


@pytest.mark.parametrize("odd", ["", "1 tensors hold NaN: ln_final.bias"])
def test_a_run_ends_with_a_line_that_names_what_is_not_finite(
    odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "export_final", lambda *_: odd)
    run, said = Trainer.__new__(Trainer), []
    run.plan = SimpleNamespace(folder=tmp_path, process=None)
    run.engine, run.step, run._requests = None, 3, None
    run._opening = SimpleNamespace(require=lambda: None)
    lost = run._export(SimpleNamespace(say=said.append))
    assert lost == said
    assert len(lost) == bool(odd)
    assert all(f"NOT FINITE: {odd}. {tmp_path / 'final.safetensors'}" in line for line in lost)
