"""The four sources of queries, each a list of texts with a number that orders them."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from clipfast.curate.engine.parts import arrow
from clipfast.storage import storage_of
from clipfast.storage.paths import join

# Debian's package wordnet-base puts them there.
WORDNET = "/usr/share/wordnet"
_PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
_MARKER = re.compile(r"\((?:a|p|ip)\)$")
_HAS_LETTER = r"[\p{L}\p{N}]"

# A text, and what it is ordered by, the largest first.
Ranked = tuple[str, float]


def frequent_words(counts: Any, least: int) -> list[Ranked]:
    """Words that occur often, and hold a letter or a digit.

    Args:
        counts: columns word and count.
        least: occurrences that are enough.
    """
    pc = arrow().compute
    counts = counts.filter(pc.greater_equal(counts["count"], least))
    counts = counts.filter(pc.match_substring_regex(counts["word"], _HAS_LETTER))
    return list(zip(counts["word"].to_pylist(), counts["count"].to_pylist(), strict=True))


def telling_bigrams(
    words: list[str],
    word_counts: np.ndarray,
    total: int,
    bigrams: Any,
    least: int,
    least_pmi: float,
) -> list[Ranked]:
    """Pairs of words that stand together more often than chance has them.

    pmi(x, y) = log2( c(x, y) N / (c(x) c(y)) ), with N words in the corpus (Church and Hanks 1990).

    Args:
        words: V of them.
        word_counts: [V] int64, how often each occurs.
        total: N.
        bigrams: columns first, second and count.
        least: occurrences of the pair that are enough.
        least_pmi: what pmi must be at the least, in bits.
    """
    first, second, count = (bigrams[name].to_numpy() for name in ("first", "second", "count"))
    often = count >= least
    first, second, count = first[often], second[often], count[often]
    pmi = (
        np.log2(count.astype(np.float64))
        + np.log2(float(max(total, 1)))
        - np.log2(word_counts[first].astype(np.float64))
        - np.log2(word_counts[second].astype(np.float64))
    )
    return [
        (f"{words[first[i]]} {words[second[i]]}", float(pmi[i]))
        for i in np.flatnonzero(pmi >= least_pmi).tolist()
    ]


def viewed_titles(path: str, least: int) -> list[Ranked]:
    """Titles of articles. Views of a title that stands there more than once are added.

    Args:
        path: a file, plain or by gzip, with a line ``TITLE<TAB>VIEWS`` each.
        least: views that are enough.

    Raises:
        ValueError: a line is another one; names it.
        OSError: the file cannot be read.
    """
    data = storage_of(path).read(path)
    text = (gzip.decompress(data) if path.endswith(".gz") else data).decode("utf-8", "replace")
    views: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        title, tab, count = line.rpartition("\t")
        if not line.strip():
            continue
        if not tab or not count.strip().isdecimal():
            raise ValueError(f"{path}:{number}: expected TITLE<TAB>VIEWS, got {line[:80]!r}")
        title = title.replace("_", " ").strip()
        views[title] = views.get(title, 0) + int(count)
    return [(title, count) for title, count in views.items() if count >= least]


def wordnet_lemmas(folder: str = WORDNET) -> list[Ranked]:
    """The words of all synsets, each once and all of one rank.

    Args:
        folder: of WordNet's files ``data.noun``, ``data.verb``, ``data.adj`` and ``data.adv``.

    Raises:
        ValueError: a file has a line that is none of a synset.
        OSError: a file cannot be read.
    """
    lemmas = {lemma for part in _PARTS_OF_SPEECH for lemma in _lemmas(join(folder, f"data.{part}"))}
    return [(lemma, 0.0) for lemma in lemmas]


def _lemmas(path: str) -> Iterator[str]:
    """``offset file part count word sense word sense ...``, the count in hexadecimal (wndb(5))."""
    try:
        data = storage_of(path).read(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no WordNet file {path}: install one (apt-get install wordnet-base), or give its "
            "folder by --wordnet"
        ) from None
    for number, line in enumerate(data.decode("latin-1").split("\n"), 1):
        if not line or line.startswith("  "):
            continue
        words = line.partition("|")[0].split(" ")
        try:
            count = int(words[3], 16)
            lemmas = words[4 : 4 + 2 * count : 2]
        except (IndexError, ValueError):
            raise ValueError(f"{path}:{number}: no line of a synset: {line[:60]!r}") from None
        for lemma in lemmas:
            yield _MARKER.sub("", lemma).replace("_", " ")
