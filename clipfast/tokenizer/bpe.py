"""CLIP's byte-pair encoding: a table of words in front of the Rust engine of ``tokenizers``.

No piece of CLIP's split spans white space, so the ids of a caption are the ids of its words in a
row. Each word is encoded once, by the Rust engine, and kept as packed 16-bit ids; a caption then
costs one dictionary look-up per word and one ``bytes.join``, instead of a regular expression over
the caption, an ``Encoding`` object and a Python integer per token. Legend: B captions, L context
length.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from clipfast.arguments import shown, whole_number
from clipfast.tokenizer.characters import split_word
from clipfast.tokenizer.cleaning import clean
from clipfast.tokenizer.vocabulary import (
    END_OF_TEXT,
    END_OF_WORD,
    SPECIAL_TOKENS,
    START_OF_TEXT,
    VOCABULARY_SIZE,
    build_vocabulary,
    read_merges,
    token_bytes,
)

if TYPE_CHECKING:
    import tokenizers
    import torch

CONTEXT_LENGTH = 77

# "H" is an unsigned 16-bit integer, enough for 49,408 ids.
_ID_TYPE = "H"
_ID_BYTES = 2
_PACKED_SPECIALS = {
    token: array(_ID_TYPE, [token_id]).tobytes() for token, token_id in SPECIAL_TOKENS.items()
}

# Longer ones are sentences of scripts without spaces, or addresses; they do not come back.
_LONGEST_KEPT_TEXT = 48


# Below this, waking the engine's threads costs more than they save, above all on cores that are
# busy decoding images.
_FEWEST_FOR_THREADS = 256


class Tokenizer:
    """Text to CLIP's token ids, identical to OpenCLIP's ``SimpleTokenizer`` with default cleaning.

    Safe to call from several threads; while the Rust engine encodes many new words at once, it uses
    threads of its own and the interpreter lock is free. A forked child goes on with the table it
    inherits and encodes new words on one thread.

    Args:
        max_entries: Words and pieces kept; about 200 bytes each. A full table is dropped and
            refilled, which costs less than keeping track of use: common words are back after a
            few captions.
    """

    def __init__(self, max_entries: int = 1 << 18) -> None:
        self._max_entries = whole_number("max_entries", max_entries, 0)
        self._engine = _build_engine()
        # OpenCLIP gives text that spells out a special token that token's id.
        self._table = dict(_PACKED_SPECIALS)

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text, without start, end, padding or truncation.

        Args:
            text: Any string.

        Returns:
            Token ids, empty for an empty text.
        """
        return array(_ID_TYPE, self._encode_rows([text])[0]).tolist()

    def tokenize(
        self, texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return padded ids and lengths; see `clipfast.tokenizer.tokenize_with_lengths`."""
        import torch

        context_length = whole_number("context_length", context_length, 1)
        if not isinstance(texts, Iterable) or isinstance(texts, bytes | Mapping | Set):
            raise TypeError(f"texts must be a string or strings in an order, got {shown(texts)}")
        rows = self._encode_rows([texts] if isinstance(texts, str) else texts)
        room = max(context_length - 2, 0)
        counts_B = np.fromiter(map(len, rows), np.int64, len(rows)) // _ID_BYTES
        if counts_B.size and counts_B.max() > room:
            rows = [row[: room * _ID_BYTES] for row in rows]
            counts_B = np.minimum(counts_B, room)
        lengths_B = np.minimum(counts_B + 2, context_length)

        tokens_BL = np.zeros((len(rows), context_length), np.int64)
        body_BL = tokens_BL[:, 1 : 1 + room]
        body_BL[np.arange(room) < counts_B[:, None]] = np.frombuffer(b"".join(rows), _ID_TYPE)
        tokens_BL[:, 0] = START_OF_TEXT
        # Last, so that a context of one token holds the end, as in OpenCLIP.
        tokens_BL[np.arange(len(rows)), lengths_B - 1] = END_OF_TEXT
        return torch.from_numpy(tokens_BL), torch.from_numpy(lengths_B)

    def _encode_rows(self, texts: Iterable[str]) -> list[bytes]:
        """Return the packed ids of each text."""
        # Bound once: another thread may replace a full table, and this one stays complete.
        known = self._table
        rows: list[bytes] = []
        incomplete: list[tuple[int, list[str]]] = []
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(
                    f"texts must be a string or strings, got {type(text).__name__} at index {index}"
                )
            words = clean(text).lower().split()
            try:
                rows.append(b"".join(map(known.__getitem__, words)))
            except KeyError:
                rows.append(b"")
                incomplete.append((index, words))
        if incomplete:
            fresh = self._encode_words(
                {word for _, words in incomplete for word in words if word not in known}, known
            )
            for index, words in incomplete:
                rows[index] = b"".join([known.get(word) or fresh.get(word, b"") for word in words])
        return rows

    def _encode_words(self, words: set[str], known: dict[str, bytes]) -> dict[str, bytes]:
        """Return the packed ids of new words, and keep them and their pieces in the table.

        Words and pieces share the table: a word that equals a piece splits into just that piece.
        Most new words are known pieces with other punctuation around them.
        """
        pieces_of = {word: split_word(word) for word in words}
        found = {piece: known.get(piece) for pieces in pieces_of.values() for piece in pieces}
        fresh = {piece: ids for piece, ids in found.items() if ids is not None}
        unknown = [piece for piece in found if piece not in fresh]
        if len(unknown) < _FEWEST_FOR_THREADS:
            encodings = [self._engine.encode(piece, add_special_tokens=False) for piece in unknown]
        else:
            encodings = self._engine.encode_batch_fast(unknown, add_special_tokens=False)
        for piece, encoding in zip(unknown, encodings, strict=True):
            fresh[piece] = array(_ID_TYPE, encoding.ids).tobytes()
        for word, pieces in pieces_of.items():
            fresh[word] = b"".join([fresh[piece] for piece in pieces])
        self._keep(fresh)
        return fresh

    def _keep(self, entries: dict[str, bytes]) -> None:
        kept = {text: ids for text, ids in entries.items() if len(text) <= _LONGEST_KEPT_TEXT}
        if len(self._table) + len(kept) > self._max_entries:
            self._table = dict(_PACKED_SPECIALS)
        if len(self._table) + len(kept) <= self._max_entries:
            self._table.update(kept)


def _build_engine() -> tokenizers.Tokenizer:
    """Build the Rust engine, which takes one piece of the split at a time."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers
    except ImportError as error:
        raise ImportError(
            "the tokenizer needs the tokenizers package, which is not installed; "
            "run: pip install 'clipfast[train]'"
        ) from error
    engine = Tokenizer(
        models.BPE(vocab=build_vocabulary(), merges=read_merges(), end_of_word_suffix=END_OF_WORD)
    )
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return engine


def decode_ids(ids: Iterable[int] | torch.Tensor) -> str:
    """Return the text of ids; see `clipfast.tokenizer.decode`."""
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if any(not isinstance(i, int) or not 0 <= i < VOCABULARY_SIZE for i in ids):
        raise ValueError(
            f"ids must be one row of integers from 0 to {VOCABULARY_SIZE - 1}; "
            "decode a batch row by row"
        )
    table = token_bytes()
    text = b"".join([table[i] for i in ids]).decode("utf-8", errors="replace")
    return text.replace(END_OF_WORD, " ")


# The engine's threads do not survive a fork: a child that used them would hang. tokenizers
# therefore turns them off in the child, but prints a warning unless this variable is set at that
# moment.
_PARALLELISM = "TOKENIZERS_PARALLELISM"
_parallelism_in_parent: str | None = None


def _before_fork() -> None:
    global _parallelism_in_parent
    _parallelism_in_parent = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"


def _after_fork_in_parent() -> None:
    if _parallelism_in_parent is None:
        os.environ.pop(_PARALLELISM, None)
    else:
        os.environ[_PARALLELISM] = _parallelism_in_parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
