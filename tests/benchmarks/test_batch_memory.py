"""The benchmark of memory over the batch: enough pairs, forms that agree, growth that is judged."""

from __future__ import annotations

import pytest

from benchmarks import batch_memory
from benchmarks.parts.common.harness import CheckFailed
from benchmarks.parts.memory import report
from benchmarks.parts.memory.cases import FORMS, Case, repeated_sample
from benchmarks.parts.memory.program import CHECK
from clipfast.data import TrainLoader


def test_batch_memory_repeats_the_sample_until_an_epoch_has_a_batch(tmp_path):
    shards = repeated_sample(tmp_path, 9000)
    assert shards == repeated_sample(tmp_path, 9000)
    loader = TrainLoader(shards, 64, 9000, micro_batch=8, scale=(0.5, 1.0))
    assert loader.batches_per_epoch == 1
    # Indexed as the sample is, and other names are other samples.
    assert all(loader.reader.table(shard).checked for shard in range(len(shards)))
    assert len(set(shards)) == len(shards)


def test_batch_memory_decodes_at_once_what_is_small_alone():
    options = batch_memory.parse(
        batch_memory.build_parser(), ["--batches", "32768", "1024"], batch_memory.DEFAULTS
    )
    cases = batch_memory.cases_of(options)
    assert [case.batch for case in cases] == [1024] * 3 + [32768] * 2
    assert {case.form for case in cases if case.batch == 32768} == {"crops", "files"}
    assert {case.micro_batch for case in cases} == {128}


def test_batch_memory_finds_the_same_bits_in_all_forms_and_the_loss_of_the_whole_batch(tmp_path):
    case = Case("crops", 16, 4)
    found = batch_memory.run_program(CHECK, case, repeated_sample(tmp_path, 16), 1)
    assert found["error"] < 2e-5
    assert found["loss"] == pytest.approx(found["expected"], rel=2e-5)


def test_batch_memory_tells_what_a_process_died_of():
    program = ["-c", "import sys; sys.exit(f'not {sys.argv[1]}')"]
    with pytest.raises(CheckFailed, match=r'batch=4.*\n.*not \{"form": "crops"'):
        batch_memory.run_program(program, Case("crops", 4, 4), [], 1)


def rows(*resident: int, form: str = "crops", counted: int = 100) -> list[dict]:
    return [
        {
            "form": form,
            "name": FORMS[form],
            "batch": 1024 << place,
            "resident_bytes": each << 20,
            "counted": {"features": place * counted << 20, "workspace": 0, "kept": 0},
            "seconds": [2.0],
            "cpu_seconds": [3.0],
        }
        for place, each in enumerate(resident)
    ]


def test_batch_memory_complains_of_growth_that_is_not_counted():
    assert report.growth(rows(700, 900, 1000, 1120)) == (220 << 20, 200 << 20)
    assert report.complaints(rows(700, 900, 1000, 1120)) == []
    (told,) = report.complaints(rows(700, 900, 1000, 1300))
    assert told == "crops kept: 400 MiB more from 2,048 to 8,192 pairs, 200 MiB counted"
    # What is decoded at once is measured, and not held to a count.
    assert report.complaints(rows(700, 900, 1000, 1300, form="whole")) == []
    assert report.growth(rows(700, 900)) is None
    assert "+220 MiB, 200 counted" in report.table(rows(700, 900, 1000, 1120))
