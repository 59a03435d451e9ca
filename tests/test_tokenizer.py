"""The tokenizer gives OpenCLIP's ids on every kind of text, from any thread and after a fork."""

from __future__ import annotations

import html
import importlib.util
import os
import random
import subprocess
import sys
import sysconfig
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ftfy
import pytest
import torch

from clipfast.tokenizer import (
    END_OF_TEXT,
    START_OF_TEXT,
    Tokenizer,
    decode,
    tokenize,
    tokenize_with_lengths,
)
from clipfast.tokenizer.bpe import _LONGEST_KEPT_TEXT
from clipfast.tokenizer.characters import split_word
from clipfast.tokenizer.cleaning import clean
from tests.needs import need


def listed(text: str) -> list[str]:
    return text.split()


WORDS = listed(
    "a the photo of cat dog bridge over river at sunset two boats old man who's walking it's "
    "don't they'LL We've I'd you're I'M New York 2024 35mm f/1.8 #sunset @home 50% ($9.99) "
    "semi-detached black & white AT&T R&D <b>bold</b> C++ e.g. U.S.A. x_y ... -- !? "
    "http://example.com/a?b=1&c=2"
)
SPECIALS = listed(
    "<start_of_text> <end_of_text> <|startoftext|> <|endoftext|> <START_of_TEXT> "
    "<End_Of_Text> <\u017ftart_of_text> </w> a</w> <start_of_text <end_of_text>> "
    "<<start_of_text>"
)
ENTITIES = listed(
    "&amp; &lt; &gt; &quot; &#39; &nbsp; &eacute; &EACUTE; &amp;amp; &amp;lt; &amp;#39; "
    "&amp;amp;amp; &#x27; &#0; &#xD800; &#x1F600; &notit; &amp &copy &hellip; &#x345; &#8217; "
    "&ZeroWidthSpace; & &&"
)
FOLDS = listed(
    "'\u017f 'S it'\u017f \u212a K'\u212a \u0130stanbul \u0131 \u03a3\u0391\u03a3 \u1e9e "
    "\ufb06 '\ufb06 \u01c5 \ufb01ne \u00c5 A\u030a e\u0301 \u1fb3 \u03b1\u0345 a\u0345b "
    "!\u0345! 1\u03451 \u1f88 \u2160"
)
QUOTES = listed(
    "\u201cquoted\u201d \u2018it\u2019s\u2019 \u2014 \u2013 \u2026 \u00ab \u00bb \u02bcn"
)
MOJIBAKE = listed(
    "sch\u00c3\u00b6n caf\u00c3\u00a9 \u00e2\u20ac\u0153hi\u00e2\u20ac\u009d it\u00e2\u20ac\u2122s "
    "\u00c2\u00a3 voil\u00c3 \u00c3\u0192\u00c2\u00a9 \u00ef\u00bb\u00bf \u00c2\u00a0 "
    "\u0432\u0402\u201d \u00d0\u00bf\u00d1\u0080"
)
EMOJI = listed(
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd "
    "\U0001f1ee\U0001f1f9 \u2764\ufe0f \U0001f3f4\U000e0067\U000e0062\U000e007f 1\ufe0f\u20e3 "
    "\u2603 \U0001fae8"
)
CONTROLS = [*map(chr, (*range(0x20), *range(0x7F, 0xA1))), "\x1b[31m", "\r\n", "\u2028", "\ufeff"]
SURROGATES = ["\ud800", "\udfff", "\ud83d\ude00", "\ude00\ud83d"]
PARTS = [SPECIALS, ENTITIES, FOLDS, QUOTES, MOJIBAKE, EMOJI, CONTROLS, SURROGATES]


@pytest.fixture(scope="module")
def open_clip_tokenizer():
    """OpenCLIP's tokenizer module alone: its package imports torchvision, which need not work."""
    path = Path(sysconfig.get_paths()["purelib"]) / "open_clip" / "tokenizer.py"
    need("open_clip")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer_alone", path)
    module = importlib.util.module_from_spec(spec)
    # The module sets this on import, which would turn this engine's threads off as well.
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    spec.loader.exec_module(module)
    if before is None:
        del os.environ["TOKENIZERS_PARALLELISM"]
    else:
        os.environ["TOKENIZERS_PARALLELISM"] = before
    return module


