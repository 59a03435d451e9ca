"""The report: one page and one table of all results in a folder."""

import copy
import csv
import json
import subprocess
from html.parser import HTMLParser

import pytest

import clipfast.eval
from clipfast.eval.__main__ import main
from clipfast.eval.report import read_results, write_report
from clipfast.eval.report.charts.axes import percent_ticks
from clipfast.eval.report.context import Context
from clipfast.eval.report.page import page
from clipfast.eval.report.scores import paper_average, score_of
from clipfast.eval.sets.catalogue import list_sets
from tests.eval.report.made import NASTY, every_task, write, zeroshot

NAMES = ["cat", "dog", NASTY, "fire truck"]
VOID = {"img", "input", "meta", "br"}
KNOWN = VOID | set(
    [
        "html",
        "head",
        "title",
        "style",
        "body",
        "header",
        "nav",
        "main",
        "section",
        "footer",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "a",
        "b",
        "small",
        "span",
        "code",
        "ul",
        "li",
        "div",
        "form",
        "label",
        "select",
        "option",
        "output",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "details",
        "summary",
        "figure",
        "figcaption",
        "svg",
        "path",
        "rect",
        "text",
        "script",
    ]
)


class Page(HTMLParser):
    """Elements with their attributes, and text; every element must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def page_of(folder):
    return Page(write_report(folder, folder / "report").page.read_text())


def test_page_loads_nothing_and_runs_no_name(tmp_path):
    every_task(tmp_path, NAMES)
    found = page_of(tmp_path)
    assert {tag for tag, _ in found.elements} == KNOWN - {"code", "ul", "li", "br"}
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href", "action", "srcset", "data", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,")), tag
    policy = found.named("meta")[1]["content"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(found.named("script")) == 1
    assert NASTY in found.text
    text = (tmp_path / "report" / "index.html").read_text()
    assert "http://" not in text.replace("http-equiv", "")
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_page_can_be_read_without_seeing_it(tmp_path):
    every_task(tmp_path, NAMES)
    found = page_of(tmp_path)
    assert found.named("html")[0]["lang"] == "en"
    for attributes in found.named("svg"):
        assert attributes.get("aria-hidden") == "true" or (
            attributes["role"] == "img" and attributes["aria-label"]
        )
    for attributes in found.named("img"):
        assert attributes["alt"]
    assert all("scope" in attributes for attributes in found.named("th"))
    tables = len(found.named("table"))
    labelled = [a for a in found.named("table") if a.get("aria-label")]
    assert tables == len(found.named("caption")) + len(labelled)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in found.named("a"):
        assert link["href"].removeprefix("#") in ids
    sections = [attributes["id"] for attributes in found.named("section")]
    assert sections == [
        *("summary", "matrix", "prompts", "classes", "fewshot", "robustness"),
        *("corruptions", "groups", "geolocation", "retrieval"),
    ]


def test_page_has_the_numbers_of_the_results(tmp_path):
    every_task(tmp_path, NAMES)
    found = page_of(tmp_path)
    results, _ = read_results(tmp_path)
    for result in results:
        assert f"{score_of(result).value:.1%}" in found.text
    classes = next(r for r in results if "per_class" in r.content).content
    for entry in classes["per_class"]:
        low, high = entry["interval"]
        assert f"{entry['recall']:.1%}" in found.text
        assert f"{low:.1%} to {high:.1%}" in found.text
    for words in (
        "RN101, imagenet-a: 5.0% (reference 78.0%)",
        "3.1 per class",
        "1 per class or fewer",
        "+21.0",
        "2,500 km",
        "56.0%",  # mean of fog over its severities
        "52.0%",
        "behind “a photo",
    ):
        assert words in found.text
    assert "From cat to 40 to 49: 10.0 points. Their intervals overlap." in found.text
    assert "animal (gorilla, ape)" in found.text
    assert len(found.named("img")) == 6
    assert found.text.count("\N{CHECK MARK}") == 6


def test_summary_names_models_as_shortly_as_it_can(tmp_path):
    for weights in ("runs/a/final.safetensors", "runs/b/final.safetensors"):
        write(tmp_path, "pets", "zeroshot_classification", {"acc1": 0.5}, pretrained=weights)
    write(tmp_path, "pets", "zeroshot_classification", {"acc1": 0.5}, model="RN50")
    text = page_of(tmp_path).text
    for label in ("ViT-B/32 a", "ViT-B/32 b", "RN50"):
        assert label in text
    assert "RN50 base" not in text


def test_results_of_clip_benchmark_are_read(tmp_path):
    # The keys of its own file, with a metric that is no number.
    metrics = {"acc1": 0.63, "acc5": 0.9, "mean_per_class_recall": float("nan"), "kind": "x"}
    (tmp_path / "cb.json").write_text(
        json.dumps(
            {
                "dataset": "wds/vtab/pets",
                "model": "ViT-B-32",
                "pretrained": "laion2b",
                "task": "zeroshot_classification",
                "metrics": metrics,
                "language": "en",
            }
        )
    )
    made = write_report(tmp_path, tmp_path / "out")
    (row,) = csv.DictReader(made.table.open(newline=""))
    assert list(row)[:5] == ["dataset", "model", "pretrained", "task", "language"]
    assert (row["acc1"], row["mean_per_class_recall"]) == ("0.63", "")
    assert row["model_fullname"] == "ViT-B-32 laion2b"
    # The catalogue's metric is undefined, so the usual one counts.
    assert (row["main_metric"], row["main_value"], row["file"]) == ("acc1", "0.63", "cb.json")
    assert "kind" not in row
    assert made.odd == ()


def test_files_that_are_no_results_are_named_and_counted(tmp_path, capsys):
    zeroshot(tmp_path / "deep" / "er", "pets", ["a", "b"])
    (tmp_path / "half.json").write_text('{"dataset": "pets", ')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"dataset": "pets", "model": "m", "task": "t"}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "x.json").write_text("{}")
    found = clipfast.eval.run("report", results=tmp_path)
    said = capsys.readouterr().out
    assert "1 result(s)" in said
    assert "4 file(s) or parts of them cannot be read" in said
    assert "other.json: it has no object 'metrics'" in said
    assert found["results"] == 1
    assert {path.rpartition("/")[2] for path in found["odd"]} == {
        *("half.json", "list.json", "other.json", "deep.json")
    }
    text = Page((tmp_path / "report" / "index.html").read_text()).text
    assert "list.json: it holds no object" in text


def test_report_of_nothing_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "absent")]) == 1
    assert "is no folder: name the one that evaluations wrote to" in capsys.readouterr().err
    (tmp_path / "x.json").write_text("{}")
    assert main(["report", str(tmp_path)]) == 1
    assert "1 JSON files are no results" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_damaged_parts_are_named_and_the_rest_is_shown(tmp_path):
    path = zeroshot(tmp_path, "cifar10", NAMES)
    content = json.loads(path.read_text())
    content["per_class"][1] = {"name": "dog"}
    content["confusion"] = [[1, 2], [3]]
    path.write_text(json.dumps(content))
    made = write_report(tmp_path, tmp_path / "report")
    assert [odd.why.partition(" (")[0] for odd in made.odd] == [
        "classes cannot be read",
        "the confusion matrix cannot be read",
    ]
    text = Page(made.page.read_text()).text
    assert "2 file(s) or parts of them" in text
    assert "Most confused classes" in text


def leaves(value, path=()):
    """Paths of all values inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in items:
        yield (*path, key)
        if isinstance(inside, dict | list):
            yield from leaves(inside, (*path, key))


