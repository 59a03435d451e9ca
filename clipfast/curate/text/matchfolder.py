"""The folder that ``match`` writes: queries, partial results, and which shards they are of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from clipfast.curate.engine.parts import ENDING
from clipfast.curate.shards import Shard, ShardTable, Told
from clipfast.curate.text.match import Match
from clipfast.curate.text.queryfile import QueryList, read_queries
from clipfast.storage import storage_of
from clipfast.storage.paths import join, split

_NAME = "match.json"
_VERSION = 3


@dataclass(frozen=True)
class MatchFolder:
    """What ``match`` found.

    Attributes:
        folder: where.
        words: what words are.
        queries: what was looked for.
        matched: the shards, in the order of their names.
        step: name of the folder of partial results, which tells queries and rule.
    """

    folder: str
    words: str
    queries: QueryList
    matched: list[ShardTable]
    step: str


def write_match_folder(
    folder: str, step: Match, shards: Sequence[Shard], paths: Sequence[str]
) -> None:
    """Say what lies in the folder, in one atomic step.

    Args:
        folder: of the results.
        step: what was done.
        shards: with what.
        paths: of the partial results, all in one folder inside.
    """
    state = {
        "version": _VERSION,
        "words": step.words,
        "queries": split(step.queries)[1],
        "digest": step.digest,
        "parts": split(split(paths[0])[0])[1],
        "captions": shards[0].captions,
        "shards": [
            [shard.path, shard.samples, shard.mark, shard.told and list(astuple(shard.told))]
            for shard in shards
        ],
    }
    text = json.dumps(state, indent=1)
    path = join(folder, _NAME)
    storage_of(path).write_atomic(path, text.encode("utf-8", "surrogateescape"))


def read_match_folder(folder: str) -> MatchFolder:
    """What ``write_match_folder`` wrote.

    Raises:
        ValueError: it is another folder, or its queries have changed.
        OSError: it cannot be read.
    """
    path = join(folder, _NAME)
    if not storage_of(path).is_file(path):
        raise FileNotFoundError(
            f"{folder} is no folder of matches: there is no {_NAME}; run python -m clipfast.curate "
            "match first, to its end"
        )
    state = json.loads(storage_of(path).read(path).decode("utf-8", "surrogateescape"))
    if state.get("version") != _VERSION:
        raise ValueError(f"{path} is of another version of clipfast: run match again")
    queries = read_queries(join(folder, state["queries"]), state["words"])
    if queries.digest != state["digest"]:
        raise ValueError(f"the queries of {folder} have changed since match: run it again")
    parts = join(folder, state["parts"])
    matched = []
    for place, samples, mark, told in state["shards"]:
        shard = Shard(place, samples, mark, tuple(state["captions"]), told and Told(*told))
        matched.append(ShardTable(shard, join(parts, shard.part + ENDING)))
    return MatchFolder(folder, state["words"], queries, matched, state["parts"])
