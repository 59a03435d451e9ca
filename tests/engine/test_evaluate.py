"""Encoding by all ranks together, and the loop over evaluations."""

import json

import pytest
import torch
from torch import Tensor

from clipfast.data import EvalLoader
from clipfast.data.content import caption_id
from clipfast.data.fields import Fields
from clipfast.data.index import index_shards
from clipfast.engine import ConfigError, DataConfig, EvaluationConfig, ModelOptions
from clipfast.engine.encoder import RunEncoder, _openers
from clipfast.engine.evaluate import Evaluations
from clipfast.engine.plan import RunPlan
from clipfast.eval import Measured, list_evaluations, register
from clipfast.eval.distinct import Distinct
from clipfast.models import create_model
from clipfast.tokenizer import tokenize_with_lengths
from tests.data.tars import END, member
from tests.data.test_fields import make_shard
from tests.data.test_folders import picture
from tests.data.test_loader import write_shard
from tests.data.test_rgb import palette_png
from tests.engine.plans import plan
from tests.process_use import ProcessUse
from tests.ranks import run_ranks

LIMIT = 33


class Engine:
    """A model called as DeepSpeed's engine is."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = create_model("ViT-tiny", vision_layers=1, text_layers=1)
        self.forwards = 0

    def __call__(self, *inputs, **options) -> tuple[Tensor, ...]:
        assert not self.module.training
        self.forwards += 1
        return self.module(*inputs, **options)

    def eval(self) -> None:
        self.module.eval()

    def train(self, mode: bool) -> None:
        self.module.train(mode)


def made(ranks: int = 1, rank: int = 0, **options) -> RunPlan:
    data = DataConfig(
        train=("sample/noto",), eval=("sample/twemoji",), eval_batch_size=16, eval_limit=LIMIT
    )
    options = {"data": data, **options}
    return plan(ranks=ranks, rank=rank, model=ModelOptions("ViT-tiny"), **options)


def encoder(ranks: int = 1, rank: int = 0) -> RunEncoder:
    engine = Engine()
    engine.eval()
    return RunEncoder(engine, made(ranks, rank))


def _encoded() -> tuple[Tensor, Tensor, list[int], Tensor, int]:
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    ours = encoder(ranks, rank)
    pairs = ours.pairs("sample/twemoji")
    gathered = ours.gather(torch.full((rank + 1, 2), float(rank)))
    mine = [pairs.mine.start, pairs.mine.stop]
    return pairs.image_features, pairs.text_features, mine, gathered, ours._engine.forwards


def test_encoder_gives_pairs_in_the_order_of_the_shards(process_group):
    ours = encoder()
    pairs = ours.pairs("sample/twemoji")
    assert (len(pairs), pairs.mine, ours.count("sample/twemoji")) == (LIMIT, slice(0, 33), LIMIT)
    loader = EvalLoader("sample/twemoji", 64, LIMIT, limit=LIMIT)
    (batch,) = loader
    with torch.no_grad():
        images, texts, _ = ours._engine.module(batch.images, batch.tokens)
    assert torch.allclose(pairs.image_features, images, atol=1e-5)
    assert torch.allclose(pairs.text_features, texts, atol=1e-5)
    # Captions and pictures are read again where they are asked for.
    captions = [pairs.caption(i) for i in range(LIMIT)]
    assert torch.allclose(ours.texts(captions), texts, atol=1e-5)
    assert torch.equal(tokenize_with_lengths(captions)[1], batch.lengths)
    assert pairs.image(LIMIT - 1).size[0] > 8
    assert [caption_id(caption) for caption in captions] == pairs.caption_ids.tolist()
    assert len(pairs.image_ids.unique()) == LIMIT
    assert torch.allclose(ours.images(batch.images), images, atol=1e-5)
    assert not pairs.image_features.requires_grad


@pytest.mark.filterwarnings("error")
def test_drawn_pictures_lie_on_white_and_leave_no_shard_open(tmp_path):
    shard = write_shard(tmp_path / "0.tar", [("png", palette_png(), "three columns")])
    image, caption = _openers(EvalLoader(shard, 64, 1), torch.tensor([1]))
    before = ProcessUse.now().descriptors
    assert image(0).getpixel((0, 0)) == (255, 255, 255)
    assert caption(0) == "three columns"
    assert ProcessUse.now().descriptors == before


MANY = [["one"], ["a", "", "b", "c"], ["d", "e"], ["one"], ["f", "g"]]


def _shard_of_many(folder) -> str:
    """Five pictures with one to three captions that say something, the first and fourth equal."""
    parts = []
    for row, texts in enumerate(MANY):
        data = json.dumps({"caption": texts}).encode()
        parts += [member(f"{row}.jpg", picture(40 * row)), member(f"{row}.json", data)]
    (folder / "many.tar").write_bytes(b"".join(parts) + END)
    return str(folder / "many.tar")


def _pairs_of(shard: str) -> tuple[Tensor, Tensor, list, Tensor, Tensor, list[str]]:
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    data = DataConfig(train=("sample/noto",), eval=(f"many={shard}",), eval_batch_size=2)
    engine = Engine()
    engine.eval()
    pairs = RunEncoder(engine, made(ranks, rank, data=data)).pairs("many")
    captions = [pairs.caption(i) for i in range(len(pairs))]
    mine = [pairs.mine.start, pairs.mine.stop]
    ids = pairs.image_ids, pairs.caption_ids
    return pairs.image_features, pairs.text_features, mine, *ids, captions


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_image_is_a_pair_with_each_of_its_captions(process_group, tmp_path, ranks):
    shard = _shard_of_many(tmp_path)
    expected = [text for texts in MANY for text in texts if text]
    sample = [row for row, texts in enumerate(MANY) for text in texts if text]
    engine = Engine()
    engine.eval()
    (batch,) = EvalLoader(shard, 64, 5)
    tokens, lengths = tokenize_with_lengths(expected)
    with torch.no_grad():
        images = engine(images=batch.images)[0]
        texts = engine(tokens=tokens, lengths=lengths)[1]
    found = [_pairs_of(shard)] if ranks == 1 else run_ranks(ranks, _pairs_of, shard)
    for image_features, text_features, _, image_ids, caption_ids, captions in found:
        assert captions == expected
        assert torch.allclose(image_features, images[sample], atol=1e-5)
        assert torch.allclose(text_features, texts, atol=1e-5)
        assert caption_ids.tolist() == [caption_id(text) for text in expected]
        seen = image_ids.tolist()
        assert [seen.index(each) for each in seen] == [sample.index(row) for row in sample]
        right = Distinct.of(image_ids, caption_ids).right
        assert len(right) == len(expected)
    # A rank has whole images.
    parts = [[0, 9]] if ranks == 1 else [[0, 4], [4, 9]]
    assert [each[2] for each in found] == parts


@pytest.mark.slow
def test_two_ranks_encode_uneven_parts_as_one_rank_does():
    (alone,) = run_ranks(1, _encoded)
    both = run_ranks(2, _encoded)
    assert [mine for _, _, mine, _, _ in both] == [[0, 16], [16, 33]]
    for images, texts, _, gathered, forwards in both:
        assert torch.allclose(images, alone[0], atol=1e-5)
        assert torch.allclose(texts, alone[1], atol=1e-5)
        assert gathered[:, 0].tolist() == [0, 1, 1]
        # The rank with one batch runs it twice: under ZeRO-3 every forward is a collective.
        assert forwards == 2


@pytest.mark.parametrize("training", [True, False])
def test_evaluations_measure_each_set_and_leave_the_mode_alone(process_group, training):
    engine, seen = Engine(), []
    engine.module.train(training)
    evaluations = Evaluations(made())
    measured = evaluations.run(engine, seen.append)
    assert engine.module.training == training
    (retrieval,) = measured["retrieval"]
    assert seen == [retrieval]
    assert (retrieval.source, retrieval.pairs) == ("sample/twemoji", LIMIT)
    assert 0 <= retrieval.image_to_text["R@1"] <= retrieval.image_to_text["R@10"] <= 1
    assert retrieval.scalars == {
        f"eval/sample/twemoji/{side}/R@{k}": getattr(retrieval, side)[f"R@{k}"]
        for side in ("image_to_text", "text_to_image")
        for k in (1, 5, 10)
    }
    (line,) = retrieval.lines
    assert line.startswith("sample/twemoji (33 pairs): image-to-text R@1 0.")
    table = evaluations.summary(measured)
    assert table[-1].split()[:3] == ["chance", "(33", "pairs)"]


def test_evaluations_find_the_right_partners(process_group):
    """A model whose image features are its text features retrieves everything."""
    engine = Engine()
    engine.module.forward = lambda images, tokens, lengths: (
        engine.module.encode_text(tokens, lengths),
        engine.module.encode_text(tokens, lengths),
        torch.ones(1),
    )
    ((retrieval,),) = Evaluations(made()).run(engine, lambda entry: None).values()
    assert retrieval.image_to_text == retrieval.text_to_image
    assert set(retrieval.image_to_text.values()) == {1.0}


def test_evaluations_refuse_an_unknown_name_and_too_few_pairs():
    assert list_evaluations()[0] == "retrieval"
    with pytest.raises(ConfigError, match=r"--eval\.names zero-shot: no such.*Known: retrieval"):
        Evaluations(made(eval=EvaluationConfig(("zero-shot",))))
    with pytest.raises(ConfigError, match=r"--data\.eval sample/twemoji holds 33 pairs, less than"):
        Evaluations(made(ranks=64, batch_size=64))
    with pytest.raises(ValueError, match="'retrieval' already"):
        register("retrieval", lambda data: None)


def test_evaluations_repeat_why_a_set_has_no_sample(tmp_path):
    shard = make_shard(tmp_path / "a.tar", [b'{"text": " "}'])
    index_shards([shard], workers=1, fields=Fields(("png",), ("json:text",)))
    data = DataConfig(train=("sample/noto",), eval=(shard,))
    with pytest.raises(ConfigError, match=r"hold no sample\n    1 x caption is empty \(.* of "):
        Evaluations(made(data=data))


def test_evaluations_say_what_is_below_its_floor_or_was_not_measured():
    floors = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.1}
    evaluations = Evaluations(made(eval=EvaluationConfig(floors=floors)))
    measured = {
        "one": [Measured(scalars={"a": 0.5, "b": 0.25}), Measured(scalars={"c": float("nan")})]
    }
    lines = evaluations.below_floors(measured)
    assert lines[0] == "b is 0.250, below its floor of 0.5"
    assert lines[1] == "c is nan, below its floor of 0.5"
    assert lines[2] == "--eval.floors d: not measured; there are a, b, c"
    assert len(lines) == 3
    assert Evaluations(made()).below_floors(measured) == []


def test_a_set_has_its_short_name_in_tags_lines_tables_and_floors(process_group, tmp_path, caplog):
    shard = write_shard(tmp_path / "few.tar", [("png", palette_png(), "columns")] * 2)
    data = DataConfig(
        train=(shard, "sample/noto"), eval=("emoji=sample/twemoji", shard), eval_limit=5
    )
    tag = "image_to_text/R@1"
    floors = {f"eval/emoji/{tag}": 2.0, f"eval/{shard}/{tag}": 3.0}
    evaluations = Evaluations(made(data=data, eval=EvaluationConfig(floors=floors)))
    measured = evaluations.run(Engine(), lambda entry: None)
    emoji, few = measured["retrieval"]
    assert f"eval/emoji/{tag}" in emoji.scalars
    assert f"eval/few/{tag}" in few.scalars
    assert emoji.lines[0].startswith("emoji (5 pairs")
    # One picture with one caption, twice.
    assert few.lines[0].startswith("few (2 pairs, 1 distinct picture, 1 distinct caption): ")
    assert few.gallery.title.startswith("few: ")
    labels = [line.split("  ")[0] for line in evaluations.summary(measured)]
    assert "emoji" in labels
    assert "few (trained on)" in labels
    lines = evaluations.below_floors(measured)
    assert [line.split(" is ")[0] for line in lines] == [f"eval/emoji/{tag}", f"eval/few/{tag}"]
    assert f"eval/{shard}/ is now eval/few/; the old name goes in version 0.3" in caplog.text


def test_evaluations_of_no_data_measure_nothing(process_group):
    data = DataConfig(train=("sample/noto",))
    evaluations = Evaluations(made(data=data))
    measured = evaluations.run(Engine(), lambda entry: pytest.fail("nothing to measure"))
    assert measured == {"retrieval": []}
    assert evaluations.summary(measured) == []


def test_evaluate_asks_between_batches_and_leaves_the_model_as_it_was():
    class Stop(Exception):
        pass

    def between() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise Stop

    asked, engine = [], Engine()
    engine.module.train()
    evaluations = Evaluations(made())
    words = type("Words", (), {"run": lambda self, encoder: encoder.texts(["a", "b"] * LIMIT)})
    evaluations._by_name = {"words": words()}
    with pytest.raises(Stop):
        evaluations.run(engine, lambda measured: None, between)
    assert engine.forwards == 1
    assert engine.module.training
