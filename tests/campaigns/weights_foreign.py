"""Files that hold no weights of a model here: each is refused for what it is."""

import argparse
import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from tests.campaigns.weights_kinds import File, State, prefixed, saved, written
from tests.campaigns.weights_wrapped import custom_text, hugging_face

_NONE = "no weights"
_OTHER = "another model"
_FOLDER = "folder or part"

_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 605143316\n"


def _packed(name: str, pack: Callable[[bytes], bytes], suffix: str, *words: str) -> File:
    def make(folder: Path, state: State) -> Path:
        data = io.BytesIO()
        torch.save(state, data)
        path = folder / f"model{suffix}"
        path.write_bytes(pack(data.getvalue()))
        return path

    return File(_NONE, name, make, words)


def _tar(data: bytes) -> bytes:
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w") as tar:
        info = tarfile.TarInfo("storages")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return result.getvalue()


def _zip(**entries: bytes) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as file:
        for name, data in entries.items():
            file.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return result.getvalue()


def _npz(folder: Path, state: State) -> Path:
    np.savez(folder / "model.npz", **{n: t.numpy() for n, t in state.items()})
    return folder / "model.npz"


def _folder(name: str, entries: dict[str, bytes], *words: str) -> File:
    def make(folder: Path, state: State) -> Path:
        for entry, data in entries.items():
            (folder / "run" / entry).parent.mkdir(parents=True, exist_ok=True)
            (folder / "run" / entry).write_bytes(data)
        return folder / "run"

    return File(_FOLDER, name, make, words)


def _one_part(folder: Path, state: State) -> Path:
    path = folder / "model-00001-of-00002.safetensors"
    save_file({n: t for n, t in state.items() if n.startswith("visual.")}, path)
    return path


def _index(part: str, words: str) -> File:
    def make(folder: Path, state: State) -> Path:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": dict.fromkeys(state, part)}))
        return path

    return File(_FOLDER, f"index of {part}", make, (words,))


def _renamed(state: State, **names: str) -> State:
    for before, after in names.items():
        state = {n.replace(before.replace("__", "."), after): t for n, t in state.items()}
    return state


def _extra(state: State, *names: str) -> State:
    return {**state, **{name: torch.zeros(2, 2) for name in names}}


