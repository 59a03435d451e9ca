"""Write the table of Unicode letters and numbers from the installed ``regex`` module.

Run ``python -m clipfast.tokenizer.unicode_table`` to follow a newer Unicode. Only code points that
this Unicode newly assigns as letters or numbers tokenize differently afterwards.
"""

from __future__ import annotations

from pathlib import Path

from clipfast.tokenizer.characters import CHARACTER_TABLE


def write_table(path: Path) -> None:
    """Write the letter and number ranges of the installed ``regex`` module.

    Args:
        path: File to write; one ``category first last`` line per range, hexadecimal, inclusive.
    """
    import regex

    lines = [f"# Unicode Letter (L) and Number (N) ranges as regex {regex.__version__} has them."]
    for category in ("L", "N"):
        is_member = regex.compile(rf"\p{{{category}}}").match
        ranges: list[list[int]] = []
        for code_point in range(0x110000):
            # A surrogate is in neither category and may not occur in a pattern.
            if not is_member(chr(code_point)):
                continue
            if ranges and ranges[-1][1] == code_point - 1:
                ranges[-1][1] = code_point
            else:
                ranges.append([code_point, code_point])
        lines += [f"{category} {first:04X} {last:04X}" for first, last in ranges]
    path.write_text("\n".join(lines) + "\n", "ascii")


if __name__ == "__main__":
    write_table(Path(__file__).parents[1] / CHARACTER_TABLE)