@pytest.fixture(scope="module")
def assigned() -> list[str]:
    """Every character of an assigned category but surrogates and private use."""
    return [
        chr(code_point)
        for code_point in range(0x110000)
        if unicodedata.category(chr(code_point)) not in ("Cn", "Co", "Cs")
    ]


def assert_same_ids(texts: list[str], module, context_length: int = 77) -> None:
    ours, theirs = tokenize(texts, context_length), module.tokenize(texts, context_length)
    assert ours.dtype == theirs.dtype == torch.int64
    assert ours.shape == theirs.shape
    wrong = (ours != theirs).any(1).nonzero()[:, 0].tolist()
    assert not wrong, [(ascii(texts[i]), ours[i], theirs[i]) for i in wrong[:3]]


def mixed_texts(count: int, characters: list[str], seed: int) -> list[str]:
    """Captions with each kind of oddity, joined with and without spaces."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        pieces = rng.choices(WORDS, k=rng.randint(0, 12))
        for kind in rng.sample(PARTS, rng.randint(0, 3)):
            pieces += rng.choices(kind, k=rng.randint(1, 3))
        if rng.random() < 0.5:
            pieces += ["".join(rng.choices(characters, k=rng.randint(1, 8)))]
        rng.shuffle(pieces)
        texts.append("".join(piece + rng.choice(("", " ", " ", "  ", "\t")) for piece in pieces))
    return texts


def code_points_in_rows(length: int) -> Iterator[list[str]]:
    """Every code point from 0 to 0x10FFFF but surrogates, assigned or not."""
    for start in range(0, 0x110000, length):
        if not 0xD800 <= start < 0xE000:
            yield list(map(chr, range(start, start + length)))


@pytest.mark.parametrize("count", [5_000, pytest.param(20_000, marks=pytest.mark.thorough)])
def test_tokenize_equals_open_clip_on_mixed_texts(open_clip_tokenizer, assigned, count):
    texts = mixed_texts(7 * count // 10, assigned, seed=0)
    rng = random.Random(1)
    # Within one block of 256 code points: words of one script, as captions have them.
    for _ in range(3 * count // 10):
        start = rng.randrange(len(assigned) - 256)
        block = assigned[start : start + 256]
        words = ("".join(rng.choices(block, k=rng.randint(1, 7))) for _ in range(rng.randint(1, 5)))
        texts.append(" ".join(words))
    assert len(texts) == count
    assert_same_ids(texts, open_clip_tokenizer)


def test_tokenize_equals_open_clip_on_each_assigned_character_alone(open_clip_tokenizer, assigned):
    # The large ideographic blocks, alike in all that the cleaning asks, follow in the next test.
    blocks = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HANGUL SYLLABLE", "TANGUT")
    texts = [c for c in assigned if not unicodedata.name(c, "").startswith(blocks)]
    assert len(texts) > 30_000
    assert_same_ids(texts, open_clip_tokenizer, context_length=24)


@pytest.mark.parametrize(
    "planes",
    [
        pytest.param((0, 1, 2, 3, 14), id="planes_with_assigned_characters"),
        # None of theirs is assigned, and all are treated alike: one row of 16 does.
        pytest.param((*range(4, 14), 15, 16), id="other_planes"),
    ],
)
def test_tokenize_equals_open_clip_on_every_code_point(open_clip_tokenizer, planes):
    rows = code_points_in_rows(64)
    texts = [" ".join(characters) for characters in rows if ord(characters[0]) >> 16 in planes]
    texts = texts if 0 in planes else texts[::16]
    assert_same_ids(texts, open_clip_tokenizer, context_length=400)


@pytest.mark.parametrize(
    "every", [16, pytest.param(1, marks=pytest.mark.thorough)], ids=["a sixteenth", "all"]
)
def test_split_equals_open_clip_on_every_code_point_between_others(open_clip_tokenizer, every):
    expected_split = open_clip_tokenizer._tokenizer.pat.findall
    for characters in code_points_in_rows(1024):
        # White space never gets here, and str.split knows four kinds more than OpenCLIP's pattern.
        inner = [c.lower() for c in characters[::every] if not c.isspace()]
        words = [f"a{c}b1{c}2!{c}?'{c}s" for c in inner]
        pieces = [piece for word in words for piece in split_word(word)]
        assert pieces == expected_split(" ".join(words))
        assert all(split_word(piece) == [piece] for piece in pieces[:: len(pieces) // 50])


def test_tokenize_equals_open_clip_on_contractions_with_any_letter(open_clip_tokenizer, assigned):
    letters = [c for c in assigned if c.isalpha() and unicodedata.category(c) in ("Ll", "Lu", "Lt")]
    texts = [f"x'{c} x'{c}l x'l{c} x'{c}e x'r{c} x'v{c} <{c}tart_of_text>" for c in letters]
    assert_same_ids(texts, open_clip_tokenizer, context_length=96)


@pytest.mark.parametrize("context_length", [1, 2, 3, 8, 77, 300])
def test_tokenize_equals_open_clip_at_each_context_length(open_clip_tokenizer, context_length):
    texts = ["", " ", "cat", "a cat", "a photo of a cat", "x" * 10_000, "a b " * 2_500, "\n\t\r "]
    assert_same_ids(texts, open_clip_tokenizer, context_length)
    assert_same_ids(texts[:1], open_clip_tokenizer, context_length)


def test_tokenize_repeats_itself_and_takes_a_single_string(open_clip_tokenizer):
    for part in PARTS:
        for text in part:
            assert torch.equal(tokenize(text), open_clip_tokenizer.tokenize(text)), ascii(text)
            assert torch.equal(tokenize([text, text])[1:], tokenize(text)), ascii(text)


def test_tokenize_with_lengths_counts_up_to_the_end_of_text():
    texts = ["", "a photo of a cat", "cat " * 200]
    tokens, lengths = tokenize_with_lengths(texts, 20)
    assert lengths.tolist() == [2, 7, 20]
    assert lengths.dtype == torch.int64
    assert tokens[:, 0].tolist() == [START_OF_TEXT] * 3
    assert tokens.gather(1, lengths[:, None] - 1)[:, 0].tolist() == [END_OF_TEXT] * 3
    padding = torch.arange(20) >= lengths[:, None]
    assert not tokens[padding].any()
    assert torch.equal(tokens, tokenize(texts, 20))


def test_tokenize_takes_an_empty_list(open_clip_tokenizer):
    tokens, lengths = tokenize_with_lengths([])
    assert tokens.shape == open_clip_tokenizer.tokenize([]).shape == (0, 77)
    assert lengths.shape == (0,)


def test_tokenize_refuses_what_is_no_text():
    with pytest.raises(TypeError, match="got bytes at index 1"):
        tokenize(["a cat", b"a dog"])
    with pytest.raises(TypeError, match="got NoneType at index 0"):
        tokenize([None])
    with pytest.raises(ValueError, match="at least 1; got 0"):
        tokenize("a cat", 0)
    with pytest.raises(ValueError, match="max_entries must be at least 0"):
        Tokenizer(max_entries=-1)


def test_decode_equals_open_clip(open_clip_tokenizer, assigned):
    for text in mixed_texts(500, assigned, seed=2):
        row = tokenize(text)[0]
        expected = open_clip_tokenizer.decode(row)
        assert decode(row) == decode(row.tolist()) == decode(row.numpy()) == expected
    every_id = torch.arange(49_408)
    assert decode(every_id) == open_clip_tokenizer.decode(every_id)
    assert decode([]) == ""


@pytest.mark.parametrize("ids", [[-1], [49_408], [[320, 2368]], [1.5]])
def test_decode_refuses_what_is_no_row_of_ids(ids):
    with pytest.raises(ValueError, match="one row of integers from 0 to 49407"):
        decode(ids)


def test_clean_equals_ftfy_and_unescape_on_both_sides_of_the_fast_path(assigned):
    texts = mixed_texts(3_000, assigned, seed=3)
    texts += [f"photo{character}of {character} cat" for character in assigned[:3_000]]
    texts += [f"{first}{second}" for first in MOJIBAKE for second in QUOTES + ENTITIES + EMOJI]
    changed = 0
    for text in texts:
        expected = html.unescape(html.unescape(ftfy.fix_text(text)))
        assert clean(text).split() == expected.split(), ascii(text)
        changed += expected != text
    assert 1_000 < changed < len(texts) - 1_000


def test_tokenizer_table_stays_bounded_and_exact(assigned):
    small, none = Tokenizer(max_entries=64), Tokenizer(max_entries=0)
    long_word = "z" * (_LONGEST_KEPT_TEXT + 1)
    texts = [*mixed_texts(300, assigned, seed=4), long_word]
    for start in range(0, len(texts), 7):
        batch = texts[start : start + 7]
        expected = tokenize(batch)
        assert torch.equal(small.tokenize(batch)[0], expected)
        assert torch.equal(none.tokenize(batch)[0], expected)
        assert len(small._table) <= 64
    assert none.encode("<start_of_text>") == [START_OF_TEXT]
    assert long_word not in small._table


def test_encode_is_the_row_without_start_and_end():
    tokens, lengths = tokenize_with_lengths("a photo of a cat")
    assert Tokenizer().encode("a photo of a cat") == tokens[0, 1 : lengths[0] - 1].tolist()
    assert Tokenizer().encode("") == []


def test_tokenize_from_eight_threads_equals_one(assigned):
    texts = mixed_texts(4_000, assigned, seed=5)
    batches = [texts[start : start + 50] for start in range(0, len(texts), 50)]
    expected = [tokenize(batch) for batch in batches]
    # A small table is replaced again and again while the other threads read it.
    shared = Tokenizer(max_entries=200)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            got = list(pool.map(lambda batch: shared.tokenize(batch)[0], batches))
            assert all(map(torch.equal, got, expected))


FORK_SCRIPT = """
import os
from clipfast.tokenizer import tokenize
words = [f"word{i} another{i}" for i in range(2000)]
expected = tokenize(words[:1000])
child = os.fork()
if child == 0:
    same = tokenize(words[:1000]).equal(expected) and tokenize(words)[1000:].shape == (1000, 77)
    os._exit(0 if same and os.environ["TOKENIZERS_PARALLELISM"] == "false" else 1)
