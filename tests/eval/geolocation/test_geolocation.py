"""Nearest neighbours with coordinates."""

import json
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipfast.eval.__main__ import main
from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.geolocation import (
    EARTH_RADIUS_KM,
    Nearest,
    PlacedSet,
    geolocate,
    great_circle_km,
    locate,
    nearest,
    open_places,
)
from clipfast.eval.intervals import clopper_pearson
from clipfast.preprocessing import Preprocessing
from tests.eval.tiny import SIZE, picture, tiny_model, tiny_weights

needs_dali = pytest.mark.needs("nvidia.dali")


@pytest.mark.parametrize(
    ("one", "other", "km"),
    [
        ((48.8566, 2.3522), (51.5074, -0.1278), 343.6),  # Paris to London
        ((40.7128, -74.0060), (-33.8688, 151.2093), 15_989),  # New York to Sydney
        ((0, 179.5), (0, -179.5), 111.2),  # over the date line
        ((90, 0), (90, 123), 0),  # one pole, whatever the longitude
        ((12.5, -7.25), (12.5, -7.25), 0),
        ((30, 40), (-30, -140), np.pi * EARTH_RADIUS_KM),
    ],
)
def test_great_circle_of_known_places(one, other, km):
    assert great_circle_km(np.array(one), np.array(other)) == pytest.approx(km, rel=1e-3, abs=1e-6)


def test_great_circle_is_the_angle_between_directions():
    rng = np.random.default_rng(0)
    one, other = rng.uniform([-90, -180], [90, 180], (2, 500, 2))

    def direction(place):
        lat, lon = np.radians(place).T
        return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)

    a, b = direction(one), direction(other)
    angle = np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), (a * b).sum(1))
    np.testing.assert_allclose(great_circle_km(one, other), EARTH_RADIUS_KM * angle, rtol=1e-9)
    np.testing.assert_array_equal(great_circle_km(one, other), great_circle_km(other, one))


