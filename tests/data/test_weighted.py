"""Weights of samples: exact lengths, how often each is seen, any ranks, resume at any batch."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clipfast.data import TrainLoader
from clipfast.data.fields import Fields
from clipfast.data.indexfile import write_index
from clipfast.data.order import MixedOrder, SampleRefs, Share, WeightedOrder
from clipfast.data.order.copies import UNIT, given, units_of
from clipfast.data.scan import scan
from clipfast.data.selection import Selection, choose, read_selection, write_selection
from clipfast.data.sources import Mixing
from clipfast.data.table import identify
from tests.data.tars import END, member
from tests.data.test_folders import picture
from tests.data.test_selecting import assert_share

COUNTS = np.array([70, 0, 130, 50, 1])


def weights_of(seed: int, counts: np.ndarray = COUNTS) -> list[np.ndarray | None]:
    """Weights of all shards but the fourth."""
    draw = np.random.default_rng(seed)
    values = np.array([0.1, 0.5, 1, 2, 2.5, 1 / 3, 3.75], np.float32)
    found: list[np.ndarray | None] = [draw.choice(values, count) for count in counts]
    found[3] = None
    return found


def order_of(weights: list[np.ndarray | None], **options) -> WeightedOrder:
    units = [None if each is None else units_of(each) for each in weights]
    return WeightedOrder(COUNTS, units, **({"seed": 5, "window": 16} | options))


def seen(order, epoch: int) -> list[np.ndarray]:
    refs = order.locate(epoch, 0, len(order))
    return [
        np.bincount(refs.row[refs.shard == shard], minlength=count)
        for shard, count in enumerate(COUNTS)
    ]


def test_epochs_are_equally_long_and_have_each_sample_as_often_as_its_weight_says():
    weights = weights_of(0)
    order = order_of(weights)
    total = sum(COUNTS[i] if each is None else each.sum() for i, each in enumerate(weights))
    # The sum of the fractions, rounded up.
    assert total <= len(order) < total + 1 + 1e-3
    sums = [np.zeros(count) for count in COUNTS]
    epochs = 60
    for epoch in range(epochs):
        for shard, found in enumerate(seen(order, epoch)):
            own = weights[shard]
            if own is None:
                assert (found == 1).all()
                continue
            # An epoch has the whole part, and now and then one more.
            assert (found >= np.floor(own)).all()
            assert (found <= np.floor(own) + (own % 1 > 0) + 1).all()
            sums[shard] += found
    for shard in (0, 2):
        off = sums[shard] - epochs * weights[shard]
        # Of a fraction each sample has what is due, or one more or less.
        assert np.abs(off).max() <= 2
        whole = weights[shard] % 1 == 0
        assert (off[whole] == 0).all()


def test_a_half_is_in_every_other_epoch():
    counts, units = np.array([1000]), [units_of(np.full(1000, 0.5, np.float32))]
    order = WeightedOrder(counts, units, seed=2)
    assert len(order) == 500
    epochs = [set(order.locate(epoch, 0, 500).row.tolist()) for epoch in range(8)]
    for one, other in itertools.pairwise(epochs):
        assert len(one) == 500
        assert len(one & other) < 10
    assert epochs[0] != set(range(500))


def test_weights_of_one_are_the_order_of_none_and_the_seed_draws_copies():
    plain = WeightedOrder(COUNTS, [None] * 5, seed=5, window=16)
    ones = order_of([np.ones(count, np.float32) for count in COUNTS])
    for epoch in (0, 3):
        one, other = plain.locate(epoch, 0, len(plain)), ones.locate(epoch, 0, len(ones))
        assert (one.shard == other.shard).all()
        assert (one.row == other.row).all()
    weights = weights_of(1)
    rows = [seen(order_of(weights, seed=seed), 0)[2].tolist() for seed in (5, 6, 5)]
    assert rows[0] == rows[2] != rows[1]


def test_places_are_where_at_finds_a_sample():
    order = order_of(weights_of(3), window=40)
    for epoch in (0, 7):
        refs = order.locate(epoch, 0, len(order))
        for shard, row in ((0, 3), (2, 129), (3, 49), (4, 0), (0, 69)):
            sample = SampleRefs(np.array([shard]), np.array([row]))
            expected = np.flatnonzero((refs.shard == shard) & (refs.row == row))
            assert (order.places(epoch, sample) == expected).all()
        group = np.array([0, 0, 1, 1, 0])
        for stop in (0, 17, len(order) // 2, len(order)):
            assert order.tally(epoch, stop, group, 2).tolist() == (
                np.bincount(group[refs.shard[:stop]], minlength=2).tolist()
            )


def test_given_rises_with_the_copies_and_is_exact():
    draw = np.random.default_rng(4)
    fractions = draw.integers(0, UNIT, 37)
    fractions[5] = 0
    offsets = draw.integers(0, UNIT, 37)
    before = np.zeros(37, np.int64)
    for copies in range(200):
        found = given(fractions, offsets, copies)
        assert found.sum() == copies
        assert (found >= before).all()
        before = found
    assert before[5] == 0
    expected = 199 * fractions / fractions.sum()
    assert np.abs(before - expected).max() <= 1.5


def test_a_mixture_takes_weighted_samples_of_a_source_by_their_weights():
    draw = np.random.default_rng(8)
    weights = draw.choice(np.array([0.5, 1, 3], np.float32), 60)
    shares = [
        Share("w", np.array([60]), 50, [units_of(weights)]),
        Share("p", np.array([20, 20]), 70),
    ]
    order = MixedOrder(shares, seed=1, window=32)
    sums = np.zeros(60)
    epochs = 100
    for epoch in range(epochs):
        refs = order.locate(epoch, 0, len(order))
        assert (np.bincount(refs.shard == 0)).tolist() == [70, 50]
        sums += np.bincount(refs.row[refs.shard == 0], minlength=60)
        some = SampleRefs(np.array([0, 2]), np.array([7, 3]))
        expected = np.flatnonzero(
            ((refs.shard == 0) & (refs.row == 7)) | ((refs.shard == 2) & (refs.row == 3))
        )
        assert (order.places(epoch, some) == expected).all()
    off = sums - epochs * 50 * weights / weights.sum()
    assert np.abs(off).max() <= 4


# What follows reads shards: three captions each, chosen or drawn, by weight, from two sources.
BATCH = 6
CHOSEN = {0: 2, 3: 0}


def _shard(path: Path, size: int) -> str:
    parts = []
    for row in range(size):
        data = json.dumps({"caption": [f"{path.stem} {row} {n}" for n in range(3)]}).encode()
        image = b"no image" if (path.stem, row) == ("b", 4) else picture(11 * row)
        parts.append(member(f"{row}.jpg", image) + member(f"{row}.json", data))
    path.write_bytes(b"".join(parts) + END)
    found = scan(str(path), FIELDS)
    write_index(str(path), [sample.entry for sample in found if sample.entry], FIELDS)
    return str(path)


FIELDS = Fields(captions=("json:caption",))
WEIGHTS = np.array([2.5, 1, 0.5, 1.75, 3, 0.25], np.float32)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weighted")
    return {"a": _shard(folder / "a.tar", 8), "b": _shard(folder / "b.tar", 7)}


@pytest.fixture(scope="module")
def selection(sources) -> Selection:
    known = {name: identify(path, FIELDS) for name, path in sources.items()}
    captions = [CHOSEN.get(row, -1) for row in range(6)]
    more = {"captions": captions, "captions_of": "json:caption", "weights": WEIGHTS}
    return Selection(
        [
            choose(sources["a"], 8, known["a"].mark, [7, 1, 2, 3, 5, 6], **more),
            choose(sources["b"], 7, known["b"].mark, range(7)),
        ],
        "s.parquet",
    )


MIXING = Mixing(weights={"a": 2, "b": 1}, epoch_samples=33)


def train(sources, selection, **options) -> TrainLoader:
    options = {
        "mixing": MIXING,
        "on_error": "skip",
        "on_skip": lambda skipped: None,
        "threads": 1,
    } | options
    return TrainLoader(
        sources, 16, BATCH, seed=3, window=10, fields=FIELDS, select=selection, **options
    )


def words(batch) -> list[list[int]]:
    return [t[:n].tolist() for t, n in zip(batch.tokens, batch.lengths, strict=True)]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_weights_captions_and_mixtures_go_on_at_any_batch_on_other_ranks(sources, selection, ranks):
    whole = list(itertools.islice(train(sources, selection), 12))
    first = train(sources, selection)
    share = BATCH // ranks
    for taken, _ in enumerate(itertools.islice(first, 11), 1):
        if taken not in (1, 4, 5, 11):
            continue
        state = first.state_dict()
        for rank in range(ranks):
            part = train(sources, selection, rank=rank, world_size=ranks)
            part.load_state_dict(state)
            batch = next(iter(part))
            assert_share(batch, whole[taken], rank, ranks)
            assert words(batch) == words(whole[taken])[rank * share : (rank + 1) * share]


def test_over_epochs_samples_and_captions_come_as_often_as_expected(sources, selection):
    """Without decoding: the order and the reader's captions of 300 epochs."""
    loader = train(sources, selection)
    order, reader, epochs = loader.order, loader.reader, 300
    samples: Counter[tuple[int, int]] = Counter()
    texts: Counter[str] = Counter()
    for epoch in range(epochs):
        refs = order.locate(epoch, 0, len(order))
        places = list(zip(refs.shard.tolist(), refs.row.tolist(), strict=True))
        samples.update(places)
        texts.update(reader.fetch(refs, epoch=epoch).captions)
    reader.close()
    drawn = sum(samples[0, row] for row in range(6))
    assert drawn == 22 * epochs
    rows = [7, 1, 2, 3, 5, 6]
    weight = dict(zip(rows, WEIGHTS.tolist(), strict=True))
    chosen = {rows[i]: number for i, number in CHOSEN.items()}
    for place, row in enumerate(sorted(rows)):
        expected = 22 * epochs * weight[row] / len_of_pass(selection)
        assert abs(samples[0, place] - expected) <= 3
        found = [texts[f"a {row} {number}"] for number in range(3)]
        assert sum(found) == samples[0, place]
        if row in chosen:
            assert found[chosen[row]] == sum(found)
        else:
            # One caption in an epoch: a sample's copies count as one draw. Chi-square with two
            # degrees of freedom is above 20 in 5 of 100,000 cases.
            copies = max(1.0, expected / epochs)
            mean = sum(found) / 3
            assert sum((each - mean) ** 2 / mean for each in found) < 20 * copies
    for row in range(7):
        assert abs(samples[1, row] - 11 * epochs / 7) <= 1


