"""clipfast.data.pack: tables and folders become shards that read back as what went in."""

import io
import json
import os
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipfast.data import shards
from clipfast.data.check import Limits
from clipfast.data.encode import Encoding, encode_image
from clipfast.data.pack import main, pack_items
from clipfast.data.packlist import list_items
from clipfast.data.packnext import next_command
from clipfast.engine import Config
from clipfast.engine.cli import parse

N = 25


def picture(i: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    return Image.fromarray(np.stack([x * 3, y * 4, 0 * x + i * 9], -1).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def caption(i: int) -> str:
    return f'picture, "number" {i}: été'


@pytest.fixture
def folder(tmp_path):
    """Images in subfolders, with captions in a csv, a tsv, a jsonl and beside the images."""
    root = tmp_path / "in"
    names = [f"{'ab'[i % 2]}/{i:02d}.{('jpg', 'png', 'webp')[i % 3]}" for i in range(N)]
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(i), ("JPEG", "PNG", "WEBP")[i % 3]))
        path.with_suffix(".txt").write_text(f" {caption(i)}\n", encoding="utf-8")
    quoted = [caption(i).replace('"', '""') for i in range(N)]
    lines = [
        f'{i},{name},"{text}"\n' for i, (name, text) in enumerate(zip(names, quoted, strict=True))
    ]
    (root / "t.csv").write_text("id,filepath,title\n" + "".join(lines), encoding="utf-8-sig")
    lines = [f'{name}\t"{text}"\n' for name, text in zip(names, quoted, strict=True)]
    (root / "t.tsv").write_text("Image\tCaption\n" + "".join(lines), encoding="utf-8")
    lines = [json.dumps({"path": n, "text": caption(i)}) + "\n\n" for i, n in enumerate(names)]
    (root / "t.jsonl").write_text("".join(lines), encoding="utf-8")
    return root


def read(output: Path) -> list[tuple[bytes, str]]:
    found = shards.expand(f"{output}/*.tar")
    files = shards.ShardFiles(found)
    samples = []
    for s, path in enumerate(found):
        assert shards.has_index(path)
        table = shards.read_table(path)
        for i in range(len(table)):
            image = files.pread(s, int(table.image_offset[i]), int(table.image_size[i]))
            text = files.pread(s, int(table.caption_offset[i]), int(table.caption_size[i]))
            samples.append((image, text.decode()))
    return samples


