"""``queries``: a list of what captions are looked through for."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import numpy as np

from clipfast.curate.commands.options import add_engine_options, path_of, whole
from clipfast.curate.engine import run as run_step
from clipfast.curate.engine import write_table
from clipfast.curate.engine.parts import arrow, digest
from clipfast.curate.queries.collect import collect
from clipfast.curate.queries.corpus import pieces_of
from clipfast.curate.queries.counts import BigramCounts, WordCounts, added_parts
from clipfast.curate.queries.sources import (
    WORDNET,
    Ranked,
    frequent_words,
    telling_bigrams,
    viewed_titles,
    wordnet_lemmas,
)
from clipfast.curate.text.queryfile import write_queries
from clipfast.storage.paths import join


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "make a list of queries: words and bigrams of a text, titles, WordNet"
    parser = subparsers.add_parser("queries", help=text, description=text)
    parser.add_argument("--out", required=True, help="file of the queries, one a line")
    parser.add_argument("--corpus", nargs="+", default=[], help="text files, plain or .gz")
    parser.add_argument("--titles", help="file of TITLE<TAB>VIEWS")
    parser.add_argument(
        "--wordnet",
        nargs="?",
        const=WORDNET,
        help=f"add WordNet's words, of this folder ({WORDNET} where none is given)",
    )
    parser.add_argument("--min-count", type=whole(1), default=100, help="of a word (100)")
    parser.add_argument("--min-bigrams", type=whole(1), default=100, help="of a bigram (100)")
    parser.add_argument("--min-pmi", type=float, default=10.0, help="of a bigram, in bits (10)")
    parser.add_argument("--min-views", type=whole(0), default=70, help="of a title (70)")
    parser.add_argument("--limit", type=whole(1), default=500_000, help="queries (500000)")
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    """Write the queries.

    Args:
        options: as parsed.

    Raises:
        ValueError: no source is given, or a file is of another form.
        OSError: a file cannot be read or written.
    """
    out = path_of(options.out)
    sources: dict[str, list[Ranked]] = {}
    if options.corpus:
        sources |= _of_corpus(options, f"{out}.parts")
    if options.titles:
        sources["title"] = viewed_titles(path_of(options.titles), options.min_views)
    if options.wordnet:
        sources["wordnet"] = wordnet_lemmas(path_of(options.wordnet))
    if not sources:
        raise ValueError("no source of queries: give --corpus, --titles or --wordnet")
    queries = collect(sources, options.limit)
    if not queries:
        raise ValueError("no query: the thresholds leave none; lower --min-count and the others")
    write_queries(out, queries)
    taken = Counter(query.source for query in queries)
    parts = ", ".join(f"{len(sources[s]):,} {s} ({taken[s]:,} taken)" for s in sources)
    print(f"{len(queries):,} queries in {out}: {parts}")


def _of_corpus(options: argparse.Namespace, folder: str) -> dict[str, list[Ranked]]:
    pieces = pieces_of([path_of(pattern) for pattern in options.corpus])
    work = options.engine, options.workers
    counts = added_parts(run_step(WordCounts(), pieces, folder, *work))
    total = int(np.sum(counts["count"].to_numpy()))
    frequent = frequent_words(counts, options.min_count)
    print(f"corpus: {total:,} words, {len(counts):,} different ones, {len(frequent):,} frequent")
    words = [word for word, _ in frequent]
    word_counts = np.array([count for _, count in frequent], np.int64)
    listed = join(folder, f"words-{digest(words)}.parquet")
    write_table(listed, arrow().table({"word": arrow().array(words, arrow().string())}))
    step = BigramCounts(listed, digest(words))
    bigrams = added_parts(run_step(step, pieces, folder, *work))
    telling = telling_bigrams(
        words, word_counts, total, bigrams, options.min_bigrams, options.min_pmi
    )
    return {"word": frequent, "bigram": telling}
