"""A checkpoint's files are put together by name, and refused by name where they do not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipfast.checkpoint.fragments import SavedTensors, Unfit, fragment_name
from clipfast.checkpoint.tensor_file import dump_tensors
from tests.campaigns.hostile_fragments import FRAGMENTS, spoil

SIZES = {"a": 1500, "b": 7}
BUFFERS = {"seen": (), "mean": (4,)}
# Of each file: the stretches of ``a`` and of ``b``.
FILES = [[("a", 0, 1024)], [("b", 0, 7)], [("a", 1024, 1500)]]


def write(folder: Path) -> list[Path]:
    paths = []
    for number, stretches in enumerate(FILES):
        tensors = {}
        for name, start, stop in stretches:
            blocks = -(-(stop - start) // 256)
            values = torch.arange(start, stop, dtype=torch.float32)
            for key, value in {
                "weight": values,
                "exp_avg": values.half(),
                "exp_avg_sqrt": values.half(),
                "exponents": torch.arange(2 * blocks, dtype=torch.int8).view(2, blocks),
                "step": torch.tensor(3.0),
            }.items():
                tensors[fragment_name(key, name, start, stop)] = value
        if number == 0:
            tensors["buffer/seen"] = torch.tensor(5)
            tensors["buffer/mean"] = torch.ones(4)
        path = folder / f"rank{number:05d}.safetensors"
        with open(path, "wb") as file:
            dump_tensors(tensors, file)
        # The library reads what was written.
        assert {name: value.tolist() for name, value in load_file(path).items()} == {
            name: value.tolist() for name, value in tensors.items()
        }
        paths.append(path)
    return paths


def check(paths: list[Path]) -> SavedTensors:
    saved = SavedTensors(paths)
    saved.check(SIZES, BUFFERS)
    return saved


def test_fragments_are_read_across_files_and_blocks(tmp_path):
    saved = check(write(tmp_path))
    assert saved.parameters == SIZES
    stretches = list(saved.read("a", 512, 1400))
    assert [stretch.start for stretch in stretches] == [512, 1024]
    weights = torch.cat([stretch.tensors["weight"] for stretch in stretches])
    assert torch.equal(weights, torch.arange(512.0, 1400.0))
    exponents = [stretch.tensors["exponents"].tolist() for stretch in stretches]
    assert exponents == [[[2, 3], [6, 7]], [[0, 1], [2, 3]]]
    assert stretches[0].tensors["step"] == 3
    assert dict(saved.buffers())["seen"] == 5


@pytest.mark.parametrize("how", FRAGMENTS)
def test_fragments_that_do_not_fit_are_refused_by_name(tmp_path, how):
    paths = write(tmp_path)
    named = spoil(paths[0], how)
    with pytest.raises(Unfit) as refused:
        check(paths)
    assert named in str(refused.value)


def test_two_files_that_claim_the_same_elements_are_refused_by_name(tmp_path):
    paths = write(tmp_path)
    for name, text in (("weight", r"a\[0:1024\] overlaps"), ("buffer/seen", "rank00000")):
        tensors = {k: v for k, v in load_file(paths[0]).items() if k.startswith(name)}
        again = tmp_path / "rank00009.safetensors"
        save_file(tensors, again)
        with pytest.raises(Unfit, match=text):
            check([*paths, again])
    with pytest.raises(Unfit, match="elements 0 to 1024 of a are missing"):
        check(paths[1:])


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"PK\x03\x04", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused_by_name(tmp_path, data):
    path = tmp_path / "rank00000.safetensors"
    path.write_bytes(data)
    with pytest.raises(Unfit, match=r"rank00000\.safetensors is no safetensors file"):
        SavedTensors([path])
