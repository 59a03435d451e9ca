"""The flags of OpenCLIP's training script, and names as OpenCLIP spells them."""

import dataclasses
import re

import pytest

from clipfast.engine import Config, ConfigError
from clipfast.engine.cli import main, parse
from clipfast.engine.openclip import FLAGS, PRECISIONS, SHARED, answer
from clipfast.loss import get_objective
from clipfast.models import list_models
from clipfast.names import did_you_mean, nearest_name

COMMAND = (
    "--train-data {0..3}.tar::b.tar --val-data=v.tar --batch-size 64 --accum-freq 4 --siglip "
    "--lock-image --report-to tensorboard --epochs 32 --lr 1e-3 --wd 0.2 --warmup 500 --workers 4 "
    "--precision amp --grad-checkpointing --local-loss --gather-with-grad --pretrained openai "
    "--resume latest --name mine --logs out --save-frequency 1 --dataset-type webdataset "
    "--imagenet-val val --model ViT-B-32"
)


def test_all_flags_of_a_command_are_answered_together_and_end_with_status_2(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(SystemExit) as stop:
        main(Config(), COMMAND.split())
    assert stop.value.code == 2
    said = capsys.readouterr().err
    typed = set(re.findall(r"--[a-z-]+", COMMAND)) - {"--resume"}
    assert set(re.findall(r"^    (--[a-z-]+)", said, re.MULTILINE)) == typed
    for words in (
        "--data.train '{0..3}.tar' b.tar",
        "--data.eval v.tar",
        "64 x 8 processes x 4: --batch-size 2048 --micro-batch 64",
        "--optimizer.lr 1e-3",
        "--optimizer.weight-decay 0.2",
        "--schedule.epochs 32",
        "--schedule.warmup-steps 500",
        "--lock-image: not there",
        "amp: --precision fp16",
        "--model.name ViT-B/32",
        "patch_open_clip",
        "docs/from-openclip.md",
    ):
        assert words in said


@pytest.mark.parametrize("flag", sorted(set(FLAGS) - set(SHARED)))
def test_each_flag_is_answered_alone(flag):
    with pytest.raises(ConfigError, match=f"    {flag}: .*\\w"):
        parse(Config(), [flag])


@pytest.mark.parametrize("value", PRECISIONS)
def test_each_precision_of_theirs_is_answered(value):
    with pytest.raises(ConfigError, match=f"--precision {value}: --precision (bf16|fp16)"):
        parse(Config(), ["--precision", value])


def test_flags_that_both_have_are_ours_where_they_come_alone(capsys):
    ours = "--batch-size 64 --precision bf16 --seed 3 --resume latest --data.train a.tar"
    assert answer(ours.split(), 2) == ""
    assert parse(Config(), ours.split()).batch_size == 64
    with pytest.raises(SystemExit):
        parse(Config(), ["--help"])
    options = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    assert options & set(FLAGS) == set(SHARED)


def test_the_batch_is_explained_where_it_comes_with_theirs():
    said = answer(["--batch-size", "64", "--lr", "1e-3"], 4)
    assert "64 x 4 processes: --batch-size 256" in said
    assert "pairs over all GPUs" in answer(["--batch-size", "many", "--lr", "1"], 4)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *((name, name) for name in list_models()),
        ("ViT-B-32", "ViT-B/32"),
        ("ViT-B-32-quickgelu", "ViT-B/32"),
        ("ViT-L-14-336", "ViT-L/14@336px"),
        ("vit-l-14-336-quickgelu", "ViT-L/14@336px"),
        ("vit_l14", "ViT-L/14"),
        ("RN50-quickgelu", "RN50"),
        ("rn50x64", "RN50x64"),
        ("RN5", "RN50"),
        ("ResNet", None),
    ],
)
def test_a_models_name_is_recognised_in_other_spellings(typed, meant):
    assert nearest_name(typed, list_models()) == meant


def test_unknown_names_are_answered_with_the_nearest():
    assert did_you_mean("retreival", ["retrieval"]) == " Did you mean 'retrieval'?"
    assert did_you_mean("quite else", ["retrieval"]) == ""
    with pytest.raises(ValueError, match="Did you mean 'contrastive'"):
        get_objective("Contrastiv")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B-32", r"Did you mean 'ViT-B/32'.*its ViT-B-32 is --model.activation gelu"),
        ("RN50-quickgelu", "Did you mean 'RN50'.*Known: [^.]*$"),
    ],
)
def test_a_recipe_suggests_the_model_that_was_meant(name, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(Config(), ["--data.train", "sample", "--model.name", name])
    assert stop.value.code == 2
    assert re.search(words, capsys.readouterr().err.rstrip(".\n"))


def test_flags_of_the_configuration_never_collide_with_theirs():
    names = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Config)}
    assert names & set(FLAGS) <= {*SHARED, "--model"}
