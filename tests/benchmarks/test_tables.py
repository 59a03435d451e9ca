"""The tables of README and docs are what the rows in benchmarks/results give."""

from __future__ import annotations

import json

import pytest

from benchmarks import report
from benchmarks.parts.common import rows as files
from benchmarks.parts.common.rows import faster
from benchmarks.parts.tables import headline
from benchmarks.parts.tables.documents import TABLES, documents, names_in, render
from benchmarks.parts.tables.loss import loss
from benchmarks.parts.tables.runs import markdown, read_runs


def write(folder, subject: str, rows: list[dict]) -> None:
    (folder / f"{subject}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def loss_row(name: str, ms: float, date: str = "2026-01-01", **fields) -> dict:
    stamp = {"commit": "0000000", "date": date, "device": {"cpu": fields.pop("cpu", "A CPU")}}
    row = {"name": name, "median_ms": ms, "device": "cpu", "environment": stamp, "ranks": 1}
    row |= {"dtype": "float32", "batch": 1024, "dim": 512, "peak_extra_bytes": 3 << 20}
    return {**row, **fields}


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.parts.tables.runs.RESULTS", tmp_path)
    return tmp_path


# Every model of a published run is counted for it; tests/plan/test_time.py compares some.
LONG = "plan_published"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_tables_of_pages_are_those_of_the_rows(path, monkeypatch):
    text = path.read_text()
    if LONG in text:
        monkeypatch.setitem(TABLES, LONG, lambda: written(text, LONG))
    assert render(text) == text, "run python benchmarks/report.py"


@pytest.mark.thorough
def test_table_of_published_runs_is_what_is_counted():
    (text,) = (text for path in documents() if LONG in (text := path.read_text()))
    assert TABLES[LONG]() == written(text, LONG)


def written(text, name):
    """A table as it stands in a page."""
    return text.partition(f"<!-- table: {name} -->\n")[2].partition("\n<!-- end -->")[0]


def test_tables_all_stand_in_a_page():
    found = {name for path in documents() for name in names_in(path.read_text())}
    assert found == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_cells_in_every_column(name):
    # Machines stand apart: "NAME:", then their table.
    text = next(text for path in documents() if name in names_in(text := path.read_text()))
    blocks = [block for block in written(text, name).split("\n\n") if not block.endswith(":")]
    for block in blocks:
        head, rule, *lines = block.splitlines()
        assert lines
        assert {line.count("|") for line in (rule, *lines)} == {head.count("|")}
    assert name == "headline_gpu" or sum(block.count("\n") - 1 for block in blocks) >= 3


def test_tables_check_names_pages_with_other_figures(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: tokenizer -->\n| old |\n<!-- end -->\nafter\n")
    monkeypatch.setattr(report, "documents", lambda: [page])
    with pytest.raises(SystemExit, match=r"not what the rows say: .*page\.md"):
        report.main(["--check"])
    assert "| old |" in page.read_text()
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    report.main([])
    text = page.read_text()
    assert text.startswith("before\n<!-- table: tokenizer -->\n| captions | clipfast, per second |")
    assert text.endswith("|\n<!-- end -->\nafter\n")
    assert (tmp_path / "headline.png").read_bytes().startswith(b"\x89PNG")
    report.main(["--check"])


def test_tables_refuse_an_unknown_name_and_a_marker_without_end():
    with pytest.raises(ValueError, match="no table 'speed'; there are headline, headline_gpu"):
        render("<!-- table: speed -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="has no <!-- end -->"):
        render("<!-- table: loss -->\n| old |\n")


def test_tables_set_only_rows_of_one_run_side_by_side(results):
    ours = {"ratio_to_floor": 1.0, "logits": "keep"}
    rows = [
        loss_row("clipfast, keep", 10.0, **ours),
        loss_row("OpenCLIP 9.9", 25.0, **{"ratio_to_clipfast, keep": 2.4}),
        # The newer run has no peer: the older run's is not taken.
        loss_row("clipfast, keep", 8.0, date="2026-02-01", **ours),
    ]
    write(results, "loss_throughput", rows)
    assert [run.date for run in read_runs("loss_throughput")] == ["2026-02-01", "2026-01-01"]
    head, _, newer, older = loss().splitlines()
    assert "faster than OpenCLIP 9.9" in head
    gap = "not measured"
    assert newer == f"| 1,024 fp32 | keep | 8.00 | 1.00 | {gap} | {gap} | {gap} | 3 ({gap}) |"
    assert older == f"| 1,024 fp32 | keep | 10.0 | 1.00 | 2.40x | {gap} | {gap} | 3 (3) |"
    assert "2.40x" not in headline.headline()


def test_tables_of_several_machines_stand_apart(results):
    rows = [
        loss_row("clipfast, keep", 10.0, cpu=cpu, date=date, ratio_to_floor=1.0)
        for cpu, date in (("first", "2026-01-01"), ("second", "2026-02-01"))
    ]
    write(results, "loss_throughput", rows)
    assert loss().count("| G, type |") == 2
    assert loss().startswith("second:\n\n| G, type")


def test_headline_keeps_a_gpu_and_a_cpu_apart(results):
    gpu = {"cuda": "13.0", "gpus": [{"name": "A GPU"}]}
    ours = {"ratio_to_floor": 1.0, "logits": "keep"}
    stamp = {"commit": "1", "date": "2026-03-01", "device": gpu}
    of_gpu = {"device": "cuda", "environment": stamp, "batch": 4096, "dim": 1024}
    rows = [
        loss_row("clipfast, keep", 10.0, **ours),
        loss_row("OpenCLIP 9.9", 25.0),
        {**loss_row("clipfast triton, keep", 1.0, **ours), **of_gpu},
        {**loss_row("clipfast cuda, recompute", 2.0, **ours), **of_gpu},
        {**loss_row("OpenCLIP 9.9", 4.0), **of_gpu},
    ]
    write(results, "loss_throughput", rows)
    assert headline.headline().splitlines()[2:] == [
        "| loss, 1,024 pairs, logits kept | OpenCLIP 9.9 | 2.50x |"
    ]
    assert headline.headline_gpu().splitlines()[2:] == [
        "| loss, 4,096 pairs, logits kept | OpenCLIP 9.9 | 4.00x |"
    ]
    of_gpu_table, of_cpu_table = loss().split("A CPU:")
    assert of_gpu_table.startswith("A GPU:")
    assert "| 4,096 fp32, D 1,024 | triton, keep | 1.00 |" in of_gpu_table
    assert "| 4,096 fp32, D 1,024 | cuda, recompute | 2.00 |" in of_gpu_table
    assert "| 1,024 fp32, D 512 " not in of_cpu_table


def test_faster_is_paired_where_rows_have_it():
    ours = {"name": "clipfast", "median_ms": 10.0}
    theirs = {"name": "peer", "median_ms": 30.0}
    assert faster(ours, theirs) == 3.0
    assert faster(ours, {**theirs, "ratio_to_clipfast": 2.5}) == 2.5
    patched = {"name": "patched", "median_ms": 10.0, "ratio_to_clipfast": 1.25}
    assert faster(patched, {**theirs, "ratio_to_clipfast": 2.5}) == 2.0
    assert faster(ours, None) is None


def test_headline_has_every_subject_and_its_plot(tmp_path):
    lines = headline.headlines()
    assert {line.what.split(",")[0] for line in lines} == {
        *("loss", "training step", "text tower", "attention pooling", "AdamW", "tokenizer"),
        "loader",
    }
    assert all(line.value > 0 for line in lines)
    path = headline.plot(tmp_path / "headline.png", lines)
    assert path.stat().st_size > 20_000


def test_markdown_leaves_empty_cells_narrow():
    assert markdown(["a", "b"], [["", "1"]]) == "| a | b |\n| --- | --- |\n| | 1 |"
