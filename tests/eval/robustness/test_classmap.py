"""Which classes of the reference a class of a shift is made of."""

import json
import re

import numpy as np
import pytest
import torch

from clipfast.eval.robustness import align, read_mapping
from clipfast.eval.robustness.classmap import _FOLDER
from clipfast.eval.sets import LabelledSet
from clipfast.eval.sets.catalogue import entry_of, list_sets
from tests.eval.tiny import picture

ANIMALS = ("rooster", "hen", "tabby cat", "beagle", "pug")


def named(name, classnames, several=False):
    count = len(classnames)
    labels = np.eye(count, dtype=bool) if several else np.arange(count)
    return LabelledSet(name, "test", tuple(classnames), ("{c}",), labels, lambda i: picture(i))


def imagenet():
    return named("imagenet1k", entry_of("imagenet1k").classnames)


def test_align_finds_a_subset_by_name():
    found = align(named("animals", ANIMALS), named("few", ("Pug", "tabby_cat")))
    assert found.members == ((4,), (2,))
    assert not found.is_coarse
    assert found.of_reference.tolist() == [-1, -1, 1, -1, 0]
    assert found.of_shift.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r"])
def test_align_finds_the_catalogues_shifts_by_their_folders(name):
    entry = entry_of(name)
    found = align(imagenet(), named(f"wds/{name}", entry.classnames))
    folders = entry_of("imagenet1k").folders
    assert [folders[label] for (label,) in found.members] == list(entry.folders)


def test_align_finds_folders_of_a_set_without_a_name():
    folders = entry_of("imagenet1k").folders
    found = align(imagenet(), named("mine", (folders[7], folders[3])))
    assert found.members == ((7,), (3,))


@pytest.mark.parametrize("name", ["imagenet-vid", "youtube-bb", "objectnet"])
def test_align_knows_the_members_of_coarser_shifts(name):
    mapping = read_mapping(_FOLDER / f"{name}.json")
    found = align(imagenet(), named(name, list(mapping)))
    assert found.is_coarse
    assert len(found) == sum(map(bool, mapping.values()))
    names = entry_of("imagenet1k").classnames
    members = {
        list(mapping)[label]: [names[one] for one in each]
        for label, each in zip(found.kept, found.members, strict=True)
    }
    some = {
        "imagenet-vid": ("domestic cat", "tabby cat"),
        "youtube-bb": ("zebra", "zebra"),
        "objectnet": ("alarm clock", "analog clock"),
    }
    of, member = some[name]
    assert member in members[of]
    classes = entry_of(name).classes
    assert classes is None or len(mapping) == classes


def test_mappings_have_their_licence_and_every_shift_has_an_answer():
    licence = (_FOLDER / "LICENSES.md").read_text()
    mapped = {path.stem for path in _FOLDER.glob("*.json")}
    assert all(name in licence for name in mapped)
    plain = {name for name in list_sets("shift") if entry_of(name).classnames is not None}
    assert mapped | plain == set(list_sets("shift"))


def test_align_leaves_out_classes_that_a_mapping_has_not():
    mapping = {"bird": ["hen", 0], "dog": ["pug", "beagle"], "cow": []}
    found = align(
        named("animals", ANIMALS), named("coarse", ("cow", "bird", "car", "dog")), mapping
    )
    assert found.kept == (1, 3)
    assert found.members == ((1, 0), (4, 3))
    assert found.of_shift.tolist() == [-1, 0, -1, 1]
    assert found.of_reference.tolist() == [0, 0, -1, 1, 1]


def test_pool_takes_the_best_member_of_each_class():
    mapping = {"bird": ["hen", "rooster"], "dog": ["pug", "beagle"]}
    found = align(named("animals", ANIMALS), named("coarse", ("dog", "bird")), mapping)
    torch.manual_seed(0)
    scores = torch.randn(7, 5, dtype=torch.float64)
    expected = torch.stack([scores[:, 3:].amax(1), scores[:, :2].amax(1)], 1)
    assert torch.equal(found.pool(scores), expected)
    # The largest probability of a class is that of its largest score.
    assert torch.equal(found.pool(scores.softmax(1)).argmax(1), expected.argmax(1))


@pytest.mark.parametrize(
    ("classes", "mapping", "words"),
    [
        (("car", "pug"), None, "1 of its classes ('car') are not among those of animals"),
        (("pug", "Pug"), None, "its classes are not among those of animals"),
        (("dog",), {"wolf": ["pug"]}, "none of its classes ('dog') is in the mapping"),
        (("dog",), {"dog": ["puk"]}, "no class 'puk', or several of this name. Did you mean 'pug'"),
        (("dog",), {"dog": [5]}, "label 5 is outside 0 to 4 of animals"),
        (("dog",), {"dog": [True]}, "animals has no class True"),
        (("a", "b"), {"a": ["pug"], "b": [4]}, "'pug' is named twice"),
    ],
)
def test_align_names_what_does_not_fit(classes, mapping, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        align(named("animals", ANIMALS), named("shift", classes), mapping)


@pytest.mark.parametrize("which", [0, 1])
def test_align_refuses_several_classes_per_image(which):
    sets = [named("animals", ANIMALS, which == i) for i in range(2)]
    with pytest.raises(ValueError, match="robustness needs one class per image"):
        align(*sets)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no mapping"),
        ("{}", "is no mapping"),
        ('{"a": "pug"}', "is no mapping"),
        ('{"a": [1.5]}', "is no mapping"),
        ('{"a": []}', "is no mapping"),
    ],
)
def test_read_mapping_names_what_is_none(tmp_path, text, words):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_mapping(tmp_path / "m.json")
    with pytest.raises(ValueError, match="cannot read"):
        read_mapping(tmp_path / "none.json")


def test_read_mapping_reads_names_and_labels(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"bird": ["hen", 0]}))
    assert read_mapping(tmp_path / "m.json") == {"bird": ["hen", 0]}
