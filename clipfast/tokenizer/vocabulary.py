"""CLIP's vocabulary: 256 byte symbols, the same 256 at a word's end, 48,894 merges, 2 specials.

Byte-pair encoding works on characters, text arrives as UTF-8 bytes; so each byte stands for one
visible character, itself where it prints in Latin-1 and else one from U+0100 on. ``</w>`` marks the
last symbol of a word. Source: Radford et al. 2021, section 2.4, and its published merges file.
"""

from __future__ import annotations

import functools
import gzip
from importlib import resources

VOCABULARY_SIZE = 49_408
START_OF_TEXT = 49_406
END_OF_TEXT = 49_407
SPECIAL_TOKENS = {"<start_of_text>": START_OF_TEXT, "<end_of_text>": END_OF_TEXT}
END_OF_WORD = "</w>"

_MERGE_COUNT = VOCABULARY_SIZE - 2 * 256 - len(SPECIAL_TOKENS)


def byte_symbols() -> dict[int, str]:
    """Return the character that stands for each byte, in the order of the vocabulary's ids."""
    symbols = {
        byte: chr(byte) for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    }
    unprintable = [byte for byte in range(256) if byte not in symbols]
    symbols.update({byte: chr(256 + rank) for rank, byte in enumerate(unprintable)})
    return symbols


@functools.cache
def read_merges() -> list[tuple[str, str]]:
    """Return the merges in order of rank; the file's first line is a header, its tail unused."""
    packed = resources.files("clipfast").joinpath("assets/bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")
    merges = []
    for line in lines[1 : 1 + _MERGE_COUNT]:
        left, right = line.split()
        merges.append((left, right))
    return merges


def build_vocabulary() -> dict[str, int]:
    """Return the id of each token's string, 49,408 of them, ids without gaps."""
    symbols = list(byte_symbols().values())
    tokens = [
        *symbols,
        *(symbol + END_OF_WORD for symbol in symbols),
        *(left + right for left, right in read_merges()),
        *SPECIAL_TOKENS,
    ]
    return {token: token_id for token_id, token in enumerate(tokens)}


@functools.cache
def token_bytes() -> list[bytes]:
    """Return the UTF-8 bytes of each id, ``</w>`` spelt out, for decoding."""
    byte_of = {symbol: byte for byte, symbol in byte_symbols().items()}
    return [bytes(byte_of[symbol] for symbol in token) for token in build_vocabulary()]
