"""What the words of a text are.

``clipfast``: the text is cleaned and lower-cased as the tokenizer does. A word is a run of letters,
marks and digits, or a run of punctuation and symbols. White space and control characters part
words, and so do the two kinds: "Dog's" is three of them, ``dog ' s``.

``metaclip``: MetaCLIP's own rule, for comparisons. Case counts, seven marks of punctuation become
words, and each blank ends a word, so that two of them have an empty one between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipfast.curate.engine.parts import arrow
from clipfast.tokenizer.cleaning import clean

RULES = ("clipfast", "metaclip")

_SEPARATORS = r"[^\P{Z} ]|\p{C}"
_PUNCTUATION = r"([\p{P}\p{S}]+)"
_METACLIP_SPACES = r"[\t\n\r]"
_METACLIP_WORDS = r"([,.;:?!`])"


@dataclass(frozen=True, eq=False)
class Words:
    """Words of N texts, end to end.

    Attributes:
        distinct: the different words, a ``pyarrow.StringArray``.
        code: [W] int64, position in `distinct` of each word.
        text: [W] int32, which text each word is of, rising.
    """

    distinct: Any
    code: np.ndarray
    text: np.ndarray


def words_of(texts: Sequence[str], rule: str = "clipfast") -> Words:
    """Take texts apart.

    Args:
        texts: N of them.
        rule: of ``RULES``.

    Raises:
        ValueError: there is no such rule.
    """
    pa = arrow()
    if rule == "clipfast":
        spaced = pa.array([clean(text).lower() for text in texts], pa.string())
        spaced = pa.compute.replace_substring_regex(spaced, _SEPARATORS, " ")
        spaced = pa.compute.replace_substring_regex(spaced, _PUNCTUATION, r" \1 ")
    elif rule == "metaclip":
        spaced = pa.array(texts, pa.string())
        spaced = pa.compute.replace_substring_regex(spaced, _METACLIP_WORDS, r" \1 ")
        spaced = pa.compute.replace_substring_regex(spaced, _METACLIP_SPACES, " ")
    else:
        raise ValueError(f"no rule of words {rule!r}; there are {', '.join(RULES)}")
    return _split(spaced, drop_empty=rule == "clipfast")


def query_words(queries: Sequence[str], rule: str = "clipfast") -> Words:
    """Take queries apart. MetaCLIP splits them at blanks alone: "etc." is one word of a query and
    two of a text, so that it is never found there.

    Args:
        queries: N of them.
        rule: of ``RULES``.
    """
    if rule == "metaclip":
        return _split(arrow().array(queries, arrow().string()), drop_empty=False)
    return words_of(queries, rule)


def _split(spaced: Any, drop_empty: bool) -> Words:
    """Words of texts that have blanks between them."""
    pa = arrow()
    lists = pa.compute.split_pattern(spaced, " ")
    encoded = lists.values.dictionary_encode()
    code = encoded.indices.to_numpy().astype(np.int64)
    text = np.repeat(np.arange(len(spaced), dtype=np.int32), np.diff(lists.offsets.to_numpy()))
    if drop_empty:
        empty = pa.compute.index(encoded.dictionary, "").as_py()
        if empty >= 0:
            real = code != empty
            code, text = code[real], text[real]
    return Words(encoded.dictionary, code, text)


def normal_forms(texts: Sequence[str], rule: str = "clipfast") -> list[str]:
    """Texts with one blank between words: equal for texts of the same words.

    Args:
        texts: N of them.
        rule: of ``RULES``. Under "metaclip" a text is its own.
    """
    if rule == "metaclip":
        return list(texts)
    words = words_of(texts, rule)
    distinct = words.distinct.to_pylist()
    joined: list[list[str]] = [[] for _ in texts]
    for text, code in zip(words.text.tolist(), words.code.tolist(), strict=True):
        joined[text].append(distinct[code])
    return [" ".join(each) for each in joined]
