"""All sources in one list, each query once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clipfast.curate.queries.sources import Ranked
from clipfast.curate.text.queryfile import Query
from clipfast.curate.text.words import normal_forms


def collect(sources: Mapping[str, Sequence[Ranked]], limit: int | None = None) -> list[Query]:
    """Queries in the order of their sources. In a source the largest number comes first, and of
    equal ones the text that is first in the order of code points: the same list always.

    Args:
        sources: by name, in the order of the result.
        limit: how many queries there are at the most.

    Returns:
        Queries in their normal form, see ``clipfast.curate.text.words``; of those of equal words
        the first. A text without a letter or digit, such as a mark of punctuation, is none.
    """
    found: dict[str, Query] = {}
    for source, ranked in sources.items():
        forms = normal_forms([text for text, _ in ranked])
        numbers = [number for _, number in ranked]
        order = sorted(zip(forms, numbers, strict=True), key=lambda pair: (-pair[1], pair[0]))
        for form, number in order:
            if limit is not None and len(found) >= limit:
                return list(found.values())
            if any(character.isalnum() for character in form) and form not in found:
                found[form] = Query(form, source, number)
    return list(found.values())
