"""clipfast.data.report: one line for each row, whatever names and reasons hold."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipfast.data.command import fail
from clipfast.data.reasons import Reasons
from clipfast.data.report import Report, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\tb\r\nc", "a\\tb\\r\\nc"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("gpj.\u202ecod.exe", "gpj.\\u202ecod.exe"),
        ("\u2028\ufeff", "\\u2028\\ufeff"),
        ("\udcff", "\\udcff"),
        ("two  spaces, été, 写真, 👩\u200d👧", "two  spaces, été, 写真, 👩\u200d👧"),
    ],
)
def test_printable_escapes_what_a_terminal_obeys_and_keeps_letters(text, expected):
    assert printable(text) == expected


@given(st.text())
def test_printable_is_one_line_that_encodes_and_stays_as_it_is(text):
    told = printable(text)
    assert len(told.splitlines()) <= 1
    assert printable(told) == told
    told.encode()
    assert not any(unicodedata.category(char) == "Cc" for char in told)


def test_report_reasons_and_errors_pass_no_escape_on(tmp_path, capsys):
    name, reason = "a\x1b]0;title\x07.jpg", "no\x1b[2J\nreason"
    with Report(str(tmp_path / "r.tsv"), "source", "reason") as report:
        report.row(name, reason)
    lines = (tmp_path / "r.tsv").read_text().split("\n")
    assert lines == ["source\treason", "a\\x1b]0;title\\x07.jpg\tno\\x1b[2J\\nreason", ""]
    assert fail(Reasons([(name, reason)]).after("nothing is good:")) == 1
    said = capsys.readouterr().err
    assert not {"\x1b", "\x07"} & set(said)
    assert said.startswith("error: nothing is good:\n    1 x no\\x1b[2J\\nreason (a\\x1b]0;")
