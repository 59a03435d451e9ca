"""Tasks on data sets while a model trains: what is asked, refused, measured and left."""

import csv
import json

import pytest
import torch

from clipfast.engine import Config, ConfigError, DataConfig, EvaluationConfig, LoggingConfig
from clipfast.engine.cli import parse
from clipfast.engine.differences import differences, plain
from clipfast.engine.evaluate import Evaluations
from clipfast.eval import Evaluation, Measured, register
from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.probe import linear_probe
from clipfast.eval.registry import _BUILDERS as EVALUATIONS
from clipfast.eval.results import ResultFile
from clipfast.eval.sets import open_captions, open_set
from clipfast.eval.tasks import Asked, SetTask, TaskOptions, list_tasks, register_task
from clipfast.eval.tasks.limits import drawn
from clipfast.eval.tasks.probe import readable
from clipfast.eval.tasks.registry import _BUILDERS as TASKS
from clipfast.eval.zeroshot import classify
from clipfast.preprocessing import Preprocessing
from tests.engine.test_evaluate import Engine, made
from tests.eval.tiny import picture, write_pictures
from tests.ranks import run_ranks

pytestmark = pytest.mark.needs("nvidia.dali")
CLASSES = ("bird", "cat", "fire_truck")
TRAIN, TEST = 7, 5


