"""Matching captions with queries, against MetaCLIP's own code, in one process.

    python benchmarks/curate_match.py --metaclip ../MetaCLIP/metaclip/metaclip1

MetaCLIP's folder is a checkout of its repository; it needs pyahocorasick. Captions are WordNet's
glosses, which are real English of 2 to 100 words. Queries are WordNet's words, and in a second case
500,000: those, and the most frequent pairs of neighbouring words of all glosses. Both sides work by
MetaCLIP's rule of what a word is. Their results for all captions are compared before a time is
taken: they must be equal.

Rows go to ``benchmarks/results/curate_match.jsonl`` with --save, or to where --json says.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from benchmarks.parts.common import harness
from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.plots import plot_rows
from benchmarks.parts.common.rows import RowFile, device_name
from clipfast.curate.queries.sources import WORDNET, wordnet_lemmas
from clipfast.curate.text.trie import Trie

SUBJECT = "curate_match"
DEFAULTS = {"cpu": {"captions": 10_000, "runs": 5, "wordnet": WORDNET}}
MANY = 500_000


def glosses(folder: str, seed: int = 0) -> list[str]:
    """WordNet's explanations of its synsets, in random order."""
    texts = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in Path(folder, f"data.{part}").read_text("latin-1").splitlines():
            if not line.startswith("  "):
                texts.append(line.partition("|")[2].strip().lower())
    random.Random(seed).shuffle(texts)
    return texts


def query_lists(folder: str, texts: Sequence[str]) -> dict[str, list[str]]:
    """By the name of their case: WordNet's words, and 500,000 with pairs of words of the texts."""
    words = sorted({lemma.lower() for lemma, _ in wordnet_lemmas(folder)})
    pairs: Counter[str] = Counter()
    for text in texts:
        pairs.update(" ".join(pair) for pair in pairwise(text.split()))
    more = [pair for pair, _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]
    many = list(dict.fromkeys([*words, *more]))[:MANY]
    return {f"{len(queries):,} queries": queries for queries in (words, many)}


def load_metaclip(folder: Path) -> ModuleType:
    """MetaCLIP's matching, anew: it keeps its queries for the life of the module.

    Args:
        folder: that holds ``substr_matching.py`` and ``substr_matching_ahocorasick.py``.
    """
    modules = []
    for name in ("substr_matching", "substr_matching_ahocorasick"):
        path = folder / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise SystemExit(f"no {path}: give MetaCLIP's folder metaclip/metaclip1 by --metaclip")
        modules.append(importlib.util.module_from_spec(spec))
        # The second one imports the first by this name.
        sys.modules[name] = modules[-1]
        spec.loader.exec_module(modules[-1])
    return modules[-1]


def compare(
    texts: list[str], queries: list[str], folder: Path, *, runs: int, case: str
) -> list[harness.Row]:
    """Check that both find the same, then time both in alternation; a row for each."""
    began = time.perf_counter()
    trie = Trie(queries, "metaclip")
    built = time.perf_counter() - began
    began = time.perf_counter()
    peer = load_metaclip(folder)
    peer.substr_matching("", queries)
    peer_built = time.perf_counter() - began
    print(f"{case}: made ready in {built:.1f} s, MetaCLIP's automaton in {peer_built:.1f} s")

    def theirs() -> list[list[int]]:
        return [peer.substr_matching(text, queries) for text in texts]

    def check() -> None:
        found: list[set[int]] = [set() for _ in texts]
        for text, query in zip(*(part.tolist() for part in trie.match(texts)), strict=True):
            found[text].add(query)
        assert found == [set(each) for each in theirs()], "matches differ"
        print(f"{case}: {sum(map(len, found)):,} equal matches in {len(texts):,} captions")

    ours: Callable[[], object] = functools.partial(trie.match, texts)
    return harness.measure_together(
        {"clipfast": ours, "MetaCLIP 1": theirs},
        check=check,
        warmup=1,
        runs=runs,
        items=len(texts),
        memory=False,
        case=case,
        captions=len(texts),
        pyahocorasick=importlib.metadata.version("pyahocorasick"),
        pyarrow=importlib.metadata.version("pyarrow"),
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--metaclip", type=Path, help="metaclip/metaclip1 of a checkout")
    parser.add_argument("--wordnet", help="folder of WordNet's files")
    parser.add_argument("--captions", type=int, help="captions per call, as a shard has them")
    add_run_options(parser, DEFAULTS, save="write to results/")
    return parser


def absent(options: argparse.Namespace) -> list[str]:
    """What is not here, and how it comes."""
    missing = []
    if options.metaclip is None:
        missing.append("MetaCLIP: --metaclip, metaclip/metaclip1 of a checkout")
    if not Path(options.wordnet, "data.noun").is_file():
        missing.append("WordNet's files: apt-get install wordnet-base, or --wordnet")
    for module, package in (("ahocorasick", "pyahocorasick"), ("pyarrow", "pyarrow")):
        if importlib.util.find_spec(module) is None:
            missing.append(f"{package}: pip install {package}")
    return missing


def main(argv: Sequence[str] | None = None) -> None:
    """Run both cases, print and write the rows."""
    options = parse(build_parser(), argv, DEFAULTS)
    if missing := absent(options):
        print("left out, there is nothing to compare with: " + "; ".join(missing))
        return
    everything = glosses(options.wordnet)
    texts = everything[: options.captions]
    words = sum(len(text.split()) for text in texts) / len(texts)
    print(f"{len(texts):,} captions of {words:.1f} words on average")
    rows = RowFile(SUBJECT, options, lambda row: (row["case"], row["captions"]))
    for case, queries in query_lists(options.wordnet, everything).items():
        new = compare(texts, queries, options.metaclip, runs=options.runs, case=case)
        rows.add(new)
        ours, theirs = new
        print(
            f"{case}: clipfast {ours['items_per_s']:,.0f} captions/s, MetaCLIP "
            f"{theirs['items_per_s']:,.0f}: {theirs['ratio_to_clipfast']:.1f}x faster"
        )
    rows.finish(plot)


def plot(rows: Sequence[harness.Row], path: Path) -> Path:
    """Draw one bar per side and case."""
    return plot_rows(
        rows,
        path,
        title=f"Matching {rows[0]['captions']:,} captions, {device_name(rows[0])}",
        group="case",
        unit="captions per second",
    )


if __name__ == "__main__":
    main()
