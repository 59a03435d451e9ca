"""The catalogue of data sets and the lists of words that come with the package."""

import ast
from pathlib import Path

import pytest
from PIL import Image

from clipfast.eval.sets import open_captions, open_set
from clipfast.eval.sets.catalogue import CATALOGUE, entry_of, list_sets, plain_name
from clipfast.eval.sets.wordlists import classnames_of, folders_of, list_words, templates_of

ROOT = Path(__file__).resolve().parents[3]


def folders(path, names):
    for name in names:
        (path / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(path / name / "0.png")
    return path


def test_catalogue_has_the_papers_sets_and_the_seven_shifts():
    assert len(list_sets("paper")) == 27
    assert len(list_sets("shift")) == 7
    sized = [CATALOGUE[name] for name in list_sets("paper")]
    assert all(entry.train_size and entry.test_size and entry.classes for entry in sized)
    assert all(CATALOGUE[name].train_size is None for name in list_sets("shift"))


def test_catalogue_metrics_are_those_of_table_9():
    other = {n: e.metric for n, e in CATALOGUE.items() if e.group == "paper" and e.metric != "acc1"}
    per_class = "mean_per_class_recall"
    assert other == {
        **dict.fromkeys(("fgvc_aircraft", "pets", "caltech101", "flowers"), per_class),
        "voc2007": "mean_average_precision_11_points",
        "kinetics700": "mean_acc1_acc5",
        "hateful_memes": "roc_auc",
    }


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_catalogue_words_fit_the_number_of_classes(entry):
    for templates in (entry.templates, templates_of(entry.paper_templates_list or "imagenet1k")):
        assert templates
        assert all("{c}" in template for template in templates)
    if entry.classnames is not None:
        assert len(entry.classnames) == entry.classes
    if entry.folders is not None:
        assert len(entry.folders) == entry.classes


@pytest.mark.parametrize("kind", ["classnames", "templates", "folders"])
def test_word_lists_are_stripped_and_named_in_their_licence(kind):
    licence = (ROOT / "clipfast/eval/sets/words/LICENSES.md").read_text()
    for name in list_words(kind):
        words = {"classnames": classnames_of, "templates": templates_of, "folders": folders_of}
        assert all(word == word.strip() for word in words[kind](name))
        if kind == "classnames":
            assert name in licence


def test_word_lists_have_the_imagenet_prompts():
    every, best = templates_of("imagenet1k"), templates_of("imagenet1k_best7")
    assert (len(every), len(best)) == (80, 7)
    assert set(best) < set(every)
    with pytest.raises(ValueError, match=r"no list of templates 'imagenet1'.*Did you mean"):
        templates_of("imagenet1")


def test_entry_of_takes_the_prefixes_of_clip_benchmark():
    for name in ("cifar10", "vtab/cifar10", "wds/vtab/cifar10", "WDS/cifar10"):
        assert entry_of(name).name == "cifar10"
    # VTAB sorts the classes of Caltech-101, and torchvision does not.
    assert entry_of("caltech101").classnames[0] == "background"
    assert entry_of("wds/vtab/caltech101").classnames[0] == "accordion"
    assert plain_name("wds/mine") == "mine"
    with pytest.raises(ValueError, match=r"no data set 'cifar12'.* Did you mean 'cifar1"):
        entry_of("cifar12")


def test_catalogue_shifts_take_the_names_of_their_own_classes():
    imagenet, shift = entry_of("imagenet1k"), entry_of("imagenet-a")
    expected = [imagenet.classnames[imagenet.folders.index(f)] for f in shift.folders]
    assert list(shift.classnames) == expected


def test_open_set_finds_the_class_of_a_published_folder(tmp_path, caplog):
    # Two of ImageNet's folders, in the order of its labels 1 and 0.
    opened = open_set(f"imagenet1k:{folders(tmp_path / 'val', ['n01443537', 'n01440764']).parent}")
    assert opened.labels.tolist() == [0, 1]
    assert "there is no split 'test', so 'val' is taken" in caplog.text
    assert opened.classnames == classnames_of("imagenet1k")
    assert len(opened.templates) == 80
    with pytest.raises(ValueError, match="has the splits val; got 'test'"):
        open_set(f"food101:{tmp_path}")
    opened = open_set(f"wds/imagenet-r:{folders(tmp_path / 'r', ['n01484850'])}")
    assert (opened.name, opened.labels.tolist()) == ("wds/imagenet-r", [1])


def test_open_set_finds_classes_by_their_names_in_any_order(tmp_path):
    opened = open_set(f"food101:{folders(tmp_path / 'f', ['waffles', 'Apple_Pie'])}")
    # Capitals come first.
    assert opened.labels.tolist() == [0, 100]


def test_open_set_sorts_numerals_by_their_number(tmp_path):
    names = [str(i) for i in range(1000)]
    opened = open_set(f"imagenetv2:{folders(tmp_path / 'v', names)}")
    assert opened.labels.tolist() == list(range(1000))


def test_open_set_refuses_numerals_that_may_mean_others(tmp_path):
    # SVHN's own labels are 1 to 10, where 10 is the digit zero; its names begin with zero.
    with pytest.raises(ValueError, match="which class is which cannot be told"):
        open_set(f"svhn:{folders(tmp_path / 's', [str(i) for i in range(1, 11)])}")
    with pytest.raises(ValueError, match="which class is which cannot be told"):
        open_set(f"clevr_count_all:{folders(tmp_path / 'c', [str(i) for i in range(3, 11)])}")
    opened = open_set(f"flowers:{folders(tmp_path / 'f', [str(i) for i in range(1, 103)])}")
    assert opened.labels.tolist() == list(range(102))


def test_open_set_and_open_captions_refuse_each_others_sets(tmp_path):
    with pytest.raises(ValueError, match="'flickr30k' has captions and no classes"):
        open_set(f"flickr30k:{tmp_path}")
    with pytest.raises(ValueError, match="'wds/mnist' has classes and no captions"):
        open_captions(f"wds/mnist:{tmp_path}")


def test_open_set_refuses_folders_whose_classes_cannot_be_told(tmp_path):
    place = folders(tmp_path / "f", [f"kind{i}" for i in range(10)])
    with pytest.raises(ValueError, match="which class is which cannot be told"):
        open_set(f"cifar10:{place}")
    lines = tmp_path / "names.txt"
    lines.write_text("\n".join(f"name {i}" for i in range(10)))
    assert open_set(f"cifar10:{place}", classnames=lines).classnames[9] == "name 9"
    with pytest.raises(ValueError, match=r"has 10 classes .* and there are 101 class names"):
        open_set(f"food101:{place}")


def test_open_set_orders_labels_by_a_list_that_names_the_folders(tmp_path):
    lines = tmp_path / "names.txt"
    lines.write_text("zebra\ncat\ndog\n")
    opened = open_set(str(folders(tmp_path / "f", ["cat", "dog", "zebra"])), classnames=lines)
    assert [opened.classnames[i] for i in opened.labels] == ["cat", "dog", "zebra"]


def test_open_set_takes_lists_by_their_name(tmp_path):
    place = folders(tmp_path / "f", ["cat", "dog"])
    opened = open_set(str(place), templates=Path("imagenet1k_best7"), classnames=Path("cifar10"))
    assert (len(opened.templates), opened.labels.tolist()) == (7, [3, 5])


def test_open_set_names_unknown_names_and_missing_places():
    with pytest.raises(ValueError, match=r"no data set 'food10'\. Did you mean 'food101'"):
        open_set("food10:data")
    with pytest.raises(ValueError, match="say where the data set lies: food101:FOLDER"):
        open_set("food101")
    with pytest.raises(ValueError, match="'/none' does not exist"):
        open_set("food101:/none")


@pytest.mark.parametrize(
    "folder", ["eval/sets/words", "eval/report/assets", "eval/robustness/mappings"]
)
def test_files_of_evaluation_are_in_the_wheel(folder):
    tree = ast.parse((ROOT / "setup.py").read_text())
    (data,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGE_DATA"
    )
    package = ROOT / "clipfast"
    shipped = {path for pattern in data["clipfast"] for path in package.glob(pattern)}
    wanted = set((package / folder).rglob("*.*"))
    assert wanted
    assert wanted <= shipped


def test_emoji_sample_is_a_set_of_nine_groups(caplog):
    noto, twemoji = open_set("emoji:sample/noto"), open_set("sample/twemoji")
    assert len(noto) == len(twemoji) == entry_of("emoji").test_size
    assert "sample/noto: 5 drawings of components are left out" in caplog.text
    # Both artists drew the same concepts, in one order.
    assert noto.labels.tolist() == twemoji.labels.tolist()
    assert noto.classnames == twemoji.classnames == classnames_of("emoji")
    assert noto.templates == templates_of("emoji")
    assert (noto.name, twemoji.name) == ("emoji", "emoji-twemoji")
    assert len(open_set("emoji:sample")) == 2 * len(noto)
    # The last drawing is the flag of Wales.
    last = [noto.classnames[label] for label in noto.labels[-3:]]
    assert last == ["flag"] * 3
    with pytest.raises(ValueError, match="'emoji' has classes and no captions"):
        open_captions("emoji:sample/noto")
