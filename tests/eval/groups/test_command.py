"""``python -m clipfast.eval groups``."""

import json

import pytest

from clipfast.eval.__main__ import main
from tests.eval.tiny import picture, tiny_weights

pytestmark = pytest.mark.needs("nvidia.dali")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    tiny_weights(folder).rename(folder / "w.safetensors")
    lines = ["path,label,gender,age"]
    for i in range(11):
        (folder / f"{i}.png").write_bytes(b"nothing" if i == 4 else picture(i))
        lines.append(f"{i}.png,{'woman' if i % 2 else 'man'},{'fm'[i % 2]},{20 + 10 * (i % 3)}")
    (folder / "faces.csv").write_text("\n".join(lines) + "\n")
    (folder / "plain.csv").write_text("path,label\n0.png,a\n1.png,b\n")
    return folder


@pytest.fixture
def out(made, monkeypatch, tmp_path):
    monkeypatch.chdir(made)
    return tmp_path / "res"


def words(out, *more):
    return [
        *("groups", "--weights", "w.safetensors", "--data", "faces.csv"),
        *("--out", str(out), "--cache", "classifiers", *more),
    ]


def test_groups_writes_each_column_and_label_set(out, capsys):
    added = ["--add-classes", "crime=thief,criminal", "beast=hen", "--more-classes", "child=child"]
    assert main(words(out, "--by", "gender", "age", "gender,age", *added)) == 0
    path = out / "faces_ViT-tiny_groups_en.json"
    found = json.loads(path.read_text())
    assert found["task"] == "groups"
    assert found["images"] == 10
    assert list(found["unreadable"]) == ["4"]
    assert [one["value"] for one in found["groups"]["gender"]] == ["f", "m"]
    assert [one["value"] for one in found["groups"]["age"]] == [20, 30, 40]
    assert len(found["groups"]["gender,age"]) == 6
    for groups in found["groups"].values():
        right = sum(one["images"] * one["metrics"]["acc1"] for one in groups)
        assert right / 10 == pytest.approx(found["metrics"]["acc1"])
        assert all(one["interval"][0] <= one["metrics"]["acc1"] for one in groups)
    first, second = found["label_sets"]
    assert list(first["added"]) == ["crime", "beast"]
    assert list(second["added"]) == ["crime", "beast", "child"]
    for name in ("crime", "beast"):
        # A further class takes images from others, never gives them.
        assert second["all"]["shares"][name] <= first["all"]["shares"][name]
    said = capsys.readouterr().out
    assert "gender: largest gap" in said
    assert "with added classes (crime: thief, criminal; beast: hen)" in said
    assert "1 image(s) do not decode" in said
    same = ["--by", "gender", "age", "gender,age", *added, "--skip-existing"]
    assert main(words(out, *same)) == 0
    assert "is there already" in capsys.readouterr().out
    assert main(words(out, "--skip-existing")) == 1
    assert "is of other options (--by, added classes)" in capsys.readouterr().err


def test_groups_take_each_column_by_default(out):
    assert main(words(out, "--more-classes", "child=child")) == 0
    found = json.loads((out / "faces_ViT-tiny_groups_en.json").read_text())
    assert list(found["groups"]) == ["gender", "age"]
    assert [list(one["added"]) for one in found["label_sets"]] == [["child"]]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--by hair", "faces has no column 'hair'"),
        ("--data plain.csv", "plain has no columns that divide its images"),
        ("--add-classes a=Man", "class 'Man' of category 'a' is there already"),
        ("--add-classes a=b --more-classes a=c", "category 'a' is one of --add-classes"),
    ],
)
def test_groups_says_what_is_wrong(out, capsys, more, said):
    assert main(words(out, *more.split())) == 1
    assert said in capsys.readouterr().err
    assert not out.exists()
