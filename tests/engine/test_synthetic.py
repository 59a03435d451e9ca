"""Training on random pairs, on two ranks, where none of the packages for data is installed."""

import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from unittest import mock

import pytest
import torch

from clipfast.engine import Config
from clipfast.engine.cli import parse
from clipfast.engine.evaluate import Evaluations
from clipfast.engine.launch import Process
from clipfast.engine.plan import decide
from clipfast.engine.typed import idle_options
from tests.campaigns.subject import RECIPE
from tests.engine.launching import _trainings, free_port, losses
from tests.ranks import run_ranks

FOR_DATA = ("nvidia.dali", "webdataset", "tokenizers", "ftfy")


def _without_packages(folder: str, runs: list[dict], port: int) -> None:
    for name in FOR_DATA:
        sys.modules[name] = None
    for entry in runs:
        _trainings(folder, entry, port, str(RECIPE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Generator[Path]:
    folder = tmp_path_factory.mktemp("synthetic")
    options = ["--data.train", "synthetic:64", "--max-steps", "4", "--model.recompute", "auto"]
    saved = ["--checkpoint.every-steps", "2", "--checkpoint.keep", "9"]
    checkpoint = str(folder / "whole/checkpoints/step00000002")
    runs = {"whole": [*options, *saved], "resumed": [*options, "--resume", checkpoint]}
    run_ranks(2, _without_packages, str(folder), [runs], free_port(), fresh=True)
    yield folder
    shutil.rmtree(folder)


def test_synthetic_training_needs_no_package_for_data_and_goes_on_exactly(folder):
    whole, resumed = losses(folder / "whole"), losses(folder / "resumed")
    assert len(whole) == 4
    assert resumed == whole[2:]
    assert len(set(whole)) == 4


@pytest.mark.parametrize("source", ["synthetic:0", "synthetic:x"])
def test_synthetic_training_is_refused_as_the_options_are_read(source, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(Config(), ["--data.train", source])
    assert f"--data.train: '{source}': the samples of an epoch" in capsys.readouterr().err


def test_synthetic_training_evaluates_nothing_and_says_so():
    options = ["--data.train", "synthetic", "--data.scale", "0.5", "1", "--data.eval", "sample"]
    options += ["--eval.floors", "eval/sample/image_to_text/R@1", "0.9"]
    config = parse(Config(), options)
    made = decide(config, Process(0, 0, 1, 1, torch.device("cpu")))
    assert list(idle_options(options, made)) == [
        "nothing is evaluated: --data.train synthetic teaches nothing",
        "--data.scale does not count: --data.train synthetic reads no shards",
    ]
    evaluations = Evaluations(made)
    assert evaluations.below_floors({}) == []
    assert evaluations.run(mock.MagicMock(), print) == {}
