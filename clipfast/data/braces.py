"""Brace lists and ranges in the names of shards, as a shell reads them."""

import re

# A range beyond this is a mistyped number, and a list of its names would fill the memory.
_MOST_SHARDS = 5_000_000
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})(?:\.\.([0-9]{1,18}))?")


def _split_braces(pattern: str) -> tuple[str, str, str] | None:
    """Cut `pattern` around its first balanced brace group; None when it has none."""
    start = pattern.find("{")
    if start < 0:
        if "}" in pattern:
            raise ValueError(f"shard pattern {pattern!r} has a '}}' without its '{{'")
        return None
    depth = 0
    for i in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[i], 0)
        if depth == 0:
            return pattern[:start], pattern[start + 1 : i], pattern[i + 1 :]
    raise ValueError(f"shard pattern {pattern!r} has a '{{' without its '}}'")


def _split_commas(body: str) -> list[str]:
    """Split at the commas that are outside nested braces."""
    parts, depth, last = [], 0, 0
    for i, char in enumerate(body):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append(body[last:i])
            last = i + 1
    return [*parts, body[last:]]


def expand_braces(pattern: str) -> list[str]:
    """All strings that the brace lists and ranges of a pattern stand for, in the order written.

    Args:
        pattern: with any number of ``{00000..41407}`` or ``{a,b}``, nested too.

    Raises:
        ValueError: a brace is alone, or what it holds is neither a range nor a list.
    """
    cut = _split_braces(pattern)
    if cut is None:
        return [pattern]
    head, body, tail = cut
    options = _split_commas(body)
    if len(options) == 1:
        options = _numbers(pattern, body)
    else:
        options = [text for option in options for text in expand_braces(option)]
    tails = expand_braces(tail)
    _refuse_many(pattern, len(options) * len(tails))
    return [head + option + end for option in options for end in tails]


def _numbers(pattern: str, body: str) -> list[str]:
    """The numbers of a range such as ``00000..00099`` or ``0..99..2``, padded as they are there."""
    number_range = _RANGE.fullmatch(body)
    if number_range is None:
        raise ValueError(
            f"shard pattern {pattern!r}: '{{{body}}}' is neither a range such as "
            "{00000..00099} nor a list such as {a,b}"
        )
    first, last, step = number_range.groups()
    if step is not None and int(step) == 0:
        raise ValueError(f"shard pattern {pattern!r}: the range '{{{body}}}' has a step of 0")
    padded = any(len(text) > 1 and text[0] == "0" for text in (first, last))
    width = max(len(first), len(last)) if padded else 0
    low, high, stride = int(first), int(last), int(step or 1)
    _refuse_many(pattern, abs(high - low) // stride + 1)
    numbers = range(low, high + 1, stride) if low <= high else range(low, high - 1, -stride)
    return [f"{number:0{width}d}" for number in numbers]


def _refuse_many(pattern: str, count: int) -> None:
    if count > _MOST_SHARDS:
        raise ValueError(
            f"shard pattern {pattern!r} names {count:,} shards, more than {_MOST_SHARDS:,}: "
            "correct its range"
        )
