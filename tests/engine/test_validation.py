"""The loss on held-out pairs: what it is, that ranks agree on it, and what is refused."""

import pytest
import torch

from clipfast.data import EvalLoader
from clipfast.engine import ConfigError, DataConfig, LoggingConfig, ModelOptions
from clipfast.engine.plan import RunPlan
from clipfast.engine.validation import Validation
from tests.engine.launching import documented
from tests.engine.plans import plan
from tests.engine.test_evaluate import Engine
from tests.loss.problems import paper_loss
from tests.ranks import run_ranks

PAIRS = 37


def made(ranks: int = 1, rank: int = 0, limit: int = PAIRS, **options) -> RunPlan:
    logging = LoggingConfig(validation=("sample/twemoji",), **options)
    data = DataConfig(train=("sample/noto",), eval_batch_size=16, eval_limit=limit)
    return plan(ranks=ranks, rank=rank, model=ModelOptions("ViT-tiny"), data=data, logging=logging)


def measure(ranks: int = 1, rank: int = 0) -> dict[str, float]:
    return Validation(made(ranks, rank, validation_batch=10)).run(Engine(), lambda: None)


def _measured() -> float:
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    return measure(ranks, rank)["validation/loss"]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("training", [True, False])
def test_validation_is_the_mean_of_whole_batches_and_leaves_everything_alone(training):
    engine = Engine()
    engine.module.train(training)
    before = {name: value.clone() for name, value in engine.module.state_dict().items()}
    random = torch.get_rng_state()
    found = Validation(made(validation_batch=10)).run(engine, lambda: None)
    assert torch.equal(torch.get_rng_state(), random)
    after = engine.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert engine.module.training == training
    assert found.keys() == documented("after a validation")
    (batch,) = EvalLoader("sample/twemoji", 64, 30, limit=30)
    with torch.no_grad():
        images, texts, scale = engine.module.eval()(batch.images, batch.tokens)
    parts = (slice(0, 10), slice(10, 20), slice(20, 30))
    # The last seven pairs fill no batch.
    want = sum(paper_loss(images[part], texts[part], scale).item() for part in parts) / 3
    assert found["validation/loss"] == pytest.approx(want, rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("process_group")
def test_two_ranks_measure_what_one_does():
    both = run_ranks(2, _measured)
    assert both == pytest.approx([measure()["validation/loss"]] * 2, rel=1e-4)


@pytest.mark.parametrize(
    ("ranks", "asked", "limit", "sizes"),
    [
        # The batch of training is 32.
        (1, 0, 100, (32, 3)),
        (1, 0, 20, (20, 1)),
        (2, 10, 37, (10, 3)),
        # Every rank brings as many.
        (4, 10, 37, (8, 4)),
    ],
)
def test_validation_takes_the_batch_of_training_or_what_there_is(ranks, asked, limit, sizes):
    validation = Validation(made(ranks, limit=limit, validation_batch=asked))
    assert (validation.batch, validation.batches) == sizes


def test_validation_refuses_what_no_batch_can_be_made_of(tmp_path):
    with pytest.raises(ConfigError, match="2 pairs in batches of at most 2 are too few for 4"):
        Validation(made(4, limit=2))
    (tmp_path / "bad.tar").write_bytes(b"no archive")
    logging = LoggingConfig(validation=(str(tmp_path / "bad.tar"),))
    with pytest.raises(ConfigError, match=r"--logging\.validation: "):
        Validation(plan(logging=logging))


def test_a_run_without_held_out_pairs_measures_nothing():
    assert Validation(plan()).run(None, lambda: None) == {}
