"""Files of queries: a query per line, and behind a tab where it comes from and its number there.

The first column is enough, so that a list of one's own will do. A JSON list of texts is read too,
which is what MetaCLIP's metadata are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from clipfast.curate.engine.parts import digest
from clipfast.curate.text.words import query_words
from clipfast.storage import storage_of


@dataclass(frozen=True)
class Query:
    """A query.

    Attributes:
        text: its words.
        source: where it comes from; "" where that is not known.
        number: what its source orders it by: occurrences, bits, views.
    """

    text: str
    source: str = ""
    number: float = 0.0


def write_queries(path: str, queries: Sequence[Query]) -> None:
    """Write queries, in one atomic step.

    Raises:
        OSError: they cannot be written.
    """
    lines = [f"{query.text}\t{query.source}\t{query.number:.10g}\n" for query in queries]
    storage_of(path).write_atomic(path, "".join(lines).encode())


@dataclass(frozen=True)
class QueryList:
    """What a file of queries holds.

    Attributes:
        queries: those to look for, each of other words.
        left_out: how many more there were: without a word, or of the words of another one.
        digest: of the texts.
    """

    queries: list[Query]
    left_out: int
    digest: str


def read_queries(path: str, rule: str = "clipfast") -> QueryList:
    """Read queries.

    Args:
        path: of a file, see the head of this module.
        rule: what words are; it says which queries are the same.

    Raises:
        ValueError: it holds no query, is no UTF-8, or JSON of another kind.
        OSError: it cannot be read.
    """
    data = storage_of(path).read(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"queries {path}: no UTF-8 (byte {error.start})") from None
    given = _from_json(path, text) if path.endswith(".json") else _from_lines(path, text)
    words = query_words([query.text for query in given], rule)
    distinct = words.distinct.to_pylist()
    forms: list[list[str]] = [[] for _ in given]
    for place, code in zip(words.text.tolist(), words.code.tolist(), strict=True):
        forms[place].append(distinct[code])
    kept: dict[tuple[str, ...], Query] = {}
    for form, query in zip(forms, given, strict=True):
        if any(form):
            kept.setdefault(tuple(form), query)
    if not kept:
        raise ValueError(f"queries {path}: there is none; write one per line")
    queries = list(kept.values())
    known = digest([query.text for query in queries])
    return QueryList(queries, len(given) - len(queries), known)


def _from_lines(path: str, text: str) -> list[Query]:
    queries = []
    for number, line in enumerate(text.split("\n"), 1):
        columns = line.rstrip("\r").split("\t")
        if not columns[0].strip():
            continue
        try:
            amount = float(columns[2]) if len(columns) > 2 else 0.0
        except ValueError:
            raise ValueError(
                f"queries {path}:{number}: expected QUERY, or QUERY<TAB>SOURCE<TAB>NUMBER; got "
                f"{line[:80]!r}"
            ) from None
        queries.append(Query(columns[0], columns[1] if len(columns) > 1 else "", amount))
    return queries


def _from_json(path: str, text: str) -> list[Query]:
    try:
        texts = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"queries {path}: no JSON: {error}") from None
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise ValueError(f"queries {path}: expected a JSON list of texts")
    return [Query(each) for each in texts]