assert "TOKENIZERS_PARALLELISM" not in os.environ
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

LIGHT_SCRIPT = """
import sys
sys.modules["{missing}"] = None
import clipfast.tokenizer
heavy = {{"torch", "tokenizers", "ftfy", "regex"}} & {{m for m in sys.modules if sys.modules[m]}}
assert not heavy, heavy
try:
    clipfast.tokenizer.tokenize("caf\u00e9")
except ImportError as error:
    assert "pip install 'clipfast[train]'" in str(error), error
else:
    raise SystemExit("no ImportError")
"""


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=Path(__file__).parents[1],
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_tokenize_works_in_a_forked_child_without_a_warning():
    result = run_script(FORK_SCRIPT)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize("missing", ["tokenizers", "ftfy"])
def test_import_is_light_and_a_missing_package_is_named(missing):
    result = run_script(LIGHT_SCRIPT.format(missing=missing))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("texts", [None, 5, b"a cat", {"a cat": 1}, {"a cat"}, ["a cat", None]])
def test_tokenize_refuses_what_is_no_text_and_what_has_no_order(texts):
    with pytest.raises(TypeError, match="texts must be a string or strings"):
        tokenize(texts)


@pytest.mark.parametrize("length", [77.0, "77", None, True])
def test_tokenize_refuses_a_length_that_is_no_whole_number(length):
    with pytest.raises(TypeError, match="context_length must be a whole number"):
        tokenize("a cat", length)
