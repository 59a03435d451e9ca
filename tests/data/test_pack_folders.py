"""Folders to pack: every file is packed, named in the report, or counted there."""

import io
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from clipfast.data.kinds import image_extensions
from clipfast.data.pack import main
from clipfast.data.packfolder import list_folder
from clipfast.data.packitem import Listing, TableOptions
from clipfast.data.packlist import list_items
from clipfast.data.shards import ShardFiles, read_table


def picture(kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, kind)
    return buffer.getvalue()


def lay(folder: Path, *names: str) -> Path:
    """Pictures of these names, and captions where a name ends in .txt."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() if name.lower().endswith(".txt") else picture())
    return folder


def sources(listing: Listing) -> list[str]:
    return [item.source for item in listing.items]


def pack(source: Path, output: Path, capsys) -> tuple[list[str], dict[str, str], str]:
    """Captions that were packed, the report, what was printed."""
    main([str(source), "--output", str(output), "--workers", "1", "--no-dali"])
    text = (output / "pack_report.tsv").read_text()
    report = dict(line.split("\t") for line in text.splitlines()[1:])
    captions = []
    shard = str(output / "00000.tar")
    if os.path.exists(shard):
        rows, files = read_table(shard), ShardFiles([shard])
        for at, size in zip(rows.caption_offset, rows.caption_size, strict=True):
            captions.append(files.pread(0, int(at), int(size)).decode())
    printed = capsys.readouterr()
    return sorted(captions), report, printed.out + printed.err


@pytest.mark.parametrize(
    "extension",
    [".jfif", ".jpe", ".jif", ".pjpeg", ".JPG", ".Jfif", ".gif", ".tiff", ".bmp", ".avif", ".jp2",
     ".ppm", ".tga", ".ico", ".apng", "", ".0", ".image"],
)  # fmt: skip
def test_every_name_of_an_image_beside_a_caption_is_tried_and_told_by_its_bytes(
    tmp_path, extension, capsys
):
    lay(tmp_path / "in", f"x{extension}", "x.txt", "y.png", "y.txt")
    captions, report, _ = pack(tmp_path / "in", tmp_path / "out", capsys)
    assert (captions, report) == (["x.txt", "y.txt"], {})
    assert read_table(str(tmp_path / "out" / "00000.tar")).extension.tolist() == [0, 0]


def test_image_extensions_are_those_that_pillow_opens_as_pictures():
    known = image_extensions()
    assert {".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".heic"} <= known
    assert not {".eps", ".ps", ".h5", ".mpg", ".pdf", ".txt"} & known
    # Those that list themselves open.
    for extension in (".png", ".bmp", ".tif", ".gif", ".ppm", ".tga", ".jp2"):
        kind = Image.registered_extensions()[extension]
        assert Image.open(io.BytesIO(picture(kind))).format == kind


def test_pictures_that_nobody_decodes_are_named(tmp_path, capsys):
    lay(tmp_path / "in", "a.jpg", "a.txt", "b.txt", "c.txt", "d.txt")
    (tmp_path / "in" / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "in" / "c.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "in" / "d.jpg").write_bytes(b"<html>")
    captions, report, _ = pack(tmp_path / "in", tmp_path / "out", capsys)
    assert captions == ["a.txt"]
    assert sorted(report) == ["b.heic", "c.eps", "d.jpg"]
    assert "HEIC" in report["b.heic"]
    assert "EPS" in report["c.eps"]


def test_every_file_is_packed_named_or_counted(tmp_path, capsys):
    source = lay(
        tmp_path / "in", "a.jpg", "a.txt", "two.jpg", "two.png", "two.txt", "full.jpg",
        "full.jpg.txt", "lonely.jpg", "words.txt", "both.jpg", "both.txt", "both.TXT",
        "images/apart.jpg", "captions/apart.txt", "._a.jpg", ".DS_Store", "Thumbs.db", "a.json",
        "b.json", "notes", ".hidden/x.jpg", ".hidden/x.txt", "empty.jpg", "empty.txt",
    )  # fmt: skip
    (source / "empty.jpg").write_bytes(b"")
    (source / "dangling.jpg").symlink_to("nowhere")
    (source / "dangling.txt").symlink_to("nowhere")
    os.mkfifo(source / "pipe.jpg")
    captions, report, said = pack(source, tmp_path / "out", capsys)
    assert captions == ["a.txt", "both.txt", "full.jpg.txt", "two.txt", "two.txt"]
    assert report["lonely.jpg"] == "image has no caption file lonely.txt beside it"
    assert report["words.txt"] == "caption has no image beside it"
    assert report["both.TXT"] == "caption file both.txt is taken"
    assert "captions/apart.txt is in another folder" in report["images/apart.jpg"]
    assert "images/apart.jpg is in another folder" in report["captions/apart.txt"]
    assert report["empty.jpg"] == "image has 0 bytes"
    assert "leads nowhere" in report["dangling.jpg"]
    assert "leads nowhere" in report["dangling.txt"]
    assert "no plain file" in report["pipe.jpg"]
    assert report[".hidden"] == "hidden folder is left alone"
    assert report["."] == (
        "left alone, 6 files of other kinds: 2 hidden, 2 .json, 1 .db, 1 without extension"
    )
    assert "images: 10 = 5 packed + 5 reported; captions: 9, 4 of them reported" in said
    assert "other files: 6" in said


def test_linked_folders_are_followed_once_and_loops_are_named(tmp_path, capsys):
    source = lay(tmp_path / "in", "a.jpg", "a.txt", "real/b.jpg", "real/b.txt")
    lay(tmp_path / "elsewhere", "c.jpg", "c.txt", "deep/d.jpg", "deep/d.txt")
    (tmp_path / "elsewhere" / "back").symlink_to("../in")
    for name, target in {
        "out": "../elsewhere", "again": "../elsewhere", "deeper": "../elsewhere/deep",
        "alias": "real", "self": ".", "up": "..", "chain": "out", "loop": "loop",
    }.items():  # fmt: skip
        (source / name).symlink_to(target)
    captions, report, _ = pack(source, tmp_path / "out", capsys)
    assert captions == ["a.txt", "c.txt", "deep/d.txt", "real/b.txt"]
    told = {name: "up" if "back up" in why else "twice" for name, why in report.items()}
    named = {"alias", "self", "up", "chain", "out", "again/back", "again/deep", "."}
    assert set(told) == named, report
    assert told["self"] == told["up"] == told["again/back"] == "up"


def test_a_link_to_a_hidden_folder_is_followed_since_nothing_else_leads_there(tmp_path):
    source = lay(tmp_path, ".store/x/a.jpg", ".store/x/a.txt", "b.jpg", "b.txt")
    (source / "photos").symlink_to(".store/x")
    (source / "photos2").symlink_to(".store/x")
    listing = list_items(str(source))
    assert sources(listing) == ["b.jpg", "photos/a.jpg"]
    assert dict(listing.notes)["photos2"] == "linked folder is 'photos', which is taken once"


def test_a_folder_that_is_a_link_itself_is_packed(tmp_path):
    lay(tmp_path / "real", "a.jpg", "a.txt", "b/c.jpg", "b/c.txt")
    (tmp_path / "link").symlink_to("real")
    listing = list_items(str(tmp_path / "link"))
    assert (sources(listing), listing.notes) == (["a.jpg", "b/c.jpg"], [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named_by_the_system(tmp_path):
    source = lay(tmp_path, "a.jpg", "a.txt", "shut/b.jpg")
    (source / "shut").chmod(0)
    assert list_folder(str(source)).notes == [("shut", "folder is unreadable: Permission denied")]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    source = lay(tmp_path, "a.jpg", "a.txt", "shut/b.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = list_folder(str(source))
    assert listing.notes == [("shut", "folder is unreadable: Permission denied")]
    assert sources(listing) == ["a.jpg"]
    with pytest.raises(PermissionError):
        list_folder(str(source / "shut"))


def test_a_pipe_in_a_table_is_named(tmp_path, capsys):
    lay(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "p.jpg")
    (tmp_path / "t.csv").write_text("file,caption\n.,z\np.jpg,x\na.jpg,y\n")
    captions, report, said = pack(tmp_path / "t.csv", tmp_path / "out", capsys)
    assert captions == ["y"]
    assert all("is a folder, a pipe or a device" in reason for reason in report.values())
    assert "rows: 3 = 1 packed + 2 reported" in said


def test_escapes_in_names_and_captions_stay_out_of_report_and_terminal(tmp_path, capsys):
    lay(tmp_path / "in", "a\x1b[31m.jpg", "b\x1b]0;x\x07\n.jpg", "b\x1b]0;x\x07\n.txt", "c.jpg")
    (tmp_path / "in" / "c.txt").write_text("\x1b[2J")
    (tmp_path / "in" / "b\x1b]0;x\x07\n.jpg").write_bytes(b"\x1b[31m")
    _, report, said = pack(tmp_path / "in", tmp_path / "out", capsys)
    text = (tmp_path / "out" / "pack_report.tsv").read_text() + said
    assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    assert "a\\x1b[31m.jpg" in report
    (tmp_path / "t.csv").write_text("file,caption\n\x1b[31m.jpg,\x1b[2J\n")
    main([str(tmp_path / "t.csv"), "--output", str(tmp_path / "out2"), "--no-dali"])
    text = (tmp_path / "out2" / "pack_report.tsv").read_text() + capsys.readouterr().err
    assert "\\x1b[31m.jpg" in text
    assert "\x1b" not in text


def test_list_items_of_a_folder_without_captions_names_the_table(tmp_path, capsys):
    source = lay(tmp_path / "in", "a.jpg")
    (source / "captions.tsv").write_text("file\tcaption\n")
    _, report, said = pack(source, tmp_path / "out", capsys)
    assert "no caption file" in report["a.jpg"]
    assert f"to use the table there, give '{source}/captions.tsv'" in said
    with pytest.raises(ValueError, match="belong to a table"):
        list_items(str(source), options=TableOptions(caption_column="x"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_items(str(source / "gone"))
    (source / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"holds no image.*to use the table there"):
        list_items(str(source))
    shutil.move(source / "captions.tsv", source / "00000.tar")
    with pytest.raises(ValueError, match=r"clipfast\.data\.index"):
        list_items(str(source))


def test_force_replaces_nothing_where_nothing_is_packed(tmp_path, capsys):
    good = lay(tmp_path / "good", "a.jpg", "a.txt")
    pack(good, tmp_path / "out", capsys)
    before = (tmp_path / "out" / "00000.tar").read_bytes()
    bad = lay(tmp_path / "bad", "a.jpg")
    assert main([str(bad), "--output", str(tmp_path / "out"), "--force", "--no-dali"]) == 1
    assert (tmp_path / "out" / "00000.tar").read_bytes() == before