def len_of_pass(selection: Selection) -> int:
    """Copies of a pass: whole parts, and the sum of the fractions rounded up."""
    (weights,) = [each for each in (c.weighted() for c in selection.choices) if each is not None]
    return int(np.floor(weights).sum() + np.ceil((weights % 1).sum()))


@pytest.mark.needs("pyarrow")
def test_a_file_keeps_choices_and_weights_and_one_without_them_is_as_before(
    tmp_path, sources, selection
):
    from pyarrow import parquet

    path = str(tmp_path / "s.parquet")
    assert write_selection(path, selection.choices) == selection.digest
    again = read_selection(path)
    assert again.choices == selection.choices
    assert again.choices[0].weighted().tolist() == [1, 0.5, 1.75, 3, 0.25, 2.5]
    assert again.choices[0].chosen().tolist() == [-1, -1, 0, -1, -1, 2]
    plain = [choose(each.shard, each.samples, each.mark, each.rows()) for each in again.choices]
    ones = [
        choose(
            each.shard,
            each.samples,
            each.mark,
            each.rows(),
            weights=np.ones(each.kept),
            captions=np.full(each.kept, -1),
        )
        for each in again.choices
    ]
    # What says nothing is not there.
    assert ones == plain
    assert write_selection(path, ones) != selection.digest
    table = parquet.read_table(path)
    assert table.schema.metadata[b"clipfast.selection"] == b"1"
    assert table.column_names == ["shard", "samples", "mark", "kept", "keep"]
    state = train(sources, selection).state_dict()
    with pytest.raises(ValueError, match=r"selection was .*, is "):
        train(sources, Selection(plain)).load_state_dict(state)


