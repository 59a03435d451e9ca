"""Names of the sets that a run is evaluated on."""

import pytest

from clipfast.engine import Config, ConfigError, DataConfig
from clipfast.engine.cli import parse
from clipfast.engine.sources import named_sources


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
