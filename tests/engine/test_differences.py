"""What a run that goes on may do otherwise, and what only when that is meant."""

from dataclasses import fields, is_dataclass, replace

import pytest

from clipfast.engine import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelOptions,
    OptimizerConfig,
    ScheduleConfig,
)
from clipfast.engine.differences import FREE, differences, plain, refuse_changes

SAVED = Config(schedule=ScheduleConfig(max_steps=100), data=DataConfig(train=("a.tar",)))
CHANGED = {
    "--max-steps was 100, is 200": {"schedule": ScheduleConfig(max_steps=200)},
    "--optimizer.lr was 0.0005, is 0.001": {"optimizer": OptimizerConfig(lr=1e-3)},
    "--data.scale was 0.9 1.0, is 0.5 1.0": {
        "data": DataConfig(train=("a.tar",), scale=(0.5, 1.0))
    },
    "--model.weights was not given, is w.pt": {"model": ModelOptions(weights="w.pt")},
    "--seed was 0, is 1": {"seed": 1},
    # A ResNet's batch statistics are those of a micro-batch.
    "--micro-batch was not given, is 64": {"micro_batch": 64},
    # The layout of their checkpoints is that of fp32.
    "--precision was auto, is tf32": {"precision": "tf32"},
}
FREE_TO_CHANGE = {
    "logging": LoggingConfig(every_steps=1, dir="elsewhere"),
    "checkpoint": CheckpointConfig(keep=9),
    "eval": EvaluationConfig(names=()),
    "data": DataConfig(train=("elsewhere/a.tar",), eval=("b.tar",), threads=3, on_error="skip"),
    "model": ModelOptions(recompute="full", compile="none"),
}


@pytest.mark.parametrize("line", CHANGED)
def test_differences_that_change_training_are_refused_by_name_unless_meant(line):
    found = differences(plain(SAVED), replace(SAVED, **CHANGED[line]))
    assert list(map(str, found)) == [line]
    with pytest.raises(ConfigError, match="no longer be the run that was saved") as raised:
        refuse_changes(found, allowed=False)
    assert line in str(raised.value)
    assert "--resume-with-changes" in str(raised.value)
    refuse_changes(found, allowed=True)


@pytest.mark.parametrize("group", FREE_TO_CHANGE)
def test_differences_that_do_not_change_training_are_told_alone(group):
    found = differences(plain(SAVED), replace(SAVED, **{group: FREE_TO_CHANGE[group]}))
    assert found
    refuse_changes(found, allowed=False)


def test_differences_of_the_model_fit_nothing():
    found = differences(plain(SAVED), replace(SAVED, model=ModelOptions("ViT-B/32")))
    for allowed in (False, True):
        with pytest.raises(ConfigError, match=r"--model.name was RN50, is ViT-B/32.*fits its own"):
            refuse_changes(found, allowed=allowed)


def test_differences_need_both_sides_and_are_none_between_equals():
    assert differences({}, SAVED) == []
    assert differences(plain(SAVED), SAVED) == []
    resumed = replace(SAVED, checkpoint=CheckpointConfig(resume="latest", resume_with_changes=True))
    assert differences(plain(SAVED), resumed) == []


def test_differences_free_names_are_those_of_fields():
    known = set()
    for field in fields(SAVED):
        value = getattr(SAVED, field.name)
        known.add(field.name)
        if is_dataclass(value):
            known |= {f"{field.name}.{inner.name}" for inner in fields(value)}
    assert set(FREE) <= known
