"""Every field of the configuration refuses what cannot work, and names its option."""

import dataclasses
import math
from typing import get_args, get_type_hints

import pytest

from clipfast.engine.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelOptions,
    OptimizerConfig,
    ScheduleConfig,
    ZeroConfig,
)
from clipfast.engine.length import Length
from clipfast.engine.ranges import Range, check_fields, option_name

GROUPS = {
    "": Config,
    "--model": ModelOptions,
    "--data": DataConfig,
    "--optimizer": OptimizerConfig,
    "--schedule": ScheduleConfig,
    "--zero": ZeroConfig,
    "--logging": LoggingConfig,
    "--checkpoint": CheckpointConfig,
}


def fields_of(*kinds: type) -> list[tuple[str, type, str]]:
    """Group, dataclass and name of every field that holds one of some types."""
    found = []
    for group, cls in GROUPS.items():
        hints = get_type_hints(cls)
        for each in dataclasses.fields(cls):
            if hints[each.name] in kinds or set(get_args(hints[each.name])) & set(kinds):
                found.append((group, cls, each.name))
    return found


def ids(case: tuple[str, type, str]) -> str:
    return option_name(case[0], case[2])


NUMBERS = [case for case in fields_of(int, float) if case[2] != "scale"]
WHOLE = [case for case in fields_of(int) if case[2] != "scale"]
CHOICES = [
    *((group, cls, name) for group, cls, name in [("", Config, "precision")]),
    ("--zero", ZeroConfig, "stage"),
    ("--model", ModelOptions, "recompute"),
    ("--model", ModelOptions, "compile"),
    *(("--optimizer", OptimizerConfig, n) for n in ("stats", "image_weights", "text_weights")),
]


def refuse(case: tuple[str, type, str], value: object) -> None:
    group, cls, name = case
    with pytest.raises(ConfigError) as error:
        cls(**{name: value})
    assert option_name(group, name) in str(error.value)


def test_the_list_of_numbers_is_that_of_the_configuration():
    spelled = set(map(ids, NUMBERS))
    assert {"--batch-size", "--max-steps", "--optimizer.eps", "--data.threads"} <= spelled
    assert len(spelled) >= 20


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, "1", True])
@pytest.mark.parametrize("case", NUMBERS, ids=ids)
def test_no_number_is_negative_infinite_or_of_another_type(case, value):
    refuse(case, value)


@pytest.mark.parametrize("case", WHOLE, ids=ids)
@pytest.mark.parametrize("value", [2**63, 10**400, 2.5])
def test_no_whole_number_is_a_fraction_or_beyond_64_bits(case, value):
    refuse(case, value)


@pytest.mark.parametrize(
    ("group", "cls", "name", "value"),
    [
        ("", Config, "batch_size", 1),
        ("", Config, "micro_batch", 0),
        ("--data", DataConfig, "shuffle_window", 0),
        ("--data", DataConfig, "threads", 100_000),
        ("--data", DataConfig, "eval_batch_size", 0),
        ("--data", DataConfig, "eval_limit", 0),
        ("--optimizer", OptimizerConfig, "lr", 0.0),
        ("--optimizer", OptimizerConfig, "lr", 5.0),
        ("--optimizer", OptimizerConfig, "beta1", 1.0),
        ("--optimizer", OptimizerConfig, "beta2", 1.0),
        ("--optimizer", OptimizerConfig, "eps", 0.0),
        ("--optimizer", OptimizerConfig, "eps", 1e-50),
        ("--optimizer", OptimizerConfig, "clip_norm", 1e300),
        ("--schedule", ScheduleConfig, "epochs", 0.0),
        ("--schedule", ScheduleConfig, "max_steps", 0),
        ("--schedule", ScheduleConfig, "max_steps", 100_000_000),
        ("--logging", LoggingConfig, "every_steps", 0),
        ("--checkpoint", CheckpointConfig, "keep", 0),
    ],
)
def test_the_ends_of_the_ranges(group, cls, name, value):
    refuse((group, cls, name), value)


@pytest.mark.parametrize("case", CHOICES, ids=ids)
def test_a_choice_that_a_recipe_makes_up_lists_those_that_exist(case):
    refuse(case, "int4")


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.5), (-1.0, 1.0), (math.nan, 1.0), (0.5, 2)])
def test_crops_lie_within_the_image(scale):
    with pytest.raises(ConfigError, match=r"--data\.scale"):
        DataConfig(scale=scale)


@pytest.mark.parametrize("floor", [math.nan, math.inf])
def test_a_floor_that_every_value_passes_or_none_is_refused(floor):
    with pytest.raises(ConfigError, match=r"--eval\.floors eval/a"):
        EvaluationConfig(floors={"eval/a": floor})


def test_decay_that_turns_weights_around_names_the_limit():
    with pytest.raises(ConfigError, match=r"--optimizer\.weight-decay 2000.*below 2000"):
        OptimizerConfig(lr=5e-4, weight_decay=2000)
    assert OptimizerConfig(lr=5e-4, weight_decay=1999).weight_decay == 1999


@pytest.mark.parametrize("name", ["..", "../other", ".", "/absolute", "a/../../b"])
def test_a_run_stays_below_its_folder(name):
    with pytest.raises(ConfigError, match=r"--logging\.name"):
        LoggingConfig(name=name)
    assert LoggingConfig(name="sweep/3").name == "sweep/3"


def test_empty_paths_do_not_pass_as_options_left_out():
    with pytest.raises(ConfigError, match="--resume is empty"):
        CheckpointConfig(resume="")
    with pytest.raises(ConfigError, match=r"--model\.weights is empty"):
        ModelOptions(weights="")


def test_epochs_beyond_the_names_of_checkpoints_are_refused_once_the_data_is_known():
    with pytest.raises(ConfigError, match=r"--schedule\.epochs 1e\+300 are"):
        Length.of(ScheduleConfig(epochs=1e300), 7)
    assert Length.of(ScheduleConfig(epochs=2, warmup_steps=5), 7) == Length(14, 5)


def test_messages_say_the_range_and_the_reason():
    @dataclasses.dataclass
    class Options:
        small_part: float

    with pytest.raises(ConfigError) as error:
        check_fields(Options(0.0), "--x", small_part=Range(above=0, most=1, why="a part"))
    assert str(error.value) == "--x.small-part must be above 0 and at most 1: a part; got 0.0"