@pytest.mark.parametrize("odd", [None, "x", -1e308, [[]], "NaN"], ids=repr)
def test_page_is_made_whatever_the_files_hold(tmp_path, odd):
    every_task(tmp_path / "whole", NAMES[:3])
    for file in (tmp_path / "whole").glob("*.json"):
        content = json.loads(file.read_text())
        if len(content.get("per_class", ())) > 5:
            continue
        paths = [path for path in leaves(content) if path[-1] not in ("dataset", "model", "task")]
        for path in paths[:: 1 + len(paths) // 8]:
            broken = copy.deepcopy(content)
            inside = broken
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = float("nan") if odd == "NaN" else odd
            folder = tmp_path / "broken"
            folder.mkdir(exist_ok=True)
            (folder / "one.json").write_text(json.dumps(broken))
            write(folder, "pets", "zeroshot_classification", {"acc1": 0.25})
            Page(page(Context(*read_results(folder)), folder))
            for made in folder.glob("*.json"):
                made.unlink()


def test_pictures_come_from_the_results_folder_and_are_small_jpegs(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"\xff\xd8\xff secret")
    folder = tmp_path / "results"
    path = zeroshot(folder, "cifar10", NAMES, examples=4)
    content = json.loads(path.read_text())
    places = ["../secret.jpg", str(secret), "000.json", content["examples"][3]["file"]]
    for example, place in zip(content["examples"], places, strict=True):
        example["file"] = place
    path.write_text(json.dumps(content))
    (folder / places[3]).write_bytes(b"\xff\xd8\xff" + bytes(50_000))
    found = page_of(folder)
    assert found.named("img") == []
    assert found.text.count("its picture is not here") == 4


def test_page_of_a_thousand_classes_stays_small(tmp_path):
    zeroshot(tmp_path, "imagenet1k", [f"class {i}" for i in range(1000)], examples=24)
    made = write_report(tmp_path, tmp_path / "report")
    assert made.page.stat().st_size < 200_000
    assert "the 20 best and the 20 worst of 1,000" in made.page.read_text()


def test_average_is_over_the_papers_sets_and_tells_which_are_missing():
    paper = list_sets("paper")
    scores = {f"wds/{name}": 0.5 for name in paper}
    assert paper_average(scores) == (0.5, [])
    mean, missing = paper_average({"cifar10": 0.9, "wds/vtab/pets": 0.7, "imagenet-a": 0.1})
    assert mean == pytest.approx(0.8)
    assert len(missing) == 25
    assert paper_average({"imagenet-a": 0.1}) is None


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.5, 0.5), (0.4987, 0.7647), (0.999, 1.0), (0.0, 0.004)]
)
def test_percent_ticks_hold_the_values(low, high):
    ticks = [value for value, _ in percent_ticks(low, high)]
    assert ticks[0] <= low + 1e-9
    assert high - 1e-9 <= ticks[-1] <= 1 + 1e-9
    assert 2 <= len(ticks) <= 7


@pytest.mark.needs("chromium")
def test_page_works_in_a_browser(tmp_path):
    every_task(tmp_path, NAMES)
    made = write_report(tmp_path, tmp_path / "report")
    done = subprocess.run(
        [
            *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'browser'}"),
            made.page.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # The policy lets its script run: heads are buttons, the filter is there.
    assert done.stdout.count('<button type="button">') > 20
    assert "8 of 8" in done.stdout
    assert "<title>Evaluation report</title>" in done.stdout
    assert "CONSOLE" not in done.stderr
