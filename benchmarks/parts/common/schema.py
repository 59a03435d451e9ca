"""The one form in which a row lies on disk, whatever it is about; defined and validated here.

A benchmark's own row (:mod:`harness`) has fields of its subject: a batch, a pool, a list. On disk
each row has the same fields, so that rows of all subjects can be sorted, compared and merged. What
only its subject knows stands under ``own``. Nothing is lost: :func:`to_row` gives the benchmark's
row back, value by value.

    {"schema": 1, "subject": "loss_throughput", "case": "batch 32768, dim 1024, ranks 1", ...}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

VERSION = 1
ROLES = ("ours", "patched", "peer", "floor", "control")
LAUNCHES = ("eager", "graph")

_TEXT, _NUMBER = (str,), (int, float)
FIELDS: dict[str, tuple[tuple[type, ...], bool]] = {
    # name: (types, whether it may be null)
    "schema": ((int,), False),
    "subject": (_TEXT, False),  # the benchmark
    "case": (_TEXT, False),  # sizes: rows of one case may be compared
    "implementation": (_TEXT, False),  # the row's name in tables
    "role": (_TEXT, False),  # one of ROLES; "patched" is a peer with our parts in it
    "peer": (_TEXT, True),  # the package of somebody else; null for ours
    "version": (_TEXT, True),  # of that package, or of clipfast
    "dtype": (_TEXT, True),  # fp32, bf16, fp16; null where nothing has a choice
    "launch": (_TEXT, False),  # one of LAUNCHES
    "median": (_NUMBER, True),  # with p20 and p80 in `unit`; null where no time was taken
    "p20": (_NUMBER, True),
    "p80": (_NUMBER, True),
    "unit": (_TEXT, True),
    "peak_bytes": (_NUMBER, True),  # memory at the peak beyond what is there before
    "error": (_NUMBER, True),  # the largest relative error that its check found
    "floor": (_NUMBER, True),  # what bounds it in this run, in `unit`
    "ratio_to_floor": (_NUMBER, True),
    "device": (_TEXT, False),  # cpu, cuda
    "device_name": (_TEXT, False),  # the card or the processor
    "commit": (_TEXT, True),
    "changed": ((bool,), False),  # whether tracked files differed from the commit
    "environment": ((dict,), False),  # the stamp of clipfast.env
    "own": ((dict,), False),  # what only the subject knows
}

# What a case is, by subject. A subject that is not here has its row's "case", or what is in OTHER.
CASES: dict[str, tuple[str, ...]] = {
    "loss_throughput": ("batch", "dim", "ranks"),
    "step_throughput": ("model", "batch", "captions"),
    "text_tower": ("width", "batch", "captions"),
    "attention_pool": ("pool", "batch"),
    "adamw": ("list", "elements"),
    "adamw_proof": ("part", "gradients", "problem", "kind", "beta2", "steps"),
    "adamw_demo": ("seed", "steps"),
    "convergence": ("seed", "steps", "threads", "machine"),
    "patch_gain": ("open_clip_version", "model", "batch", "setting"),
    "tokenizer": ("case", "batch"),
    "curate_match": ("case", "captions"),
    "ceilings": ("what",),
    "data_throughput": ("case",),
    "zeroshot": ("case",),
    "near_duplicates": ("case", "pictures"),
    "stores": ("case",),
    "batch_memory": ("model", "batch", "micro_batch", "form"),
}
OTHER = ("case", "setting", "model", "batch", "size", "ranks", "seed", "steps")

DTYPES = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp32": "fp32",
    "tf32": "tf32",
    "amp_bf16": "bf16",
    "amp_fp16": "fp16",
    "bf16": "bf16",
    "fp16": "fp16",
}
# The package of a peer that is named by its class.
PACKAGES = {"DeepSpeedCPUAdam": "deepspeed"}
_OF_TORCH = ("torch", "chunked torch", "one query", "OpenAI's form")
_NAMED = re.compile(r"^(?P<peer>[A-Za-z][\w.+-]*) (?P<version>\d[^,\s]*)(?P<rest>,.*)?$")
_TIMES = {"median_ms": "median", "p20_ms": "p20", "p80_ms": "p80"}


def to_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """The form on disk of a benchmark's row.

    Args:
        row: With ``subject``, ``name``, ``device`` and ``environment``.

    Returns:
        The record, valid.

    Raises:
        ValueError: A field is missing or of a wrong kind; names it.
    """
    own = dict(row)
    environment = own.pop("environment", None)
    commit = (environment or {}).get("commit")
    record: dict[str, Any] = {
        "schema": VERSION,
        "subject": own.pop("subject", None),
        "case": case_of(row),
        "implementation": own.pop("name", None),
        "role": role_of(row),
        **_peer_of(row),
        "dtype": _dtype_of(row),
        "launch": row.get("launch", "eager"),
        "median": None,
        "p20": None,
        "p80": None,
        "unit": None,
    }
    if "median_ms" in row:
        record["unit"] = "ms"
        record |= {short: own.pop(key) for key, short in _TIMES.items() if key in own}
    # A null says that it could not be measured, and stays with the row that says so.
    peak = own.get("peak_extra_bytes")
    if peak is not None:
        del own["peak_extra_bytes"]
    record |= {
        "peak_bytes": peak,
        "error": _largest_error(row),
        **_floor_of(row),
        "device": own.pop("device", None),
        "device_name": device_name(row),
        "commit": commit.removesuffix("+changes") if commit else None,
        "changed": bool(commit) and commit.endswith("+changes"),
        "environment": environment,
        "own": own,
    }
    validate(record)
    return record


def to_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """The benchmark's row that a record was made of; a row of the older form is given back.

    Raises:
        ValueError: The record is of a newer schema, or not valid.
    """
    if "schema" not in record:
        return dict(record)
    validate(record)
    row = {"subject": record["subject"], "name": record["implementation"], **record["own"]}
    if record["unit"] == "ms":
        row |= {key: record[short] for key, short in _TIMES.items() if record[short] is not None}
    if record["peak_bytes"] is not None:
        row["peak_extra_bytes"] = record["peak_bytes"]
    return {**row, "device": record["device"], "environment": record["environment"]}


def validate(record: Mapping[str, Any]) -> None:
    """Refuse what is not of the schema.

    Raises:
        ValueError: Says which field of which row, what was expected and what came.
    """
    told = f"row {record.get('implementation')!r} of {record.get('subject')!r}"
    if record.get("schema") != VERSION:
        raise ValueError(
            f"{told}: expected schema {VERSION}, got {record.get('schema')!r}; a newer clipfast "
            "reads it"
        )
    if odd := sorted(set(record) ^ set(FIELDS)):
        raise ValueError(f"{told}: missing, or not of the schema: {', '.join(odd)}")
    for name, (kinds, may_be_null) in FIELDS.items():
        value = record[name]
        is_bool = isinstance(value, bool) and bool not in kinds
        if (value is None and may_be_null) or (isinstance(value, kinds) and not is_bool):
            continue
        expected = " or ".join(kind.__name__ for kind in kinds) + (" or null" * may_be_null)
        raise ValueError(f"{told}: {name}: expected {expected}, got {value!r}")
    for name, allowed in (("role", ROLES), ("launch", LAUNCHES)):
        if record[name] not in allowed:
            raise ValueError(f"{told}: {name}: expected one of {allowed}, got {record[name]!r}")
    if record["unit"] is None and record["median"] is not None:
        raise ValueError(f"{told}: median {record['median']!r} has no unit")


def case_of(row: Mapping[str, Any]) -> str:
    """What was measured, in words that hold every size, the type left out."""
    fields = CASES.get(row.get("subject", ""), OTHER)
    found = [(field, row[field]) for field in fields if row.get(field) is not None]
    return ", ".join(str(v) if f in ("case", "what") else f"{f} {v}" for f, v in found) or "all"


def role_of(row: Mapping[str, Any]) -> str:
    """Whose the row is: one of :data:`ROLES`."""
    name = str(row.get("name", ""))
    if row.get("role") in ROLES:
        return str(row["role"])
    if name.startswith("floor") or row.get("subject") == "ceilings":
        return "floor"
    if row.get("is_control"):
        return "control"
    if "patch_open_clip" in name:
        return "patched"
    is_peer = name.startswith(_OF_TORCH) or _NAMED.match(name) or row.get("version")
    return "peer" if is_peer and not name.startswith("clipfast") else "ours"


def device_name(row: Mapping[str, Any]) -> str:
    """What the row was measured on, as its stamp has it, else the device's type."""
    device: dict[str, Any] = (row.get("environment") or {}).get("device", {})
    if str(row.get("device", "")).startswith("cuda"):
        gpus = device.get("gpus") or ["CUDA"]
        return str(gpus[0]["name"] if isinstance(gpus[0], dict) else gpus[0])
    threads = f", {device['threads']} threads" if device.get("threads") else ""
    return f"{device.get('cpu') or 'CPU'}{threads}"


