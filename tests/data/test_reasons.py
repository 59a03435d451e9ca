"""What is said where samples are missing: kinds of reasons, their numbers, an example each."""

from clipfast.data.reasons import Reasons, reasons_of
from clipfast.data.report import Report


def test_reasons_that_differ_in_numbers_and_names_are_one_kind():
    reasons = Reasons([(f"s{i}", f"image has {i} x 2 pixels in 'f{i}.jpg'") for i in range(1200)])
    reasons.add("t", "caption is empty")
    assert list(reasons.lines()) == [
        "    1,200 x image has 0 x 2 pixels in 'f0.jpg' (s0)",
        "    1 x caption is empty (t)",
    ]
    assert reasons.after("none:").startswith("none:\n    1,200 x")
    assert Reasons().after("none") == "none"
    files = Reasons((name, f"no caption file {name}.txt beside it") for name in ("cat", "dog"))
    assert list(files.lines()) == ["    2 x no caption file cat.txt beside it (cat)"]


def test_rare_reasons_are_counted_together():
    words = ("alpha", "beta", "gamma", "delta", "eps", "zeta", "eta")
    lines = list(Reasons((word, word) for word in words).lines())
    assert len(lines) == 6
    assert lines[-1] == "    2 for 2 other reasons"


def test_reports_are_found_beside_the_shards_whatever_path_they_were_indexed_by(tmp_path):
    with Report(str(tmp_path / "index_report.tsv"), "shard", "key", "reason") as report:
        report.row("elsewhere/00000.tar", "a", "caption is empty")
        report.row("elsewhere/00001.tar", "b", "caption is empty")
        report.row("elsewhere/00002.tar", "", "shard is unreadable")
    shards = [str(tmp_path / name) for name in ("00000.tar", "00002.tar")]
    assert list(reasons_of(shards).lines()) == [
        "    1 x caption is empty (a of elsewhere/00000.tar)",
        "    1 x shard is unreadable (elsewhere/00002.tar)",
    ]
    (tmp_path / "index_report.tsv").write_bytes(b"no report\xff\n")
    assert list(reasons_of(shards).lines()) == []
    assert list(reasons_of([str(tmp_path / "nowhere" / "1.tar")]).lines()) == []
