"""How long the captions of some shards are, from a few of them."""

import numpy as np

from clipfast.data.order import SampleRefs
from clipfast.data.reader import ShardReader
from clipfast.tokenizer import tokenize_with_lengths

_SHARDS_SAMPLED, _CAPTIONS_OF_EACH = 4, 32


def mean_tokens(reader: ShardReader) -> int:
    """The mean length of some captions, start and end included, a tenth added: batches differ.

    Args:
        reader: of the shards.
    """
    shards = np.unique(np.linspace(0, len(reader.shards) - 1, _SHARDS_SAMPLED).astype(int))
    captions: list[str] = []
    for shard in shards.tolist():
        count = len(reader.table(shard))
        rows = np.unique(np.linspace(0, count - 1, min(count, _CAPTIONS_OF_EACH)).astype(int))
        files = reader.fetch(SampleRefs(np.full(len(rows), shard), rows))
        captions += [text for i, text in enumerate(files.captions) if i not in files.faults]
    if not captions:
        return reader.context_length
    lengths = tokenize_with_lengths(captions, reader.context_length)[1]
    return min(reader.context_length, int(np.ceil(1.1 * lengths.double().mean().item())))
