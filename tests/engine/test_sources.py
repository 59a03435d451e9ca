"""Names of the sets that a run is evaluated on."""

import pytest

from clipfast.engine import Config, ConfigError, DataConfig
from clipfast.engine.cli import parse
from clipfast.engine.sources import named_sources, training_sources


def names(*values: str) -> list[str]:
    return list(named_sources(values))


def test_named_sources_keep_given_names_in_order():
    given = (
        "coco=/data/{0..3}.tar",
        "sample/noto",
        "flickr-30k=s3://b/x=1/*.tar",
        "noto=sample/noto",
    )
    assert list(named_sources(given).items()) == [
        ("coco", "/data/{0..3}.tar"),
        ("sample/noto", "sample/noto"),
        ("flickr-30k", "s3://b/x=1/*.tar"),
        ("noto", "sample/noto"),
    ]
    assert named_sources(()) == {}


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("sample", "sample"),
        ("sample/twemoji", "sample/twemoji"),
        ("/data/few.tar", "few"),
        ("coco/*.tar", "coco"),
        ("/data/coco/{00000..00099}.tar", "coco"),
        ("/data/coco/00000.tar", "coco"),
        ("/data/cc3m/cc3m-val-{0000..0015}.tar", "cc3m-val"),
        ("/data/{a,b{1,2}}/[0-9].tar", "data"),
        ("s3://bucket/my val/*.tar", "my-val"),
        ("~/lr=3/x=4.tar", "x-4"),
        ("{0..3}.tar", "shards"),
    ],
)
def test_a_pattern_is_named_after_the_last_part_that_says_something(pattern, name):
    assert named_sources([pattern]) == {name: pattern}


def test_two_patterns_of_one_name_get_numbers():
    assert names("a/x.tar", "b/x.tar", "c/x.tar") == ["x", "x-2", "x-3"]
    # A given name is never changed, wherever it stands.
    assert names("a/x.tar", "x=b/y.tar") == ["x-2", "x"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        # What a shell makes of coco=/data/{0..1}.tar without quotes.
        (["coco=/data/0.tar", "coco=/data/1.tar"], "the name 'coco' is given twice.*quote the"),
        (["sample/noto", "sample/noto"], "the name 'sample/noto' is given twice"),
        (["my coco=/data/0.tar"], "'my coco' is no name: expected letters, digits"),
        (["=/data/0.tar"], "'' is no name"),
        (["coco="], "--data.eval coco=: no shards after"),
    ],
)
def test_data_config_refuses_names_that_are_none_or_given_twice(values, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(eval=tuple(values))


def test_names_come_from_the_command_line():
    config = parse(Config(), ["--data.eval", "coco=/path/{0..3}.tar", "sample/noto"])
    assert config.data.eval_sources == {
        "coco": "/path/{0..3}.tar",
        "sample/noto": "sample/noto",
    }


def test_training_sources_join_patterns_of_one_name_and_are_none_without_names():
    assert training_sources(("a=x/*.tar", "b=y.tar", "a=s3://b/z=1/*.tar")) == {
        "a": ("x/*.tar", "s3://b/z=1/*.tar"),
        "b": ("y.tar",),
    }
    assert training_sources(("x/*.tar", "s3://b/z=1/*.tar")) == {}
    assert DataConfig(train=("a=x.tar", "b=y.tar")).train_patterns == ("x.tar", "y.tar")
    assert DataConfig(train=("x.tar",)).train_patterns == ("x.tar",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": ("a=x.tar", "y.tar")}, "y.tar has no name, and others have one"),
        ({"weights": {"a": 1}}, r"--data\.weights: b has no weight"),
        ({"weights": {"a": 1, "b": 0}}, r"--data\.weights b must be above 0; got 0"),
        ({"repeats": {"c": 1}}, r"--data\.repeats: c is no source of --data\.train"),
        ({"repeats": {"a": 2}, "epoch_samples": 5}, "are two answers to one question"),
        ({"repeats": {"a": 2}, "weights": {"a": 1, "b": 1}}, "are two answers to one question"),
        ({"captions": ("json",)}, r"--data\.captions: .*must name the key"),
    ],
)
def test_data_config_refuses_mixtures_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**({"train": ("a=x.tar", "b=y.tar")} | options))


def test_weights_come_from_the_command_line():
    words = "--data.train a=x.tar b=y.tar --data.weights a 2 b 0.5 --data.epoch-samples 10"
    data = parse(Config(), words.split()).data
    assert (data.weights, data.epoch_samples) == ({"a": 2.0, "b": 0.5}, 10)
