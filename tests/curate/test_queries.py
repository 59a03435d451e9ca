"""clipfast.curate.queries: counts, pointwise mutual information, titles, WordNet, and the list."""

import gzip
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clipfast.curate import main
from clipfast.curate.engine import run
from clipfast.curate.engine.parts import arrow
from clipfast.curate.queries.collect import collect
from clipfast.curate.queries.corpus import pieces_of
from clipfast.curate.queries.counts import WordCounts, added_parts
from clipfast.curate.queries.sources import (
    WORDNET,
    telling_bigrams,
    viewed_titles,
    wordnet_lemmas,
)
from clipfast.curate.text.queryfile import read_queries

pytestmark = pytest.mark.needs("pyarrow", "ftfy")

CORPUS = [
    "New York is a city. A dog is in New York!",
    "",
    "The dog -- a black dog -- is old",
    "new york, NEW YORK; york new",
    "über-dog 7",
]
WORDS = (
    "new york is a city . a dog is in new york ! the dog -- a black dog -- is old "
    "new york , new york ; york new über - dog 7"
)
SYNSETS = (
    "  1 a licence\n"
    "00001740 03 n 02 entity 0 physical_entity 0 001 ~ 00001930 n 0000 | that which is\n"
    "00002137 03 n 01 U.S._Army 0 000 | an army\n"
)


def counted(pieces, folder: Path) -> dict[str, int]:
    table = added_parts(run(WordCounts(), pieces, str(folder), workers=1))
    assert table["word"].to_pylist() == sorted(table["word"].to_pylist())
    return dict(zip(table["word"].to_pylist(), table["count"].to_pylist(), strict=True))


@pytest.fixture
def wordnet(tmp_path):
    folder = tmp_path / "wordnet"
    folder.mkdir()
    (folder / "data.noun").write_text(SYNSETS)
    for part in ("verb", "adv"):
        (folder / f"data.{part}").write_text("")
    (folder / "data.adj").write_bytes(b"00001740 00 a 0a " + b"caf\xe9(a) 0 " * 10 + b"000 | x\n")
    return folder


@pytest.mark.parametrize("end", ["\n", ""])
def test_pieces_of_any_size_hold_each_line_once(tmp_path, end):
    path = tmp_path / "corpus.txt"
    lines = [*CORPUS, "x" * 200, *CORPUS, "é"]
    path.write_text("\n".join(lines) + end)
    for size in (1, 2, 7, 41, 10_000):
        pieces = pieces_of([str(path)], size)
        assert [line for piece in pieces for line in piece.lines()] == lines, size


def test_counts_are_those_of_a_counter_for_any_split(tmp_path):
    words = WORDS.split()
    plain, packed = tmp_path / "c.txt", tmp_path / "c.txt.gz"
    plain.write_text("\n".join(CORPUS))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for size in (9, 10_000):
        assert counted(pieces_of([str(plain)], size), tmp_path / str(size)) == Counter(words)
    assert counted(pieces_of([str(packed)]), tmp_path / "gz") == Counter(words)
    both = counted(pieces_of([str(tmp_path / "c.txt*")]), tmp_path / "both")
    assert both == Counter(words * 2)
    with pytest.raises(FileNotFoundError, match=r"no text file .*none\*"):
        pieces_of([str(tmp_path / "none*")])


def test_telling_bigrams_are_those_of_the_equation():
    table = arrow().table({"first": [0, 1, 2], "second": [1, 0, 2], "count": [6, 2, 9]})
    words, counts = ["new", "york", "the"], np.array([8, 8, 90])
    (found,) = telling_bigrams(words, counts, 1000, table, least=3, least_pmi=5.0)
    assert found[0] == "new york"
    assert found[1] == pytest.approx(math.log2(6 * 1000 / (8 * 8)))
    assert len(telling_bigrams(words, counts, 1000, table, least=1, least_pmi=0.0)) == 3


def test_viewed_titles_adds_views_and_names_a_line_of_another_form(tmp_path):
    path = tmp_path / "titles.tsv"
    path.write_text("New_York\t60\nDog\t10\nNew York\t11\n\n")
    assert viewed_titles(str(path), 70) == [("New York", 71)]
    path.write_text("Dog\t10\nCat ten\n")
    with pytest.raises(ValueError, match=r"titles.tsv:2: expected TITLE<TAB>VIEWS, got 'Cat ten'"):
        viewed_titles(str(path), 1)


def test_wordnet_lemmas_reads_synsets(wordnet):
    found = {lemma for lemma, _ in wordnet_lemmas(str(wordnet))}
    assert found == {"entity", "physical entity", "U.S. Army", "café"}
    with pytest.raises(FileNotFoundError, match="apt-get install wordnet-base"):
        wordnet_lemmas(str(wordnet / "none"))
    (wordnet / "data.verb").write_text("00001740 29 v zz breathe\n")
    with pytest.raises(ValueError, match=r"data.verb:1: no line of a synset"):
        wordnet_lemmas(str(wordnet))


@pytest.mark.needs("wordnet")
def test_wordnet_of_debian_has_its_words():
    lemmas = {lemma for lemma, _ in wordnet_lemmas(WORDNET)}
    # 147,306 in wnstats(7), where letters of two cases are one.
    assert len({lemma.lower() for lemma in lemmas}) == 147_306
    assert {"domestic dog", "black-and-white"} <= lemmas


def test_collect_orders_by_number_then_text_and_takes_each_once():
    sources = {
        "word": [("b", 1.0), ("a", 1.0), ("c", 2.0), ("!", 9.0)],
        "wordnet": [("A", 0.0), ("d-e", 0.0), ("d - E", 0.0)],
    }
    found = [(query.text, query.source) for query in collect(sources)]
    words = [("c", "word"), ("a", "word"), ("b", "word")]
    assert found == [*words, ("d - e", "wordnet")]
    assert [query.text for query in collect(sources, 2)] == ["c", "a"]


def test_queries_command_takes_the_sources_in_order(tmp_path, wordnet, capsys):
    for place in range(3):
        (tmp_path / f"corpus{place}.txt").write_text("\n".join(CORPUS))
    (tmp_path / "titles.tsv").write_text("Black dog\t900\n")
    options = ["queries", "--corpus", str(tmp_path / "corpus*.txt"), "--min-count", "6"]
    options += ["--min-bigrams", "6", "--min-pmi", "2.4", "--wordnet", str(wordnet)]
    options += ["--titles", str(tmp_path / "titles.tsv")]
    out = str(tmp_path / "q.tsv")
    assert main([*options, "--out", out, "--workers", "1"]) == 0
    assert "11 queries" in capsys.readouterr().out
    queries = read_queries(out).queries
    assert [query.text for query in queries] == [
        *("new", "york", "dog", "a", "is"),  # 15, 15, 12, 9, 9 of 102 words
        "new york",  # 12 times: log2(12 x 102 / (15 x 15)) = 2.4
        *("black dog", "café", "entity", "physical entity", "u . s . army"),
    ]
    assert main(["queries", "--out", out]) == 1
    assert "give --corpus, --titles or --wordnet" in capsys.readouterr().err
