"""``python -m clipfast.eval all``: many sets, tasks and models in one call."""

import json
import os
from collections import Counter

import pytest
import torch.distributed as dist

import clipfast.eval
from clipfast.eval.__main__ import main
from clipfast.eval.decoding import SetDecoder
from clipfast.eval.many import Job, find_sets, jobs_of_sets, jobs_of_table
from clipfast.eval.many.weights import folder_names
from tests.eval.tiny import tiny_weights, write_pictures
from tests.ranks import run_ranks

COUNTS = {"bird": 4, "cat": 3, "dog": 5, "fire_truck": 3, "hare": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with weights and two sets, of which one has a train split and a broken image."""
    folder = tmp_path_factory.mktemp("all")
    tiny_weights(folder).rename(folder / "a.safetensors")
    for split in ("train", "test"):
        write_pictures(folder / "animals" / split, COUNTS)
    (folder / "animals" / "test" / "cat" / "1.png").write_bytes(b"no image")
    write_pictures(folder / "plants", {"fern": 2, "moss": 1})
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def results_of(folder):
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.fixture
def decoded(monkeypatch):
    """How many images of each set went through the decoder."""
    counts = Counter()
    begin = SetDecoder.__init__

    def counting(self, images, part, *arguments):
        counts[images.name, images.split] += len(part)
        begin(self, images, part, *arguments)

    monkeypatch.setattr(SetDecoder, "__init__", counting)
    return counts


@pytest.mark.needs("nvidia.dali")
def test_all_encodes_a_set_once_and_finds_what_the_tasks_find(here, tmp_path, decoded, capsys):
    out = tmp_path / "out"
    words = ["--weights", "a.safetensors", "--data", "animals"]
    assert main(["all", *words, "--tasks", "zeroshot", "probe", "--out", str(out)]) == 0
    assert decoded == {("animals", "test"): 18, ("animals", "train"): 18}
    said = capsys.readouterr().out
    assert "[2/2] a.safetensors: probe of animals" in said
    assert "2 of 2 tasks" in said
    assert (out / "report" / "index.html").is_file()
    for task in ("zeroshot", "probe"):
        assert main([task, *words, "--out", str(tmp_path / "alone")]) == 0
    together, alone = results_of(out), results_of(tmp_path / "alone")
    assert together.keys() == alone.keys()
    for name, found in together.items():
        assert found["metrics"] == alone[name]["metrics"]
        assert found.get("unreadable") == alone[name].get("unreadable")
    zeroshot = together["animals_ViT-tiny_zeroshot_classification_en.json"]
    assert list(zeroshot["unreadable"]) == ["5"]


@pytest.mark.needs("nvidia.dali")
def test_all_encodes_both_layers_of_few_shots_at_once(here, tmp_path, decoded):
    (tmp_path / "sets.csv").write_text("data,tasks,shots,seeds\nanimals,fewshot,1 2,0\n")
    words = ["--weights", "a.safetensors", "--table", str(tmp_path / "sets.csv")]
    assert main(["all", *words, "--out", str(tmp_path / "out")]) == 0
    assert decoded == {("animals", "test"): 18, ("animals", "train"): 18}
    (found,) = results_of(tmp_path / "out").values()
    assert found["probe"]["shots"] == [1, 2]


@pytest.mark.needs("nvidia.dali")
def test_all_goes_on_where_a_set_or_weights_fail(here, tmp_path, capsys):
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    weights = ["a.safetensors", str(tmp_path / "bad.safetensors")]
    words = ["--weights", *weights, "--data", "absent", "plants", "--out", str(tmp_path / "out")]
    assert main(["all", *words]) == 1
    said = capsys.readouterr()
    assert "error: 3 of 4 tasks failed, the others are done:" in said.err
    assert "zeroshot of absent: 'absent' does not exist" in said.err
    assert "bad.safetensors: " in said.err
    assert "1 of 4 tasks" in said.out
    (found,) = results_of(tmp_path / "out" / "a").values()
    assert found["dataset"] == "plants"
    assert (tmp_path / "out" / "report" / "results.csv").is_file()


@pytest.mark.needs("nvidia.dali")
def test_all_skips_what_is_there_and_averages_over_the_papers_sets(here, tmp_path, capsys):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "vtab").mkdir()
    (tmp_path / "root" / "notes").mkdir()
    names = {"bird": 1, "dog": 2}
    write_pictures(tmp_path / "root" / "vtab" / "dtd", names)
    (tmp_path / "root" / "vtab" / "dtd" / "classnames.txt").write_text("bird\ndog\n")
    options = {"weights": "a.safetensors", "data_root": tmp_path / "root", "out": tmp_path / "out"}
    found = clipfast.eval.run("all", **options)
    assert found["tasks"] == 1
    (path,) = (tmp_path / "out").glob("*.json")
    acc1 = json.loads(path.read_text())["metrics"]["acc1"]
    assert f"zero-shot: {acc1:.2%} on average over 1 of the paper's 27 sets" in str(found)
    before = path.stat().st_mtime_ns
    said = capsys.readouterr().out
    assert "1 folders have no name of the catalogue and are left out: notes" in said
    clipfast.eval.run("all", **options, skip_existing=True)
    assert path.stat().st_mtime_ns == before
    assert "is there already" in capsys.readouterr().out


def on_a_rank(folder, out):
    rank = dist.get_rank()
    os.environ.update({"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)})
    words = ["--weights", f"{folder}/a.safetensors", "--data", f"{folder}/absent"]
    words += [f"{folder}/animals", "--tasks", "zeroshot", "probe", "--out", str(out)]
    return main(["all", *words])


@pytest.mark.needs("nvidia.dali")
def test_all_on_two_ranks_equals_one(place, tmp_path):
    assert run_ranks(2, on_a_rank, place, tmp_path / "two") == [1, 1]
    words = ["--weights", f"{place}/a.safetensors", "--data", f"{place}/animals"]
    words += ["--tasks", "zeroshot", "probe", "--out", str(tmp_path / "one")]
    assert main(["all", *words]) == 0
    one, two = results_of(tmp_path / "one"), results_of(tmp_path / "two")
    assert len(one) == 2
    for name, found in one.items():
        assert found["metrics"] == pytest.approx(two[name]["metrics"], rel=1e-6)
        assert found.get("per_class") == two[name].get("per_class")


def test_jobs_follow_the_catalogue_where_no_task_is_named():
    data = ["cifar10:a", "mscoco_captions:b", "plants"]
    assert [job.task for job in jobs_of_sets(data, None)] == ["zeroshot", "retrieval", "zeroshot"]
    both = jobs_of_sets(data, ["retrieval", "probe"])
    assert [(job.data, job.task) for job in both] == [
        ("cifar10:a", "probe"),
        ("mscoco_captions:b", "retrieval"),
        ("plants", "retrieval"),
        ("plants", "probe"),
    ]


def test_jobs_of_a_table_have_options_of_their_own(tmp_path):
    path = tmp_path / "sets.csv"
    path.write_text(
        "data,tasks,split,shots,skip-existing\n"
        'pets:a b,"fewshot, probe",val,1 2,yes\n'
        "flickr30k:f,,,,no\n"
    )
    few, probe, captions = jobs_of_table(path, None)
    options = {"split": "val", "shots": "1 2", "skip-existing": "yes"}
    assert few == Job("pets:a b", "fewshot", options)
    assert probe.task == "probe"
    assert captions == Job("flickr30k:f", "retrieval", {"skip-existing": "no"})
    words = ["--data", "pets:a b", "--split", "val", "--shots", "1", "2", "--skip-existing"]
    assert few.words({"skip-existing"}) == words
    assert captions.words({"skip-existing"}) == ["--data", "flickr30k:f"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("set\nplants\n", "has no column 'data'"),
        ("data,tasks\n,zeroshot\n", "column 'data' is empty"),
        ("data,tasks\nplants,zeroshots\n", "no task 'zeroshots'.*Did you mean 'zeroshot'"),
        ("data,splitt\nplants,val\n", "plants, zeroshot: unrecognized arguments: --splitt val"),
        ("data,examples\nplants,few\n", "plants, zeroshot: .*invalid int value: 'few'"),
    ],
)
def test_wrong_tables_are_refused_before_any_work(here, tmp_path, table, words):
    (tmp_path / "sets.csv").write_text(table)
    with pytest.raises(ValueError, match=words):
        clipfast.eval.run(
            "all", weights="nothing", table=tmp_path / "sets.csv", out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_all_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to do: name sets with --data"):
        clipfast.eval.run("all", weights="nothing", out=tmp_path)
    with pytest.raises(ValueError, match=r"tasks must be one of .*; got 'zero'"):
        clipfast.eval.run("all", weights="nothing", data="plants", tasks=["probe", "zero"])


def test_find_sets_knows_the_names_that_folders_have(tmp_path):
    for name in ("Pets", "wds/vtab/dtd", "wds_vtab-svhn", "cifar-100-python", ".hidden", "mine"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    (tmp_path / "README.md").touch()
    found, others = find_sets(tmp_path)
    assert {name: path.name for name, path in found.items()} == {
        "cifar10": "cifar-10-python.tar.gz",
        "cifar100": "cifar-100-python",
        "dtd": "dtd",
        "pets": "Pets",
        "svhn": "wds_vtab-svhn",
    }
    assert others == [tmp_path / "mine"]
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(ValueError, match="are both cifar10: move one of them away"):
        find_sets(tmp_path)
    with pytest.raises(ValueError, match=r"no folder in .* has the name of a data set"):
        find_sets(tmp_path / "mine")


def test_folders_of_several_weights_have_names_of_their_own():
    assert folder_names(["runs/a/final.safetensors", "runs/b", "x/b.pt", "a"]) == {
        "runs/a/final.safetensors": "a",
        "runs/b": "b",
        "x/b.pt": "b-2",
        "a": "a-2",
    }
    with pytest.raises(ValueError, match="--weights a is named twice"):
        folder_names(["a", "a"])