def small_integers(rows, seed):
    """Features of which many are equal, and some are zero."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-1, 2, (rows, 3))).float()


@pytest.mark.parametrize("parts", [[101], [1, 100], [33, 0, 68], [7] * 14 + [3]], ids=len)
@pytest.mark.parametrize("block", [8192, 10])
def test_nearest_is_the_first_of_the_most_similar_however_they_come(monkeypatch, parts, block):
    monkeypatch.setattr(nearest, "_BLOCK", block)
    monkeypatch.setattr(nearest, "_CHUNK", 9)
    queries, references = small_integers(23, 0), small_integers(101, 1)
    found = Nearest(queries)
    first = 0
    for count in parts:
        rows = torch.arange(first, first + count)
        found.add(references[rows], rows)
        first += count
    a, b = F.normalize(queries.double(), dim=1), F.normalize(references.double(), dim=1)
    scores = (a @ b.T).round(decimals=9).numpy()
    np.testing.assert_array_equal(found.place, scores.argmax(1))
    np.testing.assert_array_equal(found.ties, (scores == scores.max(1, keepdims=True)).sum(1))
    np.testing.assert_allclose(found.similarity, scores.max(1), atol=1e-7)
    assert (found.ties > 1).any()


def placed(name, coordinates, first=0, encoded=None):
    return PlacedSet(
        name, "test", encoded or (lambda i: picture(first + i)), np.array(coordinates, np.float64)
    )


def encoder(model=None):
    return ImageEncoder(model or tiny_model(), Preprocessing(SIZE), 4)


@needs_dali
@pytest.mark.parametrize("part", [65_536, 4])
def test_geolocate_gives_the_place_of_the_nearest_image(monkeypatch, part):
    monkeypatch.setattr(locate, "PART", part)
    rng = np.random.default_rng(0)
    references = placed("known", rng.uniform(-80, 80, (9, 2)))
    # The first three queries are references, two of them elsewhere; the others are new pictures.
    places = np.concatenate([references.coordinates[:3], rng.uniform(-80, 80, (4, 2))])
    places[1:3, 0] += (0.1, 5)
    files = [picture(i if i < 3 else 100 + i) for i in range(7)]
    queries = placed("asked", places, encoded=lambda i: files[i])
    found = geolocate(encoder(), references, queries)
    a, b = (F.normalize(encoder().images(one), dim=1).double() for one in (queries, references))
    place = (a @ b.T).argmax(1).numpy()
    assert place[:3].tolist() == [0, 1, 2]
    expected = great_circle_km(queries.coordinates, references.coordinates[place])
    np.testing.assert_allclose(found.distance_km, expected)
    assert found.distance_km[0] == 0
    assert found.hits[25] == (expected <= 25).sum() >= 2
    for km in (1, 25, 200, 750, 2500):
        name = f"within_{km}_km"
        assert found.metrics[name] == pytest.approx((expected <= km).mean())
        assert found.intervals[name] == clopper_pearson(int((expected <= km).sum()), 7)
    assert found.metrics["median_km"] == pytest.approx(np.median(expected))
    assert (found.compared_with, found.ties, found.unreadable) == (9, 0, (0, 0))


@needs_dali
def test_geolocate_leaves_out_what_does_not_decode(monkeypatch):
    monkeypatch.setattr(locate, "PART", 4)
    # The last part has one image, and that does not decode.
    broken = {1, 8}
    references = placed(
        "known", np.zeros((9, 2)) + 7, encoded=lambda i: b"no" if i in broken else picture(i)
    )
    queries = placed("asked", [[7, 7]] * 3, encoded=lambda i: b"no" if i == 1 else picture(i))
    found = geolocate(encoder(), references, queries)
    assert (found.compared_with, found.unreadable) == (7, (1, 2))
    assert found.distance_km.tolist() == [0, 0]
    assert "2 of the references do not decode and are left out" in found.lines
    for one in (references, queries):
        nothing = placed("nothing", one.coordinates, encoded=lambda i: b"no")
        with pytest.raises(ValueError, match="nothing: none of"):
            geolocate(encoder(), nothing, queries if one is references else nothing)


@needs_dali
def test_geolocate_of_a_collapsed_model_takes_the_first_and_says_so():
    model = tiny_model()
    with torch.no_grad():
        model.visual.proj.zero_()
    found = geolocate(
        encoder(model), placed("known", [[10, 10], [20, 20]]), placed("asked", [[10, 10], [20, 20]])
    )
    assert found.ties == 2
    assert found.metrics["within_1_km"] == 0.5
    assert "2 image(s) have several nearest references: the first counts" in found.lines


def write(folder, name, *lines):
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def test_open_places_reads_the_rows_of_a_split(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    lines = ["Path,lat,lng,split", "0.png,1.5,-2,train", "1.png,90,180,test", "2.png,-90,-180,test"]
    found = open_places(write(tmp_path, "im.csv", *lines), split="test")
    assert found.name == "im"
    assert found.coordinates.tolist() == [[90, 180], [-90, -180]]
    assert found.encoded(0) == picture(1)


def test_open_places_warns_of_what_lies_at_zero(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(picture(0))
    open_places(write(tmp_path, "im.csv", "path,latitude,longitude", "a.png,0,0", "a.png,0,1"))
    assert "1 image(s) lie at latitude 0 and longitude 0" in caplog.text


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["path,lat", "a.png,1"], "no column for the longitude"),
        (["path,lon,lat"], "has no row below its first"),
        (["path,lat,lon", "a.png,91,0", "a.png,1,1"], "line 2: lat is '91'; 1 of 2 rows have no"),
        (["path,lat,lon", "a.png,9,1", "a.png,1,181"], "line 3: lon is '181'"),
        (["path,lat,lon", "a.png,,0"], "lat is ''"),
        (["path,lat,lon", "a.png,nan,0"], "lat is 'nan'"),
        (["path,lat,lon", "a.png,1N,0"], "lat is '1N'"),
        (["path,lat,lon", ",1,0"], "column 'path' is empty"),
        (["path,lat,lon", "b.png,1,0"], "there is no file"),
    ],
)
def test_open_places_names_what_is_wrong(tmp_path, lines, words):
    (tmp_path / "a.png").write_bytes(picture(0))
    with pytest.raises(ValueError, match=re.escape(words)):
        open_places(write(tmp_path, "im.csv", *lines))


def test_open_places_refuses_what_is_no_table(tmp_path):
    with pytest.raises(ValueError, match="is no table"):
        open_places(tmp_path)
    with pytest.raises(ValueError, match="cannot read"):
        open_places(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("coordinates", "words"),
    [
        ([], r"coordinates must be \[N, 2\]"),
        ([[1, 2, 3]], r"coordinates must be \[N, 2\]"),
        ([1, 2], r"coordinates must be \[N, 2\]"),
        ([[0, 0], [float("nan"), 0]], r"1 coordinates are none, such as \(nan, 0.0\) of image 1"),
    ],
)
def test_placed_set_refuses_other_coordinates(coordinates, words):
    with pytest.raises(ValueError, match=words):
        placed("set", coordinates)


def test_placed_set_refuses_nothing():
    with pytest.raises(ValueError, match="set has no image"):
        placed("set", np.zeros((0, 2)))


@needs_dali
def test_geolocate_writes_its_result(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_weights(tmp_path).rename(tmp_path / "w.safetensors")
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    write(tmp_path, "known.csv", "path,lat,lon,split", "0.png,10,20,train", "1.png,50,8,train")
    write(tmp_path, "asked.csv", "path,lat,lon", "0.png,10,20", "1.png,50.1,8", "3.png,-60,0")
    words = ["geolocate", "--weights", "w.safetensors", "--data", "asked.csv", "--out", "res"]
    assert main([*words, "--references", "known.csv"]) == 0
    found = json.loads((tmp_path / "res" / "asked_ViT-tiny_geolocation_en.json").read_text())
    assert found["task"] == "geolocation"
    assert found["metrics"]["within_1_km"] == pytest.approx(1 / 3)
    assert found["metrics"]["within_25_km"] == pytest.approx(2 / 3)
    assert (found["references"], found["reference_images"], found["images"]) == ("known", 2, 3)
    assert "median distance 11.1 km" in capsys.readouterr().out
    assert main([*words, "--references", "known.csv", "--skip-existing"]) == 0
    assert "is there already" in capsys.readouterr().out
    assert main([*words, "--references", "asked.csv", "--skip-existing"]) == 1
    assert "is of other options (--references)" in capsys.readouterr().err
    assert main([*words, "--references", "known.csv", "--reference-split", "val"]) == 1
    assert "has no row of split 'val'" in capsys.readouterr().err