def write_sets(folder):
    """A labelled set of two splits, and a captioned one."""
    for split, count in (("train", TRAIN), ("test", TEST)):
        write_pictures(folder / "animals" / split, dict.fromkeys(CLASSES, count))
    (folder / "seen").mkdir()
    with (folder / "seen.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "caption"])
        for i in range(7):
            (folder / "seen" / f"{i}.png").write_bytes(picture(100 + i))
            rows.writerows([f"seen/{i}.png", f"{words} {i}"] for words in ("a view", "picture"))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


def evaluations(*tasks, train=("sample/noto",), **options):
    options = {"eval_batch_size": 4} | options
    data = DataConfig(train=train, eval_batch_size=options.pop("eval_batch_size"))
    return Evaluations(made(data=data, eval=EvaluationConfig(tasks=tasks, **options)))


def plain_encoder(engine):
    return ImageEncoder(engine.module, Preprocessing(64), 4)


def test_tasks_find_what_the_commands_find(place, process_group, tmp_path):
    animals = f"{place}/animals"
    engine, seen = Engine(), []
    engine.module.train()
    ours = evaluations(
        *(f"{task}={animals}" for task in ("zeroshot", "probe", "fewshot")),
        f"retrieval={place}/seen.csv",
        shots=(1, 2),
    )
    measured = ours.run(engine, seen.append)
    assert engine.module.training
    names = ["retrieval", "zeroshot", "probe", "fewshot", "retrieval-tasks"]
    assert list(measured) == names
    assert len(seen) == 4
    scalars = {name: value for one in seen for name, value in one.scalars.items()}

    encoder = plain_encoder(engine)
    test, train = (open_set(animals, split=split) for split in ("test", "train"))
    found = classify(encoder, test)
    head = "eval/animals/zeroshot"
    assert scalars[f"{head}/acc1"] == found.main.metrics["acc1"]
    low, high = found.main.intervals["acc1"]
    assert (scalars[f"{head}/acc1_low"], scalars[f"{head}/acc1_high"]) == (low, high)
    assert scalars[f"{head}/log_loss"] == pytest.approx(found.main.metrics["log_loss"], abs=1e-5)
    assert 0 < scalars[f"{head}/share"] < 1
    assert 0 <= scalars[f"{head}/waited"] < scalars[f"{head}/seconds"]

    sides = [readable(one, encoder.images(one, "penultimate")) for one in (train, test)]
    probe = linear_probe(*sides, classnames=test.classnames)
    assert scalars["eval/animals/probe/lp_acc1"] == probe.accuracy
    assert scalars["eval/animals/fewshot/zeroshot_accuracy"] == found.main.metrics["acc1"]
    assert "eval/animals/fewshot/prior_accuracy_2_shot" in scalars
    assert scalars["eval/seen/retrieval/text_retrieval_recall@10"] <= 1
    assert f"top-1 {found.main.metrics['acc1']:.2%} ({low:.2%}" in seen[0].lines[0]
    assert "% of the run so far" in seen[0].lines[-1]
    assert "waited" not in seen[0].lines[-1]
    assert ours.summary(measured)[0] == seen[0].lines[0]

    pictures = ours.draw(measured, tmp_path, tasks_alone=True)
    assert [path.name for path in pictures] == ["zeroshot.png", "fewshot.png"]
    assert all(path.stat().st_size > 10_000 for path in pictures)


def test_results_are_files_that_reports_read(place, process_group, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = evaluations(f"zeroshot={place}/animals")
    (entry,) = (measured := ours.run(Engine(), lambda one: None))["zeroshot"]
    (path,) = ours.write(measured)
    found = json.loads(path.read_text())
    assert path.parent.name == "results"
    assert path.name == "animals_ViT-tiny_zeroshot_classification_en.json"
    assert found["metrics"]["acc1"] == entry.scalars["eval/animals/zeroshot/acc1"]
    assert (found["images"], found["split"]) == (len(CLASSES) * TEST, "test")
    run = path.parent.parent
    file = ResultFile(path.parent, "animals", "ViT-tiny", f"runs/{run.name}", found["task"])
    assert file.existing() == found
    assert len(list(path.parent.glob("examples/*/*.jpg"))) == len(found["examples"]) == 12


def test_sets_have_words_splits_limits_and_names_of_their_own(place, process_group, tmp_path):
    (tmp_path / "prompts.txt").write_text("a drawing of a {c}.\n{c}\n")
    (tmp_path / "names.txt").write_text("bird\ncat\nengine\n")
    (tmp_path / "more.txt").write_text("a {c}.\n")
    animals = f"{place}/animals"
    ours = evaluations(
        f"zeroshot={animals}",
        f"zeroshot:other={animals}",
        limit=4,
        templates={"animals": f"{tmp_path}/prompts.txt", "other": f"{tmp_path}/more.txt"},
        classnames={"other": f"{tmp_path}/names.txt"},
        splits={"other": "train"},
    )
    sets = ours._by_name["zeroshot"].sets
    assert sets["animals"].templates == ("a drawing of a {c}.", "{c}")
    assert sets["other"].classnames == ("bird", "cat", "engine")
    assert (sets["animals"].split, sets["other"].split) == ("test", "train")
    assert [len(one) for one in sets.values()] == [4, 4]
    first, second = ours.run(Engine(), lambda one: None)["zeroshot"]
    assert "eval/other/zeroshot/acc1" in second.scalars
    assert "on 4 images" in first.lines[0]


def test_a_part_of_a_set_is_the_same_images_with_what_belongs_to_them(place):
    assert drawn(5, 0).tolist() == drawn(5, 9).tolist() == [0, 1, 2, 3, 4]
    places = drawn(15, 6)
    assert len(set(places.tolist())) == 6
    assert places.tolist() == sorted(places.tolist()) == drawn(15, 6).tolist()
    whole = open_set(f"{place}/animals")
    part = whole.take(places)
    assert part.labels.tolist() == whole.labels[places].tolist()
    assert part.encoded(2) == whole.encoded(int(places[2]))
    captioned = open_captions(f"{place}/seen.csv")
    part = captioned.take(drawn(7, 3))
    assert (len(part), len(part.captions)) == (3, 6)
    for caption, image in zip(part.captions, part.image_of.tolist(), strict=True):
        number = int(caption.split()[-1])
        assert part.encoded(image) == captioned.encoded(number)


@pytest.mark.parametrize(
    ("tasks", "options", "why"),
    [
        (["zeroshot={}/nothing"], {}, r"--eval\.tasks zeroshot=.*/nothing: .* does not exist"),
        (["zeroshot=cifar1:{}"], {}, "there is no data set 'cifar1'. Did you mean 'cifar10'"),
        (["zeroshot"], {}, r"--eval\.tasks zeroshot: say what it is measured on, zeroshot=SET"),
        (["zero={}/animals"], {}, "no such task. Did you mean 'zeroshot'"),
        (["zeroshot:={}"], {}, "expected TASK=SET or TASK:NAME=SET"),
        (["zeroshot={0}/animals", "zeroshot={0}/animals"], {}, "is a set 'animals' of zeroshot al"),
        (["zeroshot={}/seen.csv"], {}, "seen"),
        (["retrieval={}/animals"], {}, r"--eval\.tasks retrieval=.*/animals: "),
        (["fewshot={}/animals"], {"shots": (16,)}, r"--eval\.tasks fewshot=.*7"),
        (["zeroshot={}/animals"], {"templates": {"animals": "{}/bad.txt"}}, r"bad\.txt.*slot"),
        (["zeroshot={}/animals"], {"templates": {"cats": "{}/bad.txt"}}, r"templates cats: no set"),
        (["zeroshot={}/animals"], {"splits": {"animals": "val"}}, "val"),
        (
            ["zeroshot={}/animals"],
            {"classnames": {"animals": "{}/few.txt"}},
            r"there are 2 class names .* \(--eval\.classnames\)\. Given were classnames .*few\.txt",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_at_the_start(place, tasks, options, why):
    (place / "bad.txt").write_text("a photo of a thing\n")
    (place / "few.txt").write_text("one\ntwo\n")
    tasks = [task.format(place) for task in tasks]
    options = {
        name: {k: v.format(place) for k, v in said.items()} if isinstance(said, dict) else said
        for name, said in options.items()
    }
    with pytest.raises(ConfigError, match=why):
        evaluations(*tasks, **options)


def test_options_of_tasks_are_checked():
    with pytest.raises(ConfigError, match=r"--eval\.shots must be numbers of 1 or more"):
        EvaluationConfig(shots=())
    with pytest.raises(ConfigError, match=r"--eval\.limit"):
        EvaluationConfig(limit=-1)
    with pytest.raises(ConfigError, match=r"--eval\.every"):
        EvaluationConfig(every=-1)


def test_random_pairs_are_measured_on_nothing(place):
    assert evaluations("zeroshot=/nowhere", train=("synthetic",))._by_name == {}


class Ends(Evaluation):
    """Measures without data."""

    def run(self, encoder):
        return [Measured(scalars={"eval/ends": 1.0}, lines=["ends"])]


class Sizes(SetTask):
    """Somebody's task: how many images a set has."""

    name, result_task = "sizes", "sizes"

    def open(self, source, split, words):
        return open_set(source, split=split)

    def encode(self, encoder, opened):
        return [lambda: len(opened)], encoder.images(opened).shape[1]

    def finish(self, opened, kept, done):
        from clipfast.eval.tasks import Found

        return Found(metrics={"images": done[0], "width": kept}, lines=["sizes"])


def test_tasks_and_evaluations_of_a_user_fit(place, process_group):
    register("ends", lambda data: Ends())
    register_task("sizes", Sizes)
    try:
        assert "sizes" in list_tasks()
        with pytest.raises(ValueError, match="a task 'sizes' already"):
            register_task("sizes", Sizes)
        ours = evaluations("ends", f"sizes={place}/animals")
        seen = []
        ours.run(Engine(), seen.append)
        assert seen[0].scalars == {"eval/ends": 1.0}
        assert seen[1].scalars["eval/animals/sizes/images"] == len(CLASSES) * TEST
        floors = evaluations("ends", floors={"eval/ends": 2.0}).below_floors({"ends": seen[:1]})
        assert floors == ["eval/ends is 1.000, below its floor of 2"]
    finally:
        del EVALUATIONS["ends"], TASKS["sizes"]


def test_a_signal_ends_a_task_between_two_batches(place):
    class Stop(Exception):
        pass

    def between():
        asked.append(1)
        if len(asked) == 3:
            raise Stop

    asked, engine = [], Engine()
    engine.module.train()
    ours = evaluations(f"zeroshot={place}/animals")
    ours._by_name = {"zeroshot": ours._by_name["zeroshot"]}
    with pytest.raises(Stop):
        ours.run(engine, lambda one: None, between)
    assert engine.forwards == 2
    assert engine.module.training


def test_words_of_a_task_are_read():
    assert Asked.parse("zeroshot=cifar10:/a=b") == Asked("zeroshot", "", "cifar10:/a=b")
    assert str(Asked.parse("probe:mine=x")) == "probe:mine=x"
    assert TaskOptions().of_sets() == {
        "--eval.classnames": {},
        "--eval.templates": {},
        "--eval.splits": {},
    }


def test_features_of_the_engine_before_the_projection_are_those_of_the_model(place):
    from clipfast.engine.encoder import RunEncoder

    engine = Engine()
    engine.eval()
    animals = open_set(f"{place}/animals")
    ours = RunEncoder(engine, made(data=DataConfig(train=("sample/noto",)))).sets()
    for layer in ("projected", "penultimate"):
        theirs = plain_encoder(engine).images(animals, layer)
        assert torch.allclose(ours.images(animals, layer), theirs, atol=1e-5)
    texts = ["a cat", "a dog", "a cat"]
    assert torch.allclose(ours.texts(texts), plain_encoder(engine).texts(texts), atol=1e-5)
    assert ours.scale == pytest.approx(1 / 0.07)


def _four(place):
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    data = DataConfig(train=("sample/noto",), eval_batch_size=4)
    wanted = EvaluationConfig(tasks=(f"zeroshot={place}/animals",), limit=3)
    engine, seen = Engine(), []
    Evaluations(made(ranks, rank, data=data, eval=wanted)).run(engine, seen.append)
    told = {name: value for name, value in seen[0].scalars.items() if "acc" in name}
    return [told, engine.forwards, seen[0].lines[-1]]


@pytest.mark.slow
def test_ranks_without_an_image_make_as_many_forwards(place):
    (alone,) = run_ranks(1, _four, place)
    four = run_ranks(4, _four, place)
    assert [found for found, _, _ in four] == [alone[0]] * 4
    # Three images and three texts: a forward each, where there is nothing of them too.
    assert [forwards for _, forwards, _ in four] == [2] * 4
    assert "a rank waited " in four[0][2]


def _differs(place):
    rank = torch.distributed.get_rank()
    found = []
    for task in ("zeroshot=" + ("nothing", f"{place}/animals")[rank], f"zeroshot:a={place}/{rank}"):
        wanted = EvaluationConfig(tasks=(task,))
        try:
            Evaluations(made(2, rank, data=DataConfig(train=("sample/noto",)), eval=wanted))
        except ConfigError as error:
            found.append(str(error))
    return found


@pytest.mark.slow
def test_a_set_that_one_rank_lacks_or_has_otherwise_is_refused_on_all(place):
    for rank in range(2):
        write_pictures(place / str(rank) / "test", {"cat": 2, "dog": 1 + rank})
    first, second = run_ranks(2, _differs, place)
    assert "'nothing' does not exist" in first[0]
    assert first[0].startswith("--eval.tasks zeroshot=nothing: ")
    assert second[0].startswith("rank 0 on ")
    assert first[0] in second[0]
    for told in (first[1], second[1]):
        assert "--eval.tasks zeroshot=a" in told
        assert "3 images, 2 classes" in told
        assert "4 images, 2 classes" in told


def test_a_rank_that_fits_says_that_it_goes_on(place, process_group, monkeypatch):
    from clipfast.engine import progress

    marks = []
    monkeypatch.setattr(progress, "again", lambda: marks.append(1))
    ours = evaluations(f"probe={place}/animals")
    ours._by_name = {"probe": ours._by_name["probe"]}
    ours.run(Engine(), lambda one: None)
    # Of every pass of every fit; batches are asked for by the caller of ``run``.
    assert len(marks) > 15


def test_how_often_to_measure_has_its_old_name_too(caplog):
    assert Config().evaluate_every == 0
    old = Config(logging=LoggingConfig(eval_every_steps=5))
    assert old.evaluate_every == 5
    assert parse(old, ["--eval.every", "0"]).evaluate_every == 0
    assert parse(old, ["--logging.eval-every-steps", "7"]).evaluate_every == 7
    assert "--logging.eval-every-steps is now --eval.every; the old name goes" in caplog.text
    asked = ["--eval.tasks", "zeroshot=a", "probe=b", "--eval.templates", "a", "f.txt"]
    found = parse(Config(), asked).eval
    assert (found.tasks, found.templates) == (("zeroshot=a", "probe=b"), {"a": "f.txt"})
    assert not [each for each in differences(plain(Config()), old) if each.changes_training]
