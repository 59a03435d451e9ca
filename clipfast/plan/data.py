"""What a run's own data say of themselves, where they are here: pairs, tokens, bytes."""

from dataclasses import dataclass

from clipfast.data.caption_lengths import mean_tokens
from clipfast.data.patterns import expand
from clipfast.data.random_pairs import WEB_MEAN
from clipfast.data.reader import ShardReader
from clipfast.data.selecting import select
from clipfast.data.table import counts
from clipfast.engine.config import DataConfig
from clipfast.plan.question import PAIRS
from clipfast.plan.supply import KILOBYTES
from clipfast.storage import configure, storage_of


@dataclass(frozen=True)
class Contents:
    """What is trained on.

    Attributes:
        pairs: of an epoch.
        caption_tokens: the mean length of a caption, a tenth added as a run does.
        kilobytes: of an encoded pair.
        source: where that comes from, for a person.
    """

    pairs: int
    caption_tokens: int
    kilobytes: float
    source: str


def contents(options: DataConfig) -> Contents:
    """Look at shards, or assume the paper's pairs with captions of the web's length.

    Args:
        options: of the run.

    Raises:
        ValueError, OSError: shards are named and cannot be read.
    """
    web = round(1.1 * WEB_MEAN)
    if options.synthetic is not None:
        return Contents(options.synthetic, web, 0.0, "made at random, decoded by nobody")
    if not options.train:
        return Contents(PAIRS, web, KILOBYTES, "assumed: the paper's number of pairs")
    configure(options.store)
    shards = expand(options.train)
    held = int(counts(shards, fields=options.fields).sum())
    pairs = held
    if options.select:
        pairs = int(select(options.select, shards, options.fields).counts.sum())
    size = sum(storage_of(shard).size(shard) for shard in shards) / max(1, held)
    source = f"{len(shards)} shard(s) of --data.train"
    return Contents(pairs, mean_tokens(ShardReader(shards, 77, options.fields)), size / 1e3, source)
