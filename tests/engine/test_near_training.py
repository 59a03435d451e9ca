"""The recipe of detectors through the engine: it repeats itself, resumes and leaves a detector."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from clipfast.curate.near.detectors import open_detector
from clipfast.curate.near.looks import split
from clipfast.engine import ConfigError
from clipfast.engine.builders import build_loader
from clipfast.engine.micro_batch import resolve_memory
from clipfast.engine.rank_bytes import rank_bytes
from clipfast.models import read_metadata
from recipes.near_duplicates import config
from tests.engine.launching import losses, rows, train_in_turn
from tests.engine.plans import plan

SMALL = ("--batch-size", "16", "--micro-batch", "8", "--data.train", "sample/noto")
FOUR = (*SMALL, "--max-steps", "4", "--checkpoint.every-steps", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("near")
    second = folder / "whole" / "checkpoints" / "step00000002"
    evaluated = ("--data.eval", "sample/twemoji", "--data.eval-limit", "24")
    runs = {
        "whole": FOUR,
        "resumed": (*FOUR, "--resume", str(second)),
        "auto": (
            *(*SMALL, "--max-steps", "1", "--micro-batch", "auto", *evaluated),
            *("--logging.validation", "sample/twemoji", "--logging.validation-batch", "8"),
        ),
    }
    train_in_turn(folder, runs, recipe="near_duplicates.py")
    return folder


def weights(folder):
    return safetensors.torch.load_file(folder / "final.safetensors")


def test_near_run_resumes_in_mid_epoch_bit_for_bit(trained):
    assert losses(trained / "resumed") == losses(trained / "whole")[2:]
    whole, again = weights(trained / "whole"), weights(trained / "resumed")
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []


def test_near_run_keeps_its_temperature_and_counts_both_pictures(trained):
    found = rows(trained / "whole")
    assert {row["logit_scale"] for row in found} == {np.float32(1 / 0.07).item()}
    assert all(row["loss"] < 4 for row in found)
    assert found[0]["samples"] == 16


def test_near_run_is_measured_on_pictures_and_their_distortions(trained):
    told = [json.loads(line) for line in (trained / "auto" / "metrics.jsonl").open()]
    named = {name: value for row in told for name, value in row.items()}
    assert 0 < named["validation/loss"] < 4
    assert 0 < named["eval/sample/twemoji/text_to_image/R@10"] <= 1


def test_near_run_leaves_a_detector(trained):
    detector = open_detector(str(trained / "whole"))
    assert detector.name == "trained"
    metadata = read_metadata(trained / "whole" / "final.safetensors")
    assert metadata.model == "near-tiny"
    assert metadata.preprocessing.resize_mode == "squash"
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40 + i, 70, 3), dtype=np.uint8) for i in range(3)]
    vectors = detector.embed(images)
    # Two looks of 128 numbers of the tower and 384 of pixels.
    assert detector.looks == 2
    assert vectors.shape == (3, 2 * (128 + 384))
    for look in split(vectors, 2):
        assert np.allclose(np.linalg.norm(look, axis=1), 1, atol=1e-5)
    assert np.allclose(detector.embed(images[1:2]), vectors[1:2], atol=1e-5)


def test_near_recipe_asks_for_what_the_paper_has():
    made = config()
    assert made.model.name == "near-tiny"
    assert made.loss.name == "contrastive"


def test_near_plan_counts_two_pictures_per_pair(process_group):
    asked = {"model": config().model, "batch_size": 8, "micro_batch": 4}
    made = plan(**asked)
    counted = rank_bytes(resolve_memory(made, None), 1)
    assert counted.images == 2 * 4 * 3 * 64 * 64 * 4


def test_near_run_refuses_random_captions():
    from dataclasses import replace

    made = replace(config(), data=replace(config().data, train=("synthetic:64",)))
    with pytest.raises(ConfigError, match="near-tiny reads pictures alone"):
        build_loader(plan(**{"model": made.model, "data": made.data}))
