"""Labelled sets as pairs to train on, read back as the trainer reads them."""

import dataclasses
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clipfast.data import ShardReader
from clipfast.eval.__main__ import main
from clipfast.eval.sets import LabelledSet
from clipfast.eval.sets.pairs import captions_of, write_pairs

PROMPTS = ("a photo of a {c}.", "one {c}")


def encoded(i, kind="png"):
    file = BytesIO()
    Image.new("RGB", (3, 2), (i, 0, 7)).save(file, kind)
    return file.getvalue()


def images(count=7, **changed):
    made = LabelledSet("toys", "train", ("ball", "red car"), PROMPTS, np.arange(count) % 2, encoded)
    return dataclasses.replace(made, **changed)


def test_write_pairs_gives_every_image_its_class_in_a_prompt(tmp_path):
    assert write_pairs(images(), tmp_path / "shards", shard_size=3) == 3
    reader = ShardReader(sorted(map(str, (tmp_path / "shards").glob("*.tar"))))
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    captions = [reader.caption(*place) for place in places]
    assert captions == captions_of(images())
    for i, (place, caption) in enumerate(zip(places, captions, strict=True)):
        assert caption in {prompt.format(c=("ball", "red car")[i % 2]) for prompt in PROMPTS}
        assert reader.image(*place) == encoded(i)


def test_captions_depend_on_seed_and_place_and_take_every_prompt():
    many = images(200)
    captions = captions_of(many)
    assert captions == captions_of(many)
    assert captions[:50] == captions_of(images(50))
    assert captions != captions_of(many, seed=1)
    assert len(set(captions)) == 4
    assert captions_of(images(2), ["just {c}"]) == ["just ball", "just red car"]


def test_what_gives_no_pairs_is_refused_and_leaves_no_shard(tmp_path):
    with pytest.raises(ValueError, match=r"\{c\}"):
        captions_of(images(), ["a photo"])
    several = images(2, labels=np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="toys has several labels for an image"):
        captions_of(several)
    bitmaps = images(encoded=lambda i: encoded(i, "bmp" if i == 5 else "png"))
    with pytest.raises(ValueError, match="image 5 of toys is no JPEG, PNG or WebP"):
        write_pairs(bitmaps, tmp_path, shard_size=9)
    assert list(tmp_path.glob("*.tar")) == []


def test_the_command_line_writes_shards(tmp_path, capsys):
    for name in ("ball", "car"):
        (tmp_path / "toys" / "train" / name).mkdir(parents=True)
        (tmp_path / "toys" / "train" / name / "0.png").write_bytes(encoded(1))
    given = ["pairs", "--data", str(tmp_path / "toys"), "--out", str(tmp_path / "shards")]
    assert main(given) == 0
    assert "2 pairs in 1 shards: --data.train '" in capsys.readouterr().out
    captions = ShardReader([str(tmp_path / "shards" / "00000.tar")])
    assert [captions.caption(0, row) for row in range(2)] == [
        "a photo of a ball.",
        "a photo of a car.",
    ]
