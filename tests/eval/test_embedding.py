"""Features of shards on disk: what they are, going on, and what is refused."""

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipfast.data.shardwriter import ShardWriter
from clipfast.eval.__main__ import main
from clipfast.eval.embedding import Embedded, embed
from clipfast.eval.encoding import ImageEncoder
from clipfast.preprocessing import Preprocessing
from tests.eval.tiny import SIZE, picture, tiny_model, tiny_weights
from tests.ranks import run_ranks

pytestmark = pytest.mark.needs("nvidia.dali")
COUNT, BROKEN = 8, 4


def encoder(seed=0, rank=0, world_size=1, **options):
    model, prepared = tiny_model(seed=seed), Preprocessing(SIZE)
    options |= {"batch_size": 4, "rank": rank, "world_size": world_size}
    return ImageEncoder(model, prepared, **options)


def write_shards(folder):
    """Eight pairs in three shards; one image is none."""
    folder.mkdir()
    writer = ShardWriter(str(folder), 3)
    for i in range(COUNT):
        image = b"\x89PNG\r\n\x1a\n broken" if i == BROKEN else picture(i)
        writer.add(image, "png", f"picture {i}, so to say".encode())
    writer.finish()
    return str(folder / "*.tar")


def read(folder, parts=3):
    """All parts: features of images, of texts, and rows."""
    numbers = [f"{n:05d}" for n in range(parts)]
    arrays = [
        np.concatenate([np.load(folder / name / f"{name}_{n}.npy") for n in numbers])
        for name in ("img_emb", "text_emb")
    ]
    rows = []
    for n in numbers:
        with (folder / "metadata" / f"metadata_{n}.csv").open(newline="") as file:
            rows += list(csv.DictReader(file))
    return *arrays, rows


def test_embed_writes_what_the_encoder_gives_and_names_what_does_not_decode(tmp_path):
    shards, ours = write_shards(tmp_path / "shards"), encoder()
    assert embed(ours, shards, tmp_path / "out") == Embedded(3, 0, COUNT, 1)
    images, texts, rows = read(tmp_path / "out")
    assert images.dtype == texts.dtype == np.float16
    captions = [f"picture {i}, so to say" for i in range(COUNT)]
    assert [row["caption"] for row in rows] == captions
    assert [row["key"] for row in rows] == [f"{i:09d}" for i in range(COUNT)]
    assert [bool(row["error"]) for row in rows] == [i == BROKEN for i in range(COUNT)]
    want = F.normalize(ours.texts(captions), dim=1)
    assert np.abs(texts - want.numpy()).max() < 1e-3
    assert np.isnan(images).all(1).tolist() == [i == BROKEN for i in range(COUNT)]

    class Whole:
        name = "whole"

        def __len__(self):
            return COUNT

        def encoded(self, i):
            return picture(i)

    kept = [i for i in range(COUNT) if i != BROKEN]
    want = F.normalize(ours.images(Whole()), dim=1).numpy()
    assert np.abs(images[kept] - want[kept]).max() < 1e-3


def test_embed_goes_on_where_it_was_cut_off(tmp_path):
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    embed(encoder(), shards, out)
    before = read(out)
    (out / "metadata" / "metadata_00001.csv").unlink()
    kept = out / "img_emb" / "img_emb_00000.npy"
    written = kept.stat().st_mtime_ns
    assert embed(encoder(), shards, out) == Embedded(3, 2, 3, 1)
    assert kept.stat().st_mtime_ns == written
    for ours, theirs in zip(read(out)[:2], before[:2], strict=True):
        assert np.array_equal(ours, theirs, equal_nan=True)


def test_embed_refuses_a_folder_of_other_weights_or_shards(tmp_path):
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    embed(encoder(), shards, out)
    with pytest.raises(ValueError, match="holds features of another run: weights differs"):
        embed(encoder(seed=1), shards, out)
    with pytest.raises(ValueError, match="holds features of another run: resize differs"):
        embed(encoder(resize="pillow"), shards, out)
    with pytest.raises(ValueError, match="holds features of another run: shards differs"):
        embed(encoder(), shards.replace("*", "0000[01]"), out)
    (out / "embed.json").write_text("nothing")
    with pytest.raises(ValueError, match=r"embed\.json is no JSON"):
        embed(encoder(), shards, out)


def _shared(shards, folder):
    done = embed(encoder(0, torch.distributed.get_rank(), 2), shards, folder)
    return [done.parts, done.before, done.pairs, done.unreadable]


def test_two_ranks_write_what_one_writes(tmp_path):
    shards = write_shards(tmp_path / "shards")
    embed(encoder(), shards, tmp_path / "one")
    assert run_ranks(2, _shared, shards, tmp_path / "two") == [[3, 0, COUNT, 1]] * 2
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert one[2] == two[2]
    for ours, theirs in zip(one[:2], two[:2], strict=True):
        assert np.array_equal(ours, theirs, equal_nan=True)


def test_the_command_line_says_what_it_did(tmp_path, capsys):
    shards, weights = write_shards(tmp_path / "shards"), str(tiny_weights(tmp_path))
    given = ["embed", shards, "--weights", weights, "--out", str(tmp_path / "out")]
    assert main(given) == 0
    assert f"0 of them before; {COUNT} pairs in " in (said := capsys.readouterr().out)
    assert "1 image(s) do not decode: NaN" in said
    assert main(given) == 0
    assert "3 of them before; 0 pairs in " in capsys.readouterr().out
