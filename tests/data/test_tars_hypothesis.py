"""Tars and indexes that hypothesis makes: what is read is what tarfile reads, or is named."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipfast.data import shards
from clipfast.data.report import printable
from clipfast.data.scan import contents
from clipfast.data.tarheader import name_of, number, pax_records, plain, size_of, valid
from clipfast.data.tarwalk import walk
from tests.campaigns import fuzz_oracle
from tests.data.tars import END, header, pair, resum

FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

letters = st.characters(exclude_characters="\0/", exclude_categories=["Cs"])
words = st.text(letters, min_size=1, max_size=30).filter(lambda word: word not in (".", ".."))
keys = st.lists(words, min_size=1, max_size=3).map("/".join)
bodies = st.binary(max_size=1500)


def packed(members: list[tuple[str, bytes]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def is_told(path: Path, data: bytes) -> None:
    """The walk over a tar is tarfile's, or is refused by name; what it leaves out is named."""
    path.write_bytes(data)
    try:
        found = contents(str(path))
    except ValueError as error:
        assert repr(str(path)) in str(error)  # noqa: PT017
        return
    truth = fuzz_oracle.read(data)
    left_out = {name.rstrip("/") for name, _ in found.left_out}
    walked = list(walk(str(path)))
    assert truth.whole
    assert walked == [f for f in truth.files if f in walked or f[0] not in left_out]
    assert set(truth.others) <= left_out
    keys = {sample.key for sample in found.samples}
    for name, _, _ in walked:
        folder, slash, base = name.rpartition("/")
        assert folder + slash + base.partition(".")[0] in keys or name.rstrip("/") in left_out
    assert found.notes or truth.marked


@quick
@given(st.lists(st.tuples(keys, bodies), max_size=8), st.sampled_from(FORMS[1:]), st.data())
def test_any_names_in_any_form_are_read(tmp_path, members, form, data):
    made = packed([(key + ".jpg", body) for key, body in members], form)
    if members:
        is_told(tmp_path / "x.tar", made)
        at = data.draw(st.integers(0, len(made) - 1))
        changed = made[:at] + bytes([data.draw(st.integers(0, 255))]) + made[at + 1 :]
        start = at - at % 512
        is_told(tmp_path / "x.tar", changed)
        signed = changed[:start] + resum(changed[start : start + 512]) + changed[start + 512 :]
        is_told(tmp_path / "x.tar", signed)


@quick
@given(st.lists(st.tuples(keys, bodies, bodies), min_size=1, max_size=6), st.booleans())
def test_an_index_gives_every_pair_back(tmp_path, samples, marked):
    members = [
        member
        for key, image, caption in samples
        for member in ((f"{key}.png", image), (f"{key}.TXT", caption))
    ]
    path = tmp_path / "x.tar"
    path.write_bytes(packed(members, tarfile.PAX_FORMAT))
    entries = [sample.entry for sample in shards.scan(str(path)) if sample.entry]
    index = Path(shards.write_index(str(path), entries))
    if not marked:
        first, _, lines = index.read_bytes().partition(b"\n")
        index.write_bytes(b" ".join(first.split()[:2]) + b"\n" + lines)
    table = shards.read_table(str(path))
    files = shards.ShardFiles([str(path)])
    assert table.keys() == [entry.key for entry in entries]
    for row, entry in enumerate(entries):
        assert (int(table.image_offset[row]), int(table.image_size[row])) == (
            entry.image_offset,
            entry.image_size,
        )
        image = files.pread(0, entry.image_offset, entry.image_size)
        caption = files.pread(0, entry.caption_offset, entry.caption_size)
        assert (image, caption) in [(i, c) for _, i, c in samples]


@quick
@given(st.data(), st.booleans())
def test_a_changed_byte_of_an_index_is_noticed_or_changes_nothing(tmp_path, data, marked):
    path = tmp_path / "x.tar"
    path.write_bytes(b"".join(pair(f"{i}", f"caption {i}") for i in range(4)) + END)
    entries = [sample.entry for sample in shards.scan(str(path)) if sample.entry]
    index = Path(shards.write_index(str(path), entries))
    text = index.read_bytes()
    if not marked:
        text = b"v1.2 4\n" + text.partition(b"\n")[2]
    at = data.draw(st.integers(0, len(text) - 1))
    index.write_bytes(text[:at] + bytes([data.draw(st.integers(0, 255))]) + text[at + 1 :])
    try:
        table = shards.read_table(str(path))
    except ValueError as error:
        assert repr(str(index)) in str(error)  # noqa: PT017
        return
    assert [table.entry(row) for row in range(4)] == entries


@quick
@given(st.binary(min_size=1, max_size=200))
def test_numbers_and_records_end_in_a_value_or_a_value_error(data):
    for read in (number, pax_records):
        try:
            read(data)
        except ValueError as error:
            assert str(error).isprintable()  # noqa: PT017


@quick
@given(
    st.binary(max_size=100), st.integers(0, 511), st.integers(0, 255), st.sampled_from(b"0015xgLK")
)
def test_the_short_way_through_a_header_says_what_the_long_one_does(name, at, byte, kind):
    made = bytearray(header(name, 5, bytes([kind])))
    ordinary = kind == ord("0") and name.strip(b"\0") == name != b""
    assert plain(bytes(made)) is not None or not ordinary
    made[at] = byte
    for head in (bytes(made), resum(made)):
        found = plain(head)
        if found is not None:
            assert valid(head)
            assert found == (head[156:157], name_of(head), size_of(head))


@quick
@given(st.text())
def test_what_is_printable_holds_no_control(text):
    shown = printable(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u2029\u202e" for c in shown)


def test_a_member_without_a_name_is_named(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(pair("a")[:2048].replace(b"a.txt", b"\0.txt", 1) + END)
    with pytest.raises(ValueError, match="no valid header"):
        contents(str(path))
    data = path.read_bytes()
    path.write_bytes(data[:1024] + resum(data[1024:1536]) + data[1536:])
    assert contents(str(path)).left_out == [("", "left out: no extension")]
