"""``--micro-batch auto`` and ``--keep-graphs``: what is chosen for the memory that there is."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from clipfast.engine import ConfigError, ModelOptions, dry_step, micro_batch, recomputation
from clipfast.engine.differences import differences, plain
from clipfast.engine.headline import headline
from clipfast.engine.length import Length
from clipfast.engine.micro_batch import resolve_memory
from clipfast.engine.rank_bytes import rank_bytes
from clipfast.engine.recomputation import MARGIN, SLACK
from clipfast.models.activations import ActivationBytes
from tests.engine.plans import PAPER, plan

pytestmark = pytest.mark.usefixtures("process_group")
TOKENS = 20
# Of a pair's activations, in each mode.
KEPT = {"none": 10_000_000, "selective": 5_000_000, "full": 1_000_000}
LOADER = SimpleNamespace(caption_tokens=lambda: TOKENS, contents="64 pairs", batches_per_epoch=2)


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Activations that need no count; tests/models/test_activations.py looks at the real one."""

    def count(config, batch, dtype, recompute, **options) -> ActivationBytes:
        return ActivationBytes(KEPT[recompute] * batch, KEPT[recompute] * batch * 5 // 4)

    for module in (recomputation, micro_batch):
        monkeypatch.setattr(module, "activation_bytes", count)
    monkeypatch.setattr(micro_batch, "fits_when_tried", lambda *arguments: True)


def asked(recompute: str = "none", **options):
    model = ModelOptions("RN-tiny", compile="none", recompute=recompute)
    return plan(batch_size=64, model=model, **options)


def free_for(made, extra: int = 0) -> int:
    """Free memory in which just this plan fits."""
    return int((rank_bytes(made, TOKENS).total + extra) / (1 - MARGIN)) + SLACK + 1000


def resolved(made, free: int, remembered: int | None = None):
    return resolve_memory(made, LOADER, remembered, free=lambda process: free)


def test_auto_takes_the_largest_part_that_fits():
    search = asked(micro_batch="auto")
    assert search.searches_micro_batch
    for size in (64, 32, 8):
        found = resolved(search, free_for(asked(micro_batch=size)))
        assert (found.micro_batch, found.searches_micro_batch) == (size, False)
        assert found.micro_batch_note.startswith(f"micro-batch: auto -> {size} of 64, recompute")
    # What was asked for is what is written down, and compared with.
    assert found.config == search.config
    lines = headline(found, LOADER, Length(steps=2, warmup=1), 100, 0)
    assert found.micro_batch_note in lines


def test_auto_that_fits_nothing_says_so():
    found = resolved(asked(micro_batch="auto"), 0)
    assert found.micro_batch == 1
    assert "though it takes" in found.micro_batch_note


def test_auto_of_both_computes_again_before_it_encodes_twice():
    search = asked("auto", micro_batch="auto")
    whole = free_for(asked("none"))
    assert resolved(search, whole).recompute == "none"
    found = resolved(search, free_for(asked("selective")))
    assert (found.recompute, found.micro_batch) == ("selective", 64)
    # Less than the whole batch in full mode: micro-batches, which add a forward pass at most.
    less = free_for(asked("full")) - 10_000_000
    found = resolved(search, less)
    assert found.micro_batch < 64
    assert found.recompute == "none"


def test_a_resumed_run_keeps_its_number():
    search = asked(micro_batch="auto")
    found = resolved(search, free_for(asked()), remembered=16)
    assert (found.micro_batch, found.micro_batch_note) == (
        16,
        "micro-batch: auto -> 16, as the run had it",
    )
    assert not differences(plain(search.config), found.config)
    # On other ranks it may not divide the share.
    assert resolved(search, free_for(asked()), remembered=48).micro_batch == 64


def test_what_does_not_fit_when_tried_is_made_smaller(monkeypatch):
    tried = []

    def try_it(made, available, tokens) -> bool:
        tried.append((made.micro_batch, made.keep_graphs))
        return made.micro_batch == 8

    monkeypatch.setattr(micro_batch, "fits_when_tried", try_it)
    search = asked(micro_batch="auto", keep_graphs=2)
    found = resolved(search, free_for(asked(micro_batch=32)))
    assert tried == [(32, 2), (32, 1), (32, 0), (16, 0), (8, 0)]
    assert found.micro_batch == 8
    assert found.micro_batch_note.endswith("tried, that did not fit: 8, with 0 graphs kept")
    with pytest.raises(ConfigError, match="had 16 pairs at a time, and they do not fit"):
        resolved(search, free_for(asked()), remembered=16)


def test_a_dry_step_runs_the_towers_and_leaves_no_trace():
    made = asked(micro_batch=4, keep_graphs=2)
    before = torch.get_rng_state()
    assert dry_step.fits_when_tried(made, 10**11, TOKENS)
    assert not dry_step.fits_when_tried(made, 10**7, TOKENS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dry_step_without_memory_on_a_gpu_says_no(monkeypatch):
    def step(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(dry_step, "_step", step)
    assert not dry_step.fits_when_tried(asked(), 10**11, TOKENS)


def test_kept_graphs_are_as_many_as_fit():
    made = asked(micro_batch=8, keep_graphs="auto")
    assert made.keep_graphs is None
    few = resolved(made, free_for(made))
    some = resolved(made, free_for(made, extra=3 * rank_bytes(made, TOKENS).activations))
    all_of_them = resolved(made, free_for(made, extra=10**10))
    assert few.keep_graphs <= 1
    assert few.keep_graphs < some.keep_graphs < 8
    assert all_of_them.keep_graphs == 8
    assert resolved(asked(keep_graphs="auto"), 10**11).keep_graphs == 0
    assert resolved(asked(micro_batch=8, keep_graphs=3), 10**11).keep_graphs == 3


def test_kept_graphs_at_stage_3_are_refused():
    with pytest.raises(ConfigError, match="one forward and its backward at a time"):
        asked(micro_batch=8, keep_graphs=2, stage=3)
    assert asked(micro_batch=8, keep_graphs="auto", stage=3).keep_graphs == 0


def test_auto_and_groups_of_pairs_are_refused_together():
    model = ModelOptions("RN-tiny", compile="none", bn_batch=4)
    with pytest.raises(ConfigError, match="a multiple of 4"):
        plan(batch_size=64, model=model, micro_batch="auto")
    with pytest.raises(ConfigError, match="--micro-batch must be one of auto; got 'large'"):
        asked(micro_batch="large")
    with pytest.raises(ConfigError, match="--micro-batch must be at least 1"):
        asked(micro_batch=0)


def test_auto_decides_what_follows_from_micro_batches():
    """Half-precision sums of several micro-batches need another stage."""
    search = asked(micro_batch="auto", optimizer=PAPER, precision="bf16")
    whole = resolved(search, 10**11)
    cut = resolved(search, free_for(replace(search.with_micro_batch(8))))
    assert (whole.stage, cut.stage) == (1, 2)
