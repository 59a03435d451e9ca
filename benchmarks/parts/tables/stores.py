"""The tables of ``docs/measured/stores.md``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.parts.tables.runs import NOT_MEASURED, Run, by_machine, markdown, number, read_runs

_FORMS = (
    ("clipfast", "files"),
    ("clipfast", "ranges"),
    ("clipfast", "empty cache"),
    ("clipfast", "full cache"),
    ("webdataset", "files"),
    ("webdataset", "pipe"),
)


def stores() -> str:
    """Samples per second, by place and form."""
    return by_machine(read_runs("stores"), _stores)


def _stores(runs: Sequence[Run]) -> str:
    head = ["place", "what", *(", ".join(form) for form in _FORMS)]
    return markdown(
        head,
        [
            [
                f"{case.rows[0]['protocol']}, {case.rows[0]['latency_ms']} ms",
                case.rows[0]["what"],
                *(
                    number(case.find(loader=loader, form=form), "items_per_s")
                    for loader, form in _FORMS
                ),
            ]
            for case in _cases(runs)
            if case.rows[0]["what"] != "broken"
        ],
    )


def stores_broken() -> str:
    """What is lost where answers are cut."""
    return by_machine(read_runs("stores"), _broken)


def _broken(runs: Sequence[Run]) -> str:
    head = ["place", "form", "answers cut in an epoch", "samples lost", "samples/s"]
    lines = [
        [
            case.rows[0]["protocol"],
            f"{loader}, {form}",
            f"{row['breaks']:,.0f}",
            f"{row['lost']:,.0f}",
            number(row, "items_per_s"),
        ]
        for case in _cases(runs)
        for loader, form in _FORMS[1:]
        if (row := case.find(loader=loader, form=form)) is not None and "lost" in row
    ]
    return markdown(head, lines)


def stores_costs() -> str:
    """What an epoch takes of the client's core and of the server, where it comes from a store."""
    return by_machine(read_runs("stores"), _costs)


def _costs(runs: Sequence[Run]) -> str:
    head = ["place", "what", "form", "us of a core per sample", "requests", "MB", "x floor"]
    lines = []
    for case in _cases(runs):
        for loader, form in _FORMS:
            row = case.find(loader=loader, form=form)
            if row is None or "requests" not in row or "lost" in row or form == "files":
                continue
            floor = row.get("floor_ms")
            lines.append(
                [
                    f"{row['protocol']}, {row['latency_ms']} ms",
                    row["what"],
                    f"{loader}, {form}",
                    number(row, "cpu_us_per_sample"),
                    f"{row['requests']:,.0f}",
                    f"{row['bytes'] / 1e6:,.0f}",
                    f"{row['median_ms'] / floor:.1f}" if floor else NOT_MEASURED,
                ]
            )
    return markdown(head, lines)


def _cases(runs: Sequence[Run]) -> list[Run]:
    cases = [case for run in runs for case in run.cases("case")]
    order = ("read", "decoded", "broken")
    return sorted(
        cases,
        key=lambda case: (
            order.index(case.rows[0]["what"]),
            case.rows[0]["protocol"],
            case.rows[0]["latency_ms"],
        ),
    )
