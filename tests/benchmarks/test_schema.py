"""The one form of rows: what is measured goes in and comes out as it was, and nothing else does."""

from __future__ import annotations

import json

import pytest

from benchmarks.parts.common.rows import RESULTS
from benchmarks.parts.common.schema import FIELDS, case_of, to_record, to_row, validate

STAMP = {
    "clipfast": "0.2.0",
    "commit": "0123456+changes",
    "versions": {"torch": "2.13.0"},
    "device": {"cpu": "A CPU", "threads": 2, "gpus": []},
}
ROW = {
    "subject": "loss_throughput",
    "name": "clipfast triton, keep",
    "device": "cpu",
    "batch": 64,
    "dim": 16,
    "dtype": "bfloat16",
    "ranks": 1,
    "median_ms": 3.0,
    "p20_ms": 2.0,
    "p80_ms": 4.0,
    "peak_extra_bytes": 1024,
    "ratio_to_floor": 1.5,
    "error_loss": 1e-6,
    "error_text_grad": 2e-3,
    "environment": STAMP,
}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_schema_is_that_of_every_row_here(path):
    for line in path.read_text().splitlines():
        record = json.loads(line)
        validate(record)
        # What is derived is derived so today.
        assert to_record(to_row(record)) == record


def test_schema_gives_every_row_the_same_fields():
    record = to_record(ROW)
    assert set(record) == set(FIELDS)
    assert record["case"] == "batch 64, dim 16, ranks 1"
    assert (record["median"], record["p20"], record["p80"]) == (3.0, 2.0, 4.0)
    assert (record["unit"], record["dtype"], record["peak_bytes"]) == ("ms", "bf16", 1024)
    assert (record["floor"], record["ratio_to_floor"], record["error"]) == (2.0, 1.5, 2e-3)
    assert (record["commit"], record["changed"]) == ("0123456", True)
    assert (record["device_name"], record["launch"]) == ("A CPU, 2 threads", "eager")
    assert to_row(json.loads(json.dumps(record))) == ROW


@pytest.mark.parametrize(
    ("fields", "role", "peer", "version"),
    [
        ({"name": "clipfast, recompute"}, "ours", None, "0.2.0"),
        ({"name": "OpenCLIP 4.2.0.dev0, torch.compile"}, "peer", "OpenCLIP", "4.2.0.dev0"),
        ({"name": "OpenCLIP 3.3.0, patch_open_clip"}, "patched", "OpenCLIP", "3.3.0"),
        ({"name": "siglip-kernel 0.1.2, sigmoid loss"}, "peer", "siglip-kernel", "0.1.2"),
        ({"name": "chunked torch"}, "peer", "torch", "2.13.0"),
        ({"name": "torch AdamW fused", "version": "2.12.0"}, "peer", "torch", "2.12.0"),
        ({"name": "DeepSpeedCPUAdam", "version": "0.19.8"}, "peer", "deepspeed", "0.19.8"),
        ({"name": "floor 6BGD"}, "floor", "torch", "2.13.0"),
        ({"name": "bf16, to nearest", "is_control": True}, "control", None, "0.2.0"),
    ],
)
def test_schema_says_whose_a_row_is(fields, role, peer, version):
    record = to_record({**ROW, **fields})
    assert (record["role"], record["peer"], record["version"]) == (role, peer, version)


def test_schema_keeps_nulls_and_what_has_no_time():
    row = {**ROW, "peak_extra_bytes": None}
    assert to_record(row)["peak_bytes"] is None
    assert to_row(to_record(row)) == row
    proof = {"subject": "adamw_proof", "name": "fp16 m", "device": "cpu", "update_error": 0.5}
    proof |= {"environment": STAMP, "part": "error", "beta2": 0.98}
    record = to_record(proof)
    assert (record["median"], record["unit"], record["error"]) == (None, None, 0.5)
    assert record["case"] == "part error, beta2 0.98"
    assert to_row(record) == proof


def test_schema_reads_rows_of_the_older_form():
    assert to_row(ROW) == ROW


def test_case_holds_every_size():
    assert case_of({**ROW, "dim": 32}) != case_of(ROW)
    assert case_of({"subject": "new", "case": "as it says", "batch": 4}) == "as it says, batch 4"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"median": "3.0"}, "median: expected int or float or null, got '3.0'"),
        ({"changed": 1}, "changed: expected bool, got 1"),
        ({"role": "friend"}, "role: expected one of"),
        ({"launch": "lazy"}, "launch: expected one of"),
        ({"unit": None}, "median 3.0 has no unit"),
        ({"schema": 2}, "expected schema 1, got 2; a newer clipfast reads it"),
        ({"speed": 9}, "missing, or not of the schema: speed"),
        ({"device": None}, "device: expected str, got None"),
    ],
)
def test_schema_names_what_is_wrong(fields, told):
    record = {**to_record(ROW), **fields}
    with pytest.raises(
        ValueError, match="row 'clipfast triton, keep' of 'loss_throughput'"
    ) as found:
        validate(record)
    assert told in str(found.value)


def test_schema_refuses_a_row_without_its_device_or_name():
    for field in ("name", "device", "environment", "subject"):
        with pytest.raises(ValueError, match="expected"):
            to_record({key: value for key, value in ROW.items() if key != field})
