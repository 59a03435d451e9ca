"""match, balance and select: against few lines of Python, for any split and any order."""

import hashlib
import io
import json
import math
import random
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clipfast.curate import main
from clipfast.curate.balance.draw import chances, draws
from clipfast.curate.engine import read_table as read_part
from clipfast.curate.select.combine import combine
from clipfast.curate.text.matchfolder import read_match_folder
from clipfast.data.selection import Selection, choose, read_selection, write_selection
from clipfast.data.shards import read_table
from tests.curate.shards import captioned, make_shard, png

pytestmark = pytest.mark.needs("pyarrow", "ftfy")

WORDS = [f"w{i}" for i in range(40)]
QUERIES = [*WORDS[:30], "w0 w1", "w1 w0 w2"]


def written(seed: int, count: int) -> list[str]:
    """Captions whose words are as uneven as words are."""
    rng = random.Random(seed)
    weights = [1 / (i + 1) for i in range(len(WORDS))]
    return [" ".join(rng.choices(WORDS, weights, k=rng.randint(0, 6))) for _ in range(count)]


def reference(captions: dict[str, list[str]], at_most: int, seed: int) -> dict[str, list[int]]:
    """MetaCLIP's balance with one draw a pair: p_q = min(1, t / c_q), and a pair stays with the
    chance that one of its queries takes it."""
    held = {
        name: [[q for q in QUERIES if f" {q} " in f" {text} "] for text in texts]
        for name, texts in captions.items()
    }
    counts = Counter(q for texts in held.values() for queries in texts for q in queries)
    kept = {}
    for name, texts in held.items():
        kept[name] = []
        for row, queries in enumerate(texts):
            missed = math.prod(1 - min(1, at_most / counts[q]) for q in queries)
            digest = hashlib.blake2b(f"{seed}\n{name}\nk{row:05d}\n0".encode(), digest_size=8)
            if int.from_bytes(digest.digest(), "little") / 2**64 < 1 - missed:
                kept[name].append(row)
    return kept


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three shards of 400 pairs, and their captions."""
    folder = tmp_path_factory.mktemp("shards")
    captions = {f"{i}.tar": written(i, 400) for i in range(3)}
    for name, texts in captions.items():
        captioned(folder / name, texts)
    (folder / "queries.txt").write_text("\n".join(QUERIES))
    return folder, captions


def curate(*words: object) -> None:
    alone = ["--workers", "1"] if words[0] == "balance" else []
    assert main([*map(str, words), *alone]) == 0


def matched(shards: Path, out: Path, *names: str, workers: int = 1) -> Path:
    paths = [shards / name for name in names]
    queries = shards / "queries.txt"
    curate("match", *paths, "--queries", queries, "--out", out, "--workers", workers)
    return out


def kept(path: Path) -> dict[str, list[int]]:
    return {choice.shard: choice.rows().tolist() for choice in read_selection(str(path)).choices}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.parquet"))
    }


def test_balance_equals_the_reference_whatever_the_split_order_and_workers(
    shards, tmp_path, capsys
):
    folder, captions = shards
    all_names = ("0.tar", "1.tar", "2.tar")
    at_once = matched(folder, tmp_path / "a", *all_names)
    # First one, then the others in another order on two processes: it is not made again.
    split = matched(folder, tmp_path / "b", "2.tar")
    matched(folder, split, "1.tar", "0.tar", "2.tar", workers=2)
    for name in ("a", "b"):
        out = tmp_path / f"{name}.parquet"
        curate("balance", tmp_path / name, "--at-most", 20, "--seed", 7, "--out", out)
    assert kept(tmp_path / "a.parquet") == reference(captions, 20, 7)
    assert files(at_once) == files(split)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    printed = capsys.readouterr().out
    texts = [text for part in captions.values() for text in part]
    counts = [sum(f" {q} " in f" {text} " for text in texts) for q in QUERIES]
    head = [count for count in counts if count > 20]
    assert 5 < len(head) < len(counts)
    assert f"head: {len(head)} queries of more than 20 pairs, {sum(head):,} matches" in printed
    tail = f"{sum(counts) - sum(head):,}"
    # What is rare stays whole.
    assert f"{tail} matches before, {tail} after" in printed


def test_balance_of_another_seed_is_another_one_and_counts_what_a_selection_keeps(shards, tmp_path):
    folder, captions = shards
    matches = matched(folder, tmp_path / "m", "0.tar", "1.tar")
    for seed in (0, 1):
        out = tmp_path / f"{seed}.parquet"
        curate("balance", matches, "--at-most", 10, "--seed", seed, "--out", out)
    assert kept(tmp_path / "0.parquet") != kept(tmp_path / "1.parquet")
    # Pairs that a selection leaves out neither count nor stay: the result is that of the others.
    curate("balance", matched(folder, tmp_path / "n", "1.tar"), "--at-most", 10, "--out",
           tmp_path / "one.parquet")  # fmt: skip
    curate("select", tmp_path / "one.parquet", "--out", tmp_path / "one-again.parquet")
    table = read_table(str(folder / "1.tar"))
    choice = read_selection(str(tmp_path / "one.parquet")).choices[0]
    whole = choose("1.tar", len(table), choice.mark, np.arange(len(table)))
    write_selection(str(tmp_path / "whole.parquet"), [whole])
    curate("balance", matches, "--at-most", 10, "--select", tmp_path / "whole.parquet", "--out",
           tmp_path / "within.parquet")  # fmt: skip
    wanted = reference({"1.tar": captions["1.tar"]}, 10, 0)
    assert kept(tmp_path / "one.parquet") == kept(tmp_path / "one-again.parquet") == wanted
    assert kept(tmp_path / "within.parquet") == {"0.tar": [], **wanted}


def test_chances_are_those_of_independent_draws():
    row, query = np.array([0, 0, 2, 3, 3]), np.array([0, 1, 1, 1, 2])
    taken = np.array([0.5, 0.25, 1.0])
    assert chances(row, query, 5, taken) == pytest.approx([1 - 0.5 * 0.75, 0, 0.25, 1, 0])
    assert chances(row, query, 5, taken, "rarest").tolist() == [0.5, 0, 0.25, 1, 0]
    with pytest.raises(ValueError, match="there are any, rarest"):
        chances(row, query, 5, taken, "all")


def test_draws_are_even_and_belong_to_a_name():
    keys = [f"{i:09d}" for i in range(20_000)]
    numbers = draws(3, "00000.tar", keys)
    assert 0 <= numbers.min() <= numbers.max() < 1
    # The largest gap between their distribution and the even one, 1.36 / sqrt(n) at 5%.
    gap = np.abs(np.sort(numbers) - np.arange(20_000) / 20_000).max()
    assert gap < 1.36 / math.sqrt(20_000)
    assert (draws(3, "00000.tar", keys[5:6]) == numbers[5:6]).all()
    assert (draws(3, "00001.tar", keys) != numbers).all()
    assert (draws(4, "00000.tar", keys) != numbers).all()
    twice = draws(3, "00000.tar", ["a", "a", "a\n0"])
    assert len(set(twice.tolist())) == 3


def selections() -> list[Selection]:
    mark = "0" * 16
    return [
        Selection([choose("a.tar", 11, mark, [0, 1, 9]), choose("b.tar", 3, mark, [2])]),
        Selection([choose("a.tar", 11, mark, [1, 2, 9])]),
        Selection([choose("a.tar", 11, mark, [9]), choose("c.tar", 2, mark, [0])]),
    ]


def rows(choices) -> dict[str, list[int]]:
    return {choice.shard: choice.rows().tolist() for choice in choices}


def test_combine_is_and_or_and_without():
    one, two, three = selections()
    assert rows(combine([one, two])) == {"a.tar": [1, 9], "b.tar": []}
    assert rows(combine([one, two], any_of=True)) == {"a.tar": [0, 1, 2, 9], "b.tar": [2]}
    assert rows(combine([one], [three])) == {"a.tar": [0, 1], "b.tar": [2]}
    other = Selection([choose("a.tar", 12, "1" * 16, [3])])
    with pytest.raises(ValueError, match=r"made of another index of a\.tar"):
        combine([one, other])


def test_match_refuses_shards_of_one_name_and_index(shards, tmp_path, capsys):
    folder, _ = shards
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "0.tar").write_bytes((folder / "0.tar").read_bytes())
    queries = str(folder / "queries.txt")
    options = [str(folder / "0.tar"), str(copy / "0.tar"), "--queries", queries]
    assert main(["match", *options, "--out", str(tmp_path / "m")]) == 1
    assert "have one name and one index" in capsys.readouterr().err


def test_match_makes_a_shard_anew_that_has_changed(tmp_path, capsys):
    path = tmp_path / "0.tar"
    (tmp_path / "q.txt").write_text("dog\ncat")
    for key, caption in (("a", "a dog"), ("b", "a cat and a dog")):
        make_shard(path, [(key, caption, png())])
        options = ["match", str(path), "--queries", str(tmp_path / "q.txt")]
        assert main([*options, "--out", str(tmp_path / "m"), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "hold 1 queries" in printed
    assert "hold 2 queries" in printed


def test_match_looks_through_all_captions_of_a_sample(tmp_path, capsys):
    path = tmp_path / "0.tar"
    texts = [{"alt": ["a dog", "a dog and a cat"]}, {"alt": "a cat"}, {"alt": 3}, {"alt": "a mat"}]
    with tarfile.open(path, "w") as tar:
        for key, text in enumerate(texts):
            for name, data in (("png", png()), ("json", json.dumps(text).encode())):
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (tmp_path / "q.txt").write_text("cat\ndog")
    options = ["--queries", str(tmp_path / "q.txt"), "--out", str(tmp_path / "m")]
    options += ["--captions", "json:alt", "--workers", "1"]
    assert main(["match", str(path), *options]) == 0
    assert "2 pairs (50.0%) hold 3 queries, 2 different ones" in capsys.readouterr().out
    (matched,) = read_match_folder(str(tmp_path / "m")).matched
    table = read_part(matched.path)
    assert table["row"].to_pylist() == [0, 0, 1]
    assert table["query"].to_pylist() == [0, 1, 0]


def test_report_says_what_a_selection_keeps(shards, tmp_path):
    folder, captions = shards
    matches = matched(folder, tmp_path / "m", "0.tar", "1.tar")
    balanced = tmp_path / "b.parquet"
    curate("balance", matches, "--at-most", 10, "--out", balanced)
    curate("report", matches, "--select", balanced, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    kept_pairs = {name: len(rows) for name, rows in kept(balanced).items()}
    assert f"keeps {sum(kept_pairs.values())} of 800 pairs" in page
    for name, count in kept_pairs.items():
        row = page[page.index(f">{name}</th>") :]
        assert f">{count}</td>" in row[: row.index("</tr>")]
    texts = [f" {text} " for name in ("0.tar", "1.tar") for text in captions[name]]
    before = sum(" w0 " in text for text in texts)
    row = page[page.index(">w0</th>") :]
    assert f">{before}</td>" in row[: row.index("</tr>")]
    assert "<script src" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_balance_wants_matches_that_are_whole(tmp_path, capsys):
    assert main(["balance", str(tmp_path), "--out", str(tmp_path / "b.parquet")]) == 1
    assert "is no folder of matches: there is no match.json" in capsys.readouterr().err