@pytest.mark.parametrize("source", ["t.csv", "t.tsv", "t.jsonl", "."])
def test_pack_round_trip(folder, tmp_path, source, capsys):
    output = tmp_path / "out"
    arguments = [str(folder / source), "--output", str(output), "--shard-size", "10"]
    assert main([*arguments, "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "shards: 3, samples: 25, rejected: 0" in out
    assert f"{output}/{{00000..00002}}.tar" in out
    assert shards.counts(shards.expand(f"{output}/*.tar")).tolist() == [10, 10, 5]
    expected = {
        (path.read_bytes(), caption(int(path.stem)))
        for path in folder.rglob("*.*")
        if path.suffix in (".jpg", ".png", ".webp")
    }
    samples = read(output)
    assert len(samples) == len(expected) == N
    assert set(samples) == expected
    assert [text for _, text in samples] != [caption(i) for i in range(N)]


def test_packed_tar_reads_with_python_and_its_index_equals_a_scan(folder, tmp_path):
    output = tmp_path / "out"
    main([str(folder), "--output", str(output), "--workers", "1"])
    with tarfile.open(output / "00000.tar") as tar:
        members = tar.getmembers()
        assert members[0].name.startswith("000000000.")
        assert members[1].name == "000000000.txt"
        assert {(m.mtime, m.uid, m.mode) for m in members} == {(0, 0, 0o644)}
    assert os.path.getsize(output / "00000.tar") % 10240 == 0
    indexed = shards.read_table(str(output / "00000.tar"))
    os.remove(output / "00000.idx")
    scanned = shards.read_table(str(output / "00000.tar"))
    assert indexed.keys() == scanned.keys()
    np.testing.assert_array_equal(indexed.image_offset, scanned.image_offset)
    np.testing.assert_array_equal(indexed.caption_offset, scanned.caption_offset)


def test_pack_is_deterministic_whatever_the_workers(folder, tmp_path):
    contents = []
    for name, options in {
        "one": ["--workers", "1"],
        "two": ["--workers", "2"],
        "seed": ["--workers", "1", "--shuffle-seed", "1"],
        "plain": ["--workers", "1", "--shuffle-seed", "None"],
    }.items():
        output = tmp_path / name
        common = ["--output", str(output), "--shard-size", "9", "--max-side", "32"]
        assert main([str(folder / "t.csv"), *common, *options]) == 0
        files = sorted(p for p in output.iterdir() if p.suffix in (".tar", ".idx"))
        contents.append({p.name: p.read_bytes() for p in files})
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
    assert [text for _, text in read(tmp_path / "plain")] == [caption(i) for i in range(N)]


def test_pack_reports_what_it_leaves_out(folder, tmp_path, capsys):
    (folder / "a" / "lonely.jpg").write_bytes(encode(picture(1)))
    (folder / "a" / "words.txt").write_text("no image")
    for name, image, text in (
        ("cut", encode(picture(1))[:-30], b"x"),
        ("blank", encode(picture(1)), b" \n"),
        ("latin", encode(picture(1)), "été".encode("latin-1")),
        ("fake", b"plain text", b"x"),
    ):
        (folder / "b" / f"{name}.jpg").write_bytes(image)
        (folder / "b" / f"{name}.txt").write_bytes(text)
    assert main([str(folder), "--output", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "samples: 25, rejected: 6" in capsys.readouterr().out
    lines = (tmp_path / "out" / "pack_report.tsv").read_text().splitlines()
    reasons = dict(line.split("\t") for line in lines[1:])
    assert "no caption file lonely.txt" in reasons["a/lonely.jpg"]
    assert "no image beside it" in reasons["a/words.txt"]
    assert "truncated" in reasons["b/cut.jpg"]
    assert reasons["b/blank.jpg"] == "caption is empty"
    assert "not UTF-8" in reasons["b/latin.jpg"]
    assert "image is of no format" in reasons["b/fake.jpg"]


def test_pack_without_a_good_sample_says_why(folder, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    for i in range(3):
        (tmp_path / "bad" / f"{i}.jpg").write_bytes(encode(picture(i)))
        (tmp_path / "bad" / f"{i}.txt").write_text(" ")
    (tmp_path / "bad" / "lonely.jpg").write_bytes(encode(picture(1)))
    assert main([str(tmp_path / "bad"), "--output", str(tmp_path / "out"), "--workers", "1"]) == 1
    said = capsys.readouterr().err
    assert "no sample is good" in said
    assert "3 x caption is empty (" in said
    assert "1 x image has no caption file lonely.txt" in said


def packed_next(capsys, source: Path, output: str, *options: str) -> list[str]:
    """Pack, and take the words of the command that is printed."""
    assert main([str(source), "--output", output, "--workers", "1", *options]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("next: "))
    return shlex.split(line.removeprefix("next: "))


@pytest.mark.parametrize("output", ["out", "with space", "it's", "a[1]", "a*b", "-dash", "~x"])
def test_pack_prints_a_command_that_finds_recipe_and_shards(
    folder, tmp_path, output, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    option = [f"--output={output}"] if output.startswith("-") else ["--output", output]
    assert main([str(folder), *option, "--workers", "1", "--shard-size", "10"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("next: "))
    words = shlex.split(line.removeprefix("next: "))
    assert shutil.which(words[0])
    recipe = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert Path(words[recipe]).is_file()
    config = parse(Config(), words[recipe + 1 :])
    found = shards.expand(config.data.train)
    assert len(found) == 3
    assert config.batch_size == 16 <= shards.counts(found).sum()


@pytest.mark.slow
def test_pack_prints_a_command_that_trains(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = packed_next(capsys, folder, "my shards", "--shard-size", "10")
    words += ["--model.name", "RN-tiny", "--max-steps", "1", "--logging.no-tensorboard"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Finished after 1 steps" in done.stdout


def test_pack_refuses_a_folder_that_no_pattern_names(folder, tmp_path, capsys):
    assert main([str(folder), "--output", str(tmp_path / "a{b"), "--workers", "1"]) == 1
    assert "braces" in capsys.readouterr().err
    assert not (tmp_path / "a{b").exists()


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (1, "pack more samples"),
        (2, "--batch-size 2"),
        (3000, "--batch-size 2048 --micro-batch 256"),
        (400_000_000, "00000..00002}.tar' --micro-batch 256"),
    ],
)
def test_next_command_takes_a_batch_that_the_samples_fill(samples, words):
    assert words in next_command("out", 3, samples)


def test_pack_reports_bad_rows(folder, tmp_path):
    (folder / "bad.jsonl").write_bytes(
        b'{"file": "a/00.jpg", "caption": "fine"}\n'
        b"not json\n"
        b"[1]\n"
        b'{"file": "a/00.jpg", "caption": null}\n'
        b'{"caption": "x"}\n'
        b'{"file": "a/gone.jpg", "caption": "x"}\n'
        b'{"file": "a/00.jpg", "caption": "\xff"}\n'
    )
    listing = list_items(str(folder / "bad.jsonl"))
    assert listing.total == 7
    summary = pack_items(listing.items, listing.rejected, str(tmp_path / "out"), workers=1)
    assert (summary.samples, summary.rejected) == (1, 6)
    text = Path(summary.report).read_text()
    for what in ("2\trow is not JSON", "3\trow is a list, not", "4 a/00.jpg\trow has no 'caption'",
                 "5\trow has no 'file'", "No such file", "7\trow is not UTF-8"):  # fmt: skip
        assert what in text
    (folder / "bad.csv").write_bytes(b"file,caption\na/00.jpg,\xff\na/00.jpg\n")
    listing = list_items(str(folder / "bad.csv"))
    summary = pack_items(listing.items, listing.rejected, str(tmp_path / "out2"), workers=1)
    assert summary.samples == 0
    text = Path(summary.report).read_text()
    assert "bad.csv:2 a/00.jpg\tcaption is not UTF-8; name the encoding" in text
    assert "bad.csv:3 a/00.jpg\trow has 1 columns, and the first row 2" in text


def test_pack_refuses_to_mix_and_force_replaces(folder, tmp_path, capsys):
    output = tmp_path / "out"
    source = str(folder / "t.csv")
    assert main([source, "--output", str(output), "--shard-size", "5", "--workers", "1"]) == 0
    before = {path: path.read_bytes() for path in output.iterdir()}
    assert main([source, "--output", str(output), "--workers", "1"]) == 1
    assert "already holds 5 shards" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    assert main([source, "--output", str(output), "--workers", "1", "--force"]) == 0
    assert sorted(os.listdir(output)) == ["00000.idx", "00000.tar", "pack_report.tsv"]
    assert len(read(output)) == N


def test_pack_leaves_no_partial_shard_when_it_fails(folder, tmp_path, monkeypatch):
    listing = list_items(str(folder / "t.csv"))

    def broken(*_):
        raise OSError("disk full")

    output = str(tmp_path / "out")
    pack_items(listing.items, [], output, shard_size=20, workers=1)
    monkeypatch.setattr("clipfast.data.shardwriter.write_index", broken)
    with pytest.raises(OSError, match="disk full"):
        pack_items(listing.items, [], output, shard_size=10, workers=1, force=True)
    # No old index beside the new first tar.
    expected = ["00000.tar", "00001.idx", "00001.tar", "pack_report.tsv"]
    assert sorted(os.listdir(output)) == expected


def decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def store(data: bytes, max_side=None, quality=None) -> tuple[bytes, str]:
    return encode_image(data, Encoding(max_side, quality), Limits())


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_encode_image_keeps_bytes_that_fit(kind, extension):
    data = encode(picture(3), kind)
    assert store(data) == store(data, max_side=40) == (data, extension)
    assert store(data, quality=80)[0] != data


def test_encode_image_resizes_the_longer_side():
    for size, expected in (((400, 100), (64, 16)), ((100, 401), (16, 64)), ((65, 65), (64, 64))):
        data, extension = store(encode(picture(2, size)), max_side=64)
        assert extension == "jpg"
        assert decoded(data).shape[:2] == expected[::-1]


def test_encode_image_converts_other_formats():
    data, extension = store(encode(picture(3), "BMP"))
    assert extension == "jpg"
    assert abs(decoded(data) - np.asarray(picture(3)).astype(int)).mean() < 2


def test_encode_image_applies_orientation_once():
    exif = Image.Exif()
    exif[0x112] = 6
    source = picture(0, (64, 32))
    data, _ = store(encode(source, quality=95, exif=exif), quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert 0x112 not in image.getexif()
    expected = np.asarray(source.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert decoded(data).shape == (64, 32, 3)
    assert abs(decoded(data) - expected).mean() < 2


@pytest.mark.parametrize("options", [{"max_side": 4}, {"quality": 0}, {"quality": 101}])
def test_encoding_refuses_senseless_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Encoding(**options)