def _dtype_of(row: Mapping[str, Any]) -> str | None:
    if weight_bytes := row.get("weight_bytes_per_parameter"):
        return {4: "fp32", 2: "bf16"}.get(weight_bytes)
    return DTYPES.get(row.get("dtype") or row.get("precision") or "")


def _peer_of(row: Mapping[str, Any]) -> dict[str, str | None]:
    """The package that a row times, and its version."""
    name, stamp = str(row.get("name", "")), row.get("environment") or {}
    torch_version = (stamp.get("versions") or {}).get("torch")
    role = role_of(row)
    if role in ("ours", "control"):
        return {"peer": None, "version": stamp.get("clipfast")}
    if role == "floor" or name.startswith(_OF_TORCH):
        return {"peer": "torch", "version": row.get("version") or torch_version}
    if named := _NAMED.match(name):
        return {"peer": named["peer"], "version": named["version"]}
    return {"peer": PACKAGES.get(name, name.split(",")[0]), "version": row.get("version")}


def _largest_error(row: Mapping[str, Any]) -> float | None:
    errors = [
        value
        for key, value in row.items()
        if (key == "update_error" or re.match(r"error(_|$)", key))
        # Units in the last place are no part of the value.
        and key != "error_ulp"
        and isinstance(value, int | float)
    ]
    return max(errors, default=None)


def _floor_of(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The floor in the unit of the median, and how many times as long the row takes."""
    median, floor, ratio = row.get("median_ms"), row.get("floor_ms"), row.get("ratio_to_floor")
    if median is not None and floor is None and ratio:
        floor = median / ratio
    if floor is None and row.get("done_flop") and row.get("gemm_flop_per_s"):
        # Its matrix products at the rate of a large one in the same run.
        floor = 1e3 * row["done_flop"] / row["gemm_flop_per_s"]
    if ratio is None and median is not None and floor:
        ratio = median / floor
    return {"floor": floor, "ratio_to_floor": ratio}
