"""clipfast.data.scan: members become samples by the rule of OpenCLIP, or are named."""

import logging
import re
from pathlib import Path

import pytest

from clipfast.data import index, shards
from clipfast.data.report import read_rows
from clipfast.data.scan import contents
from tests.data.tars import END, header, member, pair
from tests.data.test_index import JPEG


def write(folder: Path, *parts: bytes) -> str:
    path = folder / "x.tar"
    path.write_bytes(b"".join(parts) + END)
    return str(path)


def members(*names: str) -> bytes:
    return b"".join(member(name, JPEG if "jpg" in name.lower() else b"words") for name in names)


def by_openclip(names: list[str]) -> list[set[str]]:
    """What OpenCLIP's ``group_by_keys_nothrow`` makes of adjacent members."""
    groups: list[tuple[str, set[str]]] = []
    for name in names:
        key, extension = name.lower().split(".", 1)
        if not groups or groups[-1][0] != key or extension in groups[-1][1]:
            groups.append((key, set()))
        groups[-1][1].add(extension)
    return [extensions for _, extensions in groups]


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.txt"] * 3,
        ["a.txt", "a.jpg"] * 3,
        ["a.jpg", "a.txt", "a.json", "a.json", "a.jpg", "a.txt"],
        ["a.jpg", "a.txt", "a.jpg"],
        ["a.jpg", "a.txt", "b.jpg", "b.txt", "a.jpg", "a.txt"],
        ["a.JPG", "a.TXT", "a.jpg", "a.txt"],
    ],
)
def test_repeated_keys_are_samples_as_in_openclip(tmp_path, names):
    path = write(tmp_path, members(*names))
    samples = contents(path).samples
    assert [sample.entry is not None for sample in samples] == [
        {"jpg", "txt"} <= extensions for extensions in by_openclip(names)
    ]
    offsets = [sample.entry.image_offset for sample in samples if sample.entry]
    assert len(set(offsets)) == len(offsets) == len(shards.read_table(path))


@pytest.mark.parametrize(
    "names", [["a.jpg", "a.jpg", "a.txt", "a.txt"], ["a.jpg", "a.json", "a.jpg", "a.txt"]]
)
def test_a_caption_that_may_be_of_two_images_is_given_to_none(tmp_path, names):
    found = contents(write(tmp_path, members(*names), pair("b")))
    assert [sample.key for sample in found.samples if sample.entry] == ["b"]
    assert "cannot be told; give each pair a key of its own" in found.samples[1].problem


def test_members_apart_are_named_as_such(tmp_path):
    found = contents(write(tmp_path, members("a.jpg", "b.jpg", "c.jpg", "a.txt", "b.txt", "d.txt")))
    problems = [(sample.key, "side by side" in sample.problem) for sample in found.samples]
    assert problems == [(k, True) for k in "ab"] + [
        ("c", False),
        ("a", True),
        ("b", True),
        ("d", False),
    ]
    assert not found.left_out


ODD = {
    "._a.jpg": "metadata of macOS", "d/.b.jpg": "a hidden file", "README": "no extension",
    "PaxHeaders.77/a.txt": "a pax header that a program stored as a file",
    "./PaxHeaders/a.jpg": "a pax header",
}  # fmt: skip


def test_what_is_passed_over_is_named_and_parts_no_sample(tmp_path):
    found = contents(write(tmp_path, members("a.jpg", *ODD, "a.txt", "NoPaxHeader.jpg")))
    assert [(s.key, s.entry is None) for s in found.samples] == [
        ("a", False),
        ("NoPaxHeader", True),
    ]
    assert dict(found.left_out).keys() == ODD.keys()
    for name, why in found.left_out:
        assert f"left out: {ODD[name]}" in why


def test_a_second_image_of_a_sample_is_named(tmp_path):
    found = contents(write(tmp_path, members("a.png", "a.jpg", "a.txt", "a.json")))
    assert [sample.entry.extension for sample in found.samples] == ["png"]
    assert found.left_out == [("a.jpg", "left out: the image of this sample is its .png")]


def test_keys_with_dots_and_long_samples_are_named_shortly(tmp_path):
    names = [f"photo.{i}.{kind}" for i in range(50) for kind in ("jpg", "cls")]
    (sample,) = contents(write(tmp_path, members(*names))).samples
    assert "found .0.jpg, .0.cls" in sample.problem
    assert sample.problem.endswith("and 92 more")


def test_every_member_is_in_a_sample_or_in_the_report(tmp_path, caplog):
    names = ["a.jpg", "a.txt", "a.jpg", "a.txt", "b.jpg", "c.txt", "b.txt", *ODD]
    esc = "e\x1b]0;title\x07\u202e\n\t\x9b31m"
    parts = members(*names) + header("l.jpg", kind=b"2", at_157=b"\x1b[2J") + pair(esc, image=b"")
    path = write(tmp_path, parts, END, members("z.jpg", "z.txt"))
    with caplog.at_level(logging.WARNING):
        assert len(shards.read_table(path)) == 4
    assert "another archive begins" in caplog.text
    assert "6 members are in no sample, such as ._a.jpg" in caplog.text
    summary = index.index_shards([path], workers=1, dali=False)
    rows = [line.rstrip("\n").split("\t") for line in read_rows(summary.report)[1:]]
    assert (summary.samples, summary.good, summary.left_out) == (7, 3, 6)
    assert len(rows) == 1 + (7 - 3) + 6
    assert f"members in no sample: {summary.left_out}" in "\n".join(summary.lines())
    text = Path(summary.report).read_text()
    assert re.fullmatch(r"[ -~\t\n]*", text)
    assert "e\\x1b]0;title\\x07\\u202e\\n\\t\\x9b31m" in text