def test_choices_that_do_not_fit_are_refused(sources, selection):
    mark = selection.choices[0].mark
    for more, why in (
        ({"weights": [1.0]}, "1 weights for 2 rows"),
        ({"weights": [1.0, 0.0]}, r"weights are from .* got 0\.0"),
        ({"weights": [1.0, float("nan")]}, "got nan"),
        ({"weights": [1.0, 1e9]}, r"got 1000000000\.0"),
        ({"weights": ["1", "2"]}, "weights must be a list of numbers"),
        ({"captions": [0.5, 1.0]}, "captions must be a list of numbers"),
        ({"captions": [0, -2]}, "got -2"),
    ):
        with pytest.raises(ValueError, match=why):
            choose("a.tar", 8, mark, [1, 2], **more)
    other = [
        choose(sources["a"], 8, mark, [1], captions=[1], captions_of="txt json:caption"),
    ]
    with pytest.raises(ValueError, match="chooses among the captions 'txt json:caption' of"):
        train(sources["a"], Selection(other), mixing=None)
    beyond = [choose(sources["a"], 8, mark, range(8), captions=[3] * 8)]
    loader = train(sources["a"], Selection(beyond), mixing=None)
    with pytest.raises(ValueError, match="caption 3 is chosen, counted from 0, and there are 3"):
        loader.reader.caption(0, 0)