FOREIGN: list[File] = [
    written(_NONE, "LFS pointer", _LFS, "LFS"),
    written(_NONE, "LFS pointer, safetensors", _LFS, "LFS", suffix=".safetensors"),
    written(_NONE, "HTML page", b"<!DOCTYPE html><html>404</html>", "HTML"),
    written(_NONE, "HTML page behind blanks", b"\n \n<html lang=en>", "HTML"),
    written(_NONE, "JSON error", b'{"error": "Repository not found"}', "JSON page with an error"),
    written(_NONE, "XML error", b'<?xml version="1.0"?><Error><Code>AccessDenied', "XML"),
    written(_NONE, "empty", b"", "empty"),
    written(_NONE, "zeros", bytes(100_000), "zero"),
    written(_NONE, "text", b"the weights are elsewhere\n", "begins with"),
    written(_NONE, "terminal escapes", b"\x1b[2J\x1b[31mweights", "begins with"),
    written(_NONE, "PNG", b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG"),
    written(_NONE, "GGUF", b"GGUF\x03\0\0\0" + bytes(99), "GGUF"),
    written(_NONE, "HDF5", b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5", suffix=".h5"),
    written(_NONE, "pickle of a dict", pickle.dumps({"a": 1}), "pickle"),
    written(_NONE, "pickle of arrays", pickle.dumps({"a": np.ones(3)}), "pickle"),
    written(_NONE, "zip of text", _zip(a_dot_txt=b"x"), "zip that torch did not write"),
    written(_NONE, "zip of weights", _zip(m__model_dot_pt=b"x"), "files of weights in it"),
    written(_NONE, "docx", _zip(word__document_dot_xml=b"x"), "office"),
    File(_NONE, "npz", _npz, ("NumPy",)),
    _packed("tar", _tar, ".pt", "tar"),
    _packed("gzip", gzip.compress, ".pt.gz", "gzip"),
    _packed("gzip under .pt", gzip.compress, ".pt", "gzip"),
    _packed("bzip2", bz2.compress, ".bz2", "bzip2"),
    _packed("xz", lzma.compress, ".xz", "xz"),
    saved(_NONE, "whole model", lambda s: nn.Linear(2, 2), "whole pickled model"),
    saved(_NONE, "whole model beside weights", lambda s: {"state_dict": s, "m": nn.ReLU()},
          "whole pickled model"),
    saved(_NONE, "optimizer", lambda s: torch.optim.AdamW([torch.ones(2)]).state_dict(),
          "optimizer's state alone"),
    saved(_NONE, "settings", lambda s: argparse.Namespace(a=1), "object of settings"),
    saved(_NONE, "a tensor", lambda s: torch.ones(2), "holds a Tensor"),
    saved(_NONE, "arrays of NumPy", lambda s: {n: t.numpy() for n, t in s.items()}, "NumPy"),
    saved(_NONE, "counts", lambda s: {"epoch": 3, "step": 4}, "no tensors: epoch"),
    saved(_NONE, "names that are numbers", lambda s: dict(enumerate(s.values())), "int is no name"),
    saved(_NONE, "names that are hidden", lambda s: prefixed(s, "\x1b[2Jx"), "is no name"),
    saved(_NONE, "two sets", lambda s: {"model": s, "ema": {n: t + 1 for n, t in s.items()}},
          "several sets of weights, under 'model', 'ema'"),
    saved(_NONE, "two models", lambda s: {**prefixed(s, "model."), **prefixed(s, "teacher.")},
          "several models"),
    saved(_NONE, "compiled and not", lambda s: {**s, **prefixed(s, "_orig_mod.")}, "twice"),
    saved(_NONE, "ZeRO 3", lambda s: {"module": {n: torch.empty(0) for n in s},
                                      "ds_version": "0.15"}, "zero_to_fp32.py"),
    saved(_NONE, "ZeRO optimizer", lambda s: {"optimizer_state_dict": {"zero_stage": 2},
                                              "ds_version": "0.15"}, "zero_to_fp32.py"),
    saved(_OTHER, "fewer blocks", lambda s: {n: t for n, t in s.items() if "resblocks.1" not in n},
          "missing"),
    saved(_OTHER, "another width", lambda s: {**s, "text_projection": torch.ones(192, 99)},
          "another shape"),
    saved(_OTHER, "SigLIP", lambda s: _extra(hugging_face(s), "vision_model.head.probe"), "SigLIP"),
    saved(_OTHER, "CoCa", lambda s: _extra(custom_text(s), "text_decoder.ln.weight"), "CoCa"),
    saved(_OTHER, "timm's tower", lambda s: _renamed(custom_text(s), visual__="visual.trunk."),
          "timm"),
    saved(_OTHER, "EVA", lambda s: _renamed(custom_text(s), visual__transformer__resblocks=
                                            "visual.blocks", visual__conv1="visual.patch_embed"),
          "EVA"),
    saved(_OTHER, "Hugging Face's text tower", lambda s: {
        **{n: t for n, t in s.items() if n.startswith("visual.")}, "logit_scale": torch.ones(()),
        "text.transformer.embeddings.word_embeddings.weight": torch.ones(2, 2)}, "Hugging Face"),
    saved(_OTHER, "Hugging Face's image tower", lambda s: {
        n: t for n, t in hugging_face(s).items() if n.startswith("vision_model")}, "transformers"),
    saved(_OTHER, "image tower", lambda s: {n[7:]: t for n, t in s.items() if n[:7] == "visual."},
          "one tower alone"),
    saved(_OTHER, "LoRA", lambda s: {"visual.proj.lora_A.default.weight": torch.ones(2)}, "LoRA"),
    saved(_OTHER, "half of Hugging Face", lambda s: {n: t for n, t in hugging_face(s).items()
                                                     if "q_proj" not in n}, "Hugging Face"),
    _folder("folder of DeepSpeed", {"latest": b"global_step3", "zero_to_fp32.py": b"",
                                    "global_step3/mp_rank_00_model_states.pt": b"x"},
            "zero_to_fp32.py"),
    _folder("folder of ZeRO shards", {"mp_rank_00_model_states.pt": b"x"}, "zero_to_fp32.py"),
    _folder("folder of DCP", {".metadata": b"x", "__0_0.distcp": b"x"}, "dcp_to_torch"),
    _folder("folder of parts without an index", {"model-00001-of-00002.safetensors": b"x"},
            "without their index"),
    _folder("folder of Keras", {"tf_model.h5": b"x"}, "another framework"),
    _folder("folder of nothing", {"README.md": b"x"}, "name a file"),
    _folder("clone without LFS", {"model.safetensors": _LFS}, "LFS"),
    File(_FOLDER, "a part", _one_part, ("part 1 of 2",)),
    _index("absent.safetensors", "no such file"),
    _index("../secret.safetensors", "refused to follow"),
]  # fmt: skip
