"""What the command line takes, and what it refuses before anything is built."""

from dataclasses import replace

import pytest
import torch

import clipfast.engine
import recipes.rn50x64
from clipfast.engine import Config, ConfigError, ModelOptions
from clipfast.engine.cli import main, parse
from clipfast.engine.config import CheckpointConfig, DataConfig, OptimizerConfig, ScheduleConfig
from clipfast.engine.plan import resolve_precision
from tests.engine.launching import fail


def test_parse_overrides_any_field_and_drops_the_launchers_rank():
    arguments = (
        "--local_rank=3 --data.train a.tar b.tar --batch-size 64 --zero-stage 3 --micro-batch 8 "
        "--max-steps 5 --resume latest --optimizer.lr 1e-4 --local_rank 2 --data.scale 0.5 1.0"
    )
    config = parse(Config(), arguments.split())
    assert config.data.train == ("a.tar", "b.tar")
    assert (config.batch_size, config.micro_batch, config.zero.stage) == (64, 8, 3)
    assert (config.schedule.max_steps, config.checkpoint.resume) == (5, "latest")
    assert (config.optimizer.lr, config.data.scale) == (1e-4, (0.5, 1.0))
    floors = parse(Config(), ["--eval.floors", "eval/a/R@1", "0.5", "eval/b", "0.25"]).eval.floors
    assert floors == {"eval/a/R@1": 0.5, "eval/b": 0.25}
    options = "--optimizer.stats fp16 --optimizer.text-weights stochastic"
    optimizer = parse(Config(), options.split()).optimizer
    assert (optimizer.stats, optimizer.image_weights) == ("fp16", "fp32")
    assert (optimizer.text_weights, optimizer.has_exact_weights) == ("stochastic", False)


def test_parse_keeps_what_the_recipe_set():
    recipe = Config(batch_size=77, optimizer=OptimizerConfig(lr=3e-3))
    assert parse(recipe, []) == recipe


@pytest.mark.parametrize("old", ["--model.checkpoint full", "--model.checkpoint=full"])
def test_parse_takes_the_spelling_before_and_says_how_it_is_now(old, caplog):
    config = parse(Config(), [*old.split(), "--checkpoint.keep", "3"])
    assert (config.model.recompute, config.checkpoint.keep) == ("full", 3)
    (record,) = caplog.records
    assert "--model.checkpoint is now --model.recompute" in record.message


def test_old_names_of_model_options_warn_and_mean_the_same():
    with pytest.warns(DeprecationWarning, match="ModelConfig is now ModelOptions"):
        assert clipfast.engine.ModelConfig is ModelOptions
    with pytest.warns(DeprecationWarning, match=r"--model\.recompute"):
        old = ModelOptions("RN50x64", checkpoint="auto")
    assert old == ModelOptions("RN50x64", recompute="auto")
    with pytest.warns(DeprecationWarning, match=r"--model\.recompute"):
        assert replace(old, checkpoint="full").recompute == "full"
    with pytest.warns(DeprecationWarning, match=r"--model\.recompute"):
        assert old.checkpoint == "auto"
    with pytest.raises(AttributeError, match="Confg"):
        clipfast.engine.Confg  # noqa: B018


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Config(), ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    options = (
        "--zero-stage",
        "--micro-batch",
        "--resume",
        "--optimizer.beta2",
        "--model.recompute",
        "--optimizer.image-weights",
    )
    for words in (
        *options,
        "loss scaling",
        "none,selective,full,auto",
        "fp32,remainder,stochastic",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Config(batch_size=1), "at least 2"),
        (lambda: Config(micro_batch=0), "--micro-batch"),
        (lambda: Config(batch_size=10).local_batch(4), "--batch-size 12"),
        (lambda: Config(batch_size=30, micro_batch=8).micro_batches(1), "--micro-batch 6"),
        (lambda: OptimizerConfig(lr=0.0), "--optimizer.lr"),
        (lambda: OptimizerConfig(beta2=1.0), "--optimizer.beta2"),
        (lambda: ScheduleConfig(max_steps=0), "--max-steps"),
        (lambda: DataConfig(scale=(0.9, 0.5)), "--data.scale"),
        (lambda: resolve_precision("fp16", torch.device("cpu")), "--precision fp32 or bf16"),
        (lambda: resolve_precision("tf32", torch.device("cpu")), "--precision fp32"),
    ],
)
def test_impossible_combinations_name_the_option(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


def test_micro_batches_counts_the_parts_of_a_ranks_share():
    assert Config(batch_size=64).micro_batches(2) == 1
    assert Config(batch_size=64, micro_batch=8).micro_batches(2) == 4
    assert Config(batch_size=64, micro_batch=500).micro_batches(2) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--data.train sample"),
        (["--data.train", "nowhere/{0..3}.tar"], "nowhere"),
        (["--bach-size", "8"], "--batch-size"),
        (["--data.train", "sample", "--precision", "fp16"], "needs a GPU"),
        (["--data.train", "sample", "--model.name", "RN5"], "RN50"),
        (["--data.train", "sample", "--batch-size", "9", "--micro-batch", "4"], "--micro-batch 3"),
    ],
)
def test_recipes_refuse_bad_options_before_anything_starts(options, words, capsys, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as stop:
        main(recipes.rn50x64.config(), options)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert words in " ".join((said.out + said.err).replace("│", " ").split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            [
                *("--data.train", "sample", "--batch-size", "8"),
                *("--model.name", "RN-tiny", "--model.weights", __file__),
            ],
            "error on rank 0: --model.weights",
        ),
        (
            ["--data.train", "sample", "--batch-size", "4000", "--model.name", "RN-tiny"],
            "hold 3822 samples, less than one global batch of 4000",
        ),
    ],
)
def test_launched_recipes_refuse_bad_options_with_a_remedy(options, words):
    assert words in fail("rn50x64.py", *options)


@pytest.mark.parametrize(("every", "count"), [(0, 0), (10, 3), (41, 0)])
def test_config_counts_the_checkpoints_that_a_run_will_keep_for_good(every, count):
    assert CheckpointConfig(keep_every=every).kept_for_good(15, 40) == count
