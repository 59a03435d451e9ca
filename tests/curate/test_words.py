"""clipfast.curate.text: words, and which queries stand in texts, against what is naive."""

import random
import unicodedata

import numpy as np
import pytest

from clipfast.curate.text.hashed import HashedMap
from clipfast.curate.text.queryfile import Query, read_queries, write_queries
from clipfast.curate.text.trie import Trie
from clipfast.curate.text.words import normal_forms, words_of
from clipfast.tokenizer.cleaning import clean

pytestmark = pytest.mark.needs("pyarrow", "ftfy")

VOCABULARY = (
    *("a", "dog", "Dog", "black", "white", "it's", "mother-in-law", "3d", "café", "naïve", "st"),
    *("St.", "b.c.", "\U0001f600\ufe0f", "日本", "ﬁne", "&amp;", "x`y", "İstanbul", "e\u0301"),
)
GAPS = (" ", "  ", "\t", "\n", "\r", ", ", "; ", "\u00a0", "\u3000", "-", "?!", "\u200b", "")


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)

    def text() -> str:
        return "".join(rng.choice(VOCABULARY) + rng.choice(GAPS) for _ in range(rng.randint(0, 12)))

    return ["", " ", *(text() for _ in range(count))]


def naive_words(text: str) -> list[str]:
    """The rule of ``clipfast.curate.text.words``, a character at a time."""
    words, kind_before = [], ""
    for character in clean(text).lower():
        category = unicodedata.category(character)[0]
        kind = {"L": "word", "M": "word", "N": "word", "P": "mark", "S": "mark"}.get(category, "")
        if kind and kind == kind_before:
            words[-1] += character
        elif kind:
            words.append(character)
        kind_before = kind
    return words


def spaced(text: str) -> str:
    """MetaCLIP's rule."""
    text = f" {text} "
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    for blank in "\t\n\r":
        text = text.replace(blank, " ")
    return text


def test_words_of_parts_texts_as_its_rule_says():
    given = texts(2000, 0)
    words = words_of(given)
    distinct = words.distinct.to_pylist()
    found = [[] for _ in given]
    for text, code in zip(words.text.tolist(), words.code.tolist(), strict=True):
        found[text].append(distinct[code])
    assert found == [naive_words(text) for text in given]
    assert normal_forms(["Dog's  Bed", "b.c."]) == ["dog ' s bed", "b . c ."]


def test_match_equals_a_search_for_each_query_in_each_text():
    given = texts(2000, 1)
    queries = sorted({" ".join(naive_words(text)[:4]) for text in texts(400, 2)} - {""})
    lines = [f" {' '.join(naive_words(text))} " for text in given]
    naive = [
        (i, q) for i, line in enumerate(lines) for q, query in enumerate(queries)
        if f" {query} " in line
    ]  # fmt: skip
    text, query = Trie(queries).match(given)
    assert len(naive) > 5000
    assert list(zip(text.tolist(), query.tolist(), strict=True)) == naive


def test_match_by_metaclips_rule_equals_its_search():
    given = texts(2000, 3)
    queries = sorted({text[:12].strip() for text in texts(400, 4)} | {"etc.", "dog", "st ."} - {""})
    queries = [query for query in queries if query]
    lines = [spaced(text) for text in given]
    naive = [
        (i, q) for i, line in enumerate(lines) for q, query in enumerate(queries)
        if f" {query} " in line
    ]  # fmt: skip
    text, query = Trie(queries, "metaclip").match(given)
    assert len(naive) > 1000
    assert list(zip(text.tolist(), query.tolist(), strict=True)) == naive


@pytest.mark.parametrize("queries", [["dog"], ["a dog"], ["a", "a dog", "a dog 3d"]])
def test_match_of_texts_without_words_and_at_the_last_word(queries):
    trie = Trie(queries)
    assert [len(part) for part in trie.match([])] == [0, 0]
    assert [len(part) for part in trie.match(["", " "])] == [0, 0]
    text, query = trie.match(["a", "dog", "dog a dog", "3d"])
    wanted = {"dog": [1, 2], "a dog": [2], "a": [0, 2]}
    for number, name in enumerate(queries):
        assert text[query == number].tolist() == wanted.get(name, [])


def test_trie_refuses_queries_that_are_one():
    with pytest.raises(ValueError, match=r"queries '.*' and '.*' are the same"):
        Trie([" dog", "Dog"])
    with pytest.raises(ValueError, match=r"query ' ' has no word"):
        Trie(["dog", " "])


def test_hashed_map_finds_what_was_put_in_and_nothing_else():
    rng = np.random.default_rng(0)
    # Multiples of a power of two crowd at few hashes.
    keys = np.unique(np.concatenate([rng.integers(0, 1 << 40, 3000), np.arange(2000) << 40]))
    values = rng.permutation(len(keys))
    found = HashedMap(keys, values).find(np.concatenate([keys, keys + 1]))
    wanted = dict(zip(keys.tolist(), values.tolist(), strict=True))
    assert found.tolist() == [wanted.get(key, -1) for key in [*keys.tolist(), *(keys + 1).tolist()]]
    assert HashedMap(keys[:0], values[:0]).find(keys[:3]).tolist() == [-1, -1, -1]


def test_read_queries_reads_lines_columns_and_json_and_takes_each_once(tmp_path):
    path = str(tmp_path / "q.tsv")
    write_queries(path, [Query("a dog", "word", 3.5), Query("cat", "wordnet")])
    assert read_queries(path).queries == [Query("a dog", "word", 3.5), Query("cat", "wordnet")]
    (tmp_path / "plain.txt").write_text("Dog\n\n dog \n'\r\n")
    listed = read_queries(str(tmp_path / "plain.txt"))
    assert [query.text for query in listed.queries] == ["Dog", "'"]
    assert listed.left_out == 1
    (tmp_path / "m.json").write_text('["dog", "Dog", "dog"]')
    listed = read_queries(str(tmp_path / "m.json"), "metaclip")
    assert [query.text for query in listed.queries] == ["dog", "Dog"]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("q.json", '{"a": 1}', "expected a JSON list of texts"),
        ("q.json", "[", "no JSON"),
        ("q.tsv", "dog\tword\tmany\n", r"q.tsv:1: expected QUERY"),
        ("q.tsv", "\n", "there is none"),
    ],
)
def test_read_queries_says_what_is_wrong(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=why):
        read_queries(str(tmp_path / name))
