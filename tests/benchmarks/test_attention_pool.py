"""The pool's benchmark gives what is wrong no row, and the others theirs."""

from __future__ import annotations

import pytest

from benchmarks import attention_pool
from benchmarks.parts.common.rows import read_file

TINY = ["--device", "cpu", "--pools", "RN50", "--batch", "2", "--dtypes", "float32", "--runs", "1"]


def run(tmp_path) -> None:
    attention_pool.main([*TINY, "--json", str(tmp_path / "rows.jsonl")])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(attention_pool.POOLS, "RN50", (3, 64, 2, 32))
    monkeypatch.setattr(attention_pool, "COPIED_BYTES", 1 << 16)


def names(tmp_path) -> list[str]:
    return [row["name"] for row in read_file(tmp_path / "rows.jsonl")]


def test_attention_pool_gives_a_wrong_peer_no_row(monkeypatch, tmp_path, capsys):
    right = attention_pool.every_query
    monkeypatch.setattr(attention_pool, "every_query", lambda pool, x: 1.001 * right(pool, x))
    run(tmp_path)
    assert "OpenAI's form: wrong, so not timed: error 1.0e-03" in capsys.readouterr().out
    assert "OpenAI's form" not in names(tmp_path)
    assert {"clipfast", "one query"} <= set(names(tmp_path))


def test_attention_pool_ends_with_the_name_of_ours_where_it_is_wrong(monkeypatch, tmp_path):
    right = attention_pool.AttentionPool2d.forward
    monkeypatch.setattr(
        attention_pool.AttentionPool2d, "forward", lambda self, x: 1.001 * right(self, x)
    )
    with pytest.raises(SystemExit, match="no figure for: clipfast on RN50, float32"):
        run(tmp_path)
    assert "one query" in names(tmp_path)
