"""OpenCLIP's own training program, with its loss and with ours behind one changed import."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import clipfast.data
from clipfast.loss import ClipLoss
from tests.needs import need
from tests.peers import import_open_clip
from tests.ranks import run_ranks

SAMPLE = Path(clipfast.data.__file__).parent / "sample"
BATCHES = 24
BATCH = 32
# 0.2 million weights beside the token embedding: 24 batches take seconds on one core.
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
# Name -> (options, largest difference of the loss at a step). Under autocast OpenCLIP rounds its
# logits to bfloat16, by up to 0.03 at a scale of 14, and ours are not rounded.
CASES = {
    "fp32": (["--precision", "fp32"], 1e-4),
    "accumulation": (["--precision", "fp32", "--accum-freq", "2"], 1e-4),
    "amp_bf16": (["--precision", "amp_bf16"], 2e-2),
}


def _import_open_clip_train() -> ModuleType:
    """``open_clip_train.main``, with samples that come in one order."""
    import_open_clip()
    if find_spec("pandas") is None:
        # Imported at the top for CSV files alone, which are not read here.
        sys.modules["pandas"] = ModuleType("pandas")
    main = importlib.import_module("open_clip_train.main")
    data = importlib.import_module("open_clip_train.data")

    # webdataset would seed the order of samples by the clock; OpenCLIP's --seed does not reach it.
    shuffle = data.wds.shuffle
    data.wds.shuffle = lambda **sizes: shuffle(**sizes, rng=random.Random(0))
    # webdataset 1.0 ends each shard with a record that is no file, which OpenCLIP does not expect.
    expand = data.tar_file_expander
    data.tar_file_expander = lambda *streams, **options: (
        file for file in expand(*streams, **options) if "fname" in file
    )
    return main


def _train(main: ModuleType, name: str, options: list[str]) -> dict[str, list[float]]:
    """Run the program; each scalar that it logged, at every step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shards = ",".join(path.stem for path in sorted(SAMPLE.glob("*.tar")))
    main.main(
        [
            *("--model", "clipfast-tiny", "--device", "cpu", "--seed", "0", "--workers", "0"),
            *("--dataset-type", "webdataset", "--train-data", f"{SAMPLE}/{{{shards}}}.tar"),
            *("--train-num-samples", str(BATCHES * BATCH), "--batch-size", str(BATCH)),
            *("--epochs", "1", "--lr", "1e-3", "--warmup", "10", "--log-every-n-steps", "1"),
            *("--logs", "logs", "--name", name, "--report-to", "tensorboard", *options),
        ]
    )
    events = EventAccumulator(f"logs/{name}/tensorboard")
    events.Reload()
    return {
        tag: [event.value for event in events.Scalars(f"train/{tag}")] for tag in ("loss", "scale")
    }


def _train_both_ways(folder: str) -> dict[str, dict]:
    """Each case with OpenCLIP's loss and with ours; ``calls`` counts those of ours."""
    os.chdir(folder)
    main = _import_open_clip_train()
    factory = sys.modules["open_clip.factory"]
    Path("clipfast-tiny.json").write_text(json.dumps(MODEL))
    factory.add_model_config(Path("clipfast-tiny.json"))
    calls = []

    class CountedLoss(ClipLoss):
        def forward(self, *arguments, **options):
            calls.append(1)
            return super().forward(*arguments, **options)

    their_loss = factory.ClipLoss
    result = {}
    for case, (options, _) in CASES.items():
        theirs = _train(main, f"{case}-theirs", options)
        calls.clear()
        # What `from clipfast.loss import ClipLoss` does in place of `from .loss import ClipLoss`.
        factory.ClipLoss = CountedLoss
        ours = _train(main, f"{case}-ours", options)
        factory.ClipLoss = their_loss
        result[case] = {"theirs": theirs, "ours": ours, "calls": len(calls)}
    return result


@pytest.fixture(scope="module")
def curves(tmp_path_factory) -> dict[str, dict]:
    import_open_clip()
    need("open_clip_train", "webdataset", "tensorboard")
    # In a process of its own: the program sets up logging, seeds and back ends for itself alone.
    return run_ranks(1, _train_both_ways, str(tmp_path_factory.mktemp("open_clip")))[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_open_clip_trains_the_same_with_our_loss(curves, case):
    options, tolerance = CASES[case]
    ours, theirs = curves[case]["ours"], curves[case]["theirs"]
    assert curves[case]["calls"] == BATCHES
    assert len(ours["loss"]) == BATCHES // (2 if "--accum-freq" in options else 1)
    largest = {
        tag: max(abs(a - b) for a, b in zip(ours[tag], theirs[tag], strict=True)) for tag in ours
    }
    print(
        f"\nopen_clip_train {' '.join(options)}: {len(ours['loss'])} steps, "
        f"loss {theirs['loss'][0]:.4f} to {theirs['loss'][-1]:.4f}, "
        f"largest difference {largest['loss']:.1e} (of the logit scale {largest['scale']:.1e})"
    )
    # What learns nothing compares nothing.
    assert theirs["loss"][0] > math.log(BATCH) - 0.5
    assert theirs["loss"][-1] < theirs["loss"][0] - 0.2
    assert largest["loss"] <= tolerance
    assert largest["scale"] <= tolerance
