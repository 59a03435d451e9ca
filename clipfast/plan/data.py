"""What a run's own data say of themselves, where they are here: pairs, tokens, bytes."""

from dataclasses import dataclass

from clipfast.data.caption_lengths import mean_tokens
from clipfast.data.catalogue import look_up
from clipfast.data.random_pairs import WEB_MEAN
from clipfast.data.reader import ShardReader
from clipfast.data.sources import find_sources, order_of
from clipfast.engine.builders import mixing_of
from clipfast.engine.config import DataConfig
from clipfast.engine.sources import training_sources
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
    sources = find_sources(training_sources(options.train) or options.train)
    shards = sources.shards
    known = look_up(
        sources,
        options.fields,
        select=options.select or None,
        caption_tables=options.training_captions or None,
        caption_cache=options.caption_cache,
    )
    used, held = known.kept, known.held
    order = order_of(
        sources,
        used.counts,
        mixing_of(options),
        seed=0,
        window=options.shuffle_window,
        shuffle=True,
        units=used.units,
    )
    pairs = len(order)
    read = [shard for shard, samples in zip(shards, held, strict=True) if samples]
    size = sum(storage_of(shard).size(shard) for shard in read) / max(1, int(held.sum()))
    source = f"{len(shards)} shard(s) of --data.train"
    reader = ShardReader(shards, 77, options.fields, captions=known.captions)
    return Contents(pairs, mean_tokens(reader), size / 1e3, source)
