"""Weights that load: bare, wrapped by training programs, under other names, in other formats."""

import argparse
import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.campaigns.weights_kinds import File, State, prefixed, saved
from tests.campaigns.weights_worker import build

_KIND = "weights, wrapped"
_TEXT = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection")


def _optimizer(state: State) -> dict[str, Any]:
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": t.float()} for i, t in
               enumerate(state.values())}  # fmt: skip
    return {"state": moments, "param_groups": [{"lr": 1e-3, "params": list(moments)}]}


def _lightning(state: State, prefix: str = "model.") -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": prefixed(state, prefix),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [_optimizer(state)],
        "hparams_name": "args",
        "hyper_parameters": argparse.Namespace(lr=1e-3, layers=[1, 2], folder=Path("/data")),
    }


def _by_name(state: State) -> dict[str, Any]:
    """An optimizer whose moments bear the names of the weights."""
    return {"exp_avg": {name: t * 0 for name, t in state.items()}, "lr": 1.0}


def _compiled_parts(state: State) -> State:
    parts = ("visual.", "transformer.")
    return {
        next((n.replace(p, f"{p}_orig_mod.", 1) for p in parts if n.startswith(p)), n): t
        for n, t in state.items()
    }


def _wrapped_blocks(state: State) -> State:
    shell = "_fsdp_wrapped_module._checkpoint_wrapped_module."
    return prefixed(
        {n.replace("resblocks.0.", f"resblocks.0.{shell}"): t for n, t in state.items()},
        "_fsdp_wrapped_module.",
    )


def custom_text(state: State) -> State:
    """OpenCLIP's CustomTextCLIP."""
    return {(f"text.{n}" if n.split(".")[0] in _TEXT else n): t for n, t in state.items()}


def hugging_face(state: State) -> State:
    """Hugging Face's CLIPModel, by its own names."""
    result: State = {
        "logit_scale": state["logit_scale"].reshape(()),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.position_ids": torch.arange(65)[None],
        "text_projection.weight": state["text_projection"].T.contiguous(),
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
    }
    for theirs, ours in {
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
        "text_model.final_layer_norm": "ln_final",
    }.items():
        for end in (".weight", ".bias"):
            result[theirs + end] = state[ours + end]
    layers = {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "ln_1": "layer_norm1",
              "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}  # fmt: skip
    for name, tensor in state.items():
        tower, found, rest = name.partition("transformer.resblocks.")
        if not found:
            continue
        number, _, part = rest.partition(".")
        place = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}."
        if part.startswith("attn.in_proj_"):
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                result[f"{place}self_attn.{letter}_proj.{part[13:]}"] = piece.clone()
        else:
            layer, _, end = part.rpartition(".")
            result[f"{place}{layers[layer]}.{end}"] = tensor
    return result


def _safetensors(name: str, content: Any, suffix: str = ".safetensors") -> File:
    def make(folder: Path, state: State) -> Path:
        path = folder / f"model{suffix}"
        _save_file({n: t.contiguous() for n, t in content(state).items()}, path)
        return path

    return File(_KIND, name, make)


def _save_file(state: State, path: Path) -> None:
    # The other kinds are written where the package is not installed.
    from safetensors.torch import save_file

    save_file(state, path)


def _parts(folder: Path, state: State, names: list[str]) -> Path:
    places = {}
    for i, name in enumerate(names):
        part = {n: t for j, (n, t) in enumerate(state.items()) if j % len(names) == i}
        (_save_file if name.endswith("safetensors") else torch.save)(part, folder / name)
        places.update(dict.fromkeys(part, name))
    stem, suffix = names[0].split("-")[0], names[0].rpartition(".")[2]
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def _index(folder: Path, state: State) -> Path:
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    return _parts(folder, state, names)


def _index_of_lightning(folder: Path, state: State) -> Path:
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    return _parts(folder, prefixed(state, "model."), names).parent


def _archive(folder: Path, state: State) -> Path:
    model = build(0)
    model.load_state_dict(state)
    path = folder / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(
            model.eval(),
            (torch.randn(2, 3, 64, 64), torch.tensor([[1, 299, 0], [2, 3, 299]])),
            check_trace=False,
        )
        traced.save(str(path))
    return path


def _without_checksums(folder: Path, state: State) -> Path:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, folder / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    return folder / "model.pt"


def _views(state: State) -> State:
    """Slices of one buffer, and one that lies the other way round."""
    flat = torch.cat([t.flatten() for t in state.values()])
    result, start = {}, 0
    for name, tensor in state.items():
        result[name] = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    result["text_projection"] = result["text_projection"].T.contiguous().T
    return result


def _columns(state: State) -> State:
    wide = torch.randn(*state["visual.proj"].shape, 2)
    wide[..., 1] = state["visual.proj"]
    return {**state, "visual.proj": wide[..., 1]}


def _parameters(state: State) -> dict[str, Tensor]:
    return {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}


def _buffer(folder: Path, state: State) -> Path:
    # A zip of another root, as a file-like object gives it.
    data = io.BytesIO()
    torch.save(state, data)
    (folder / "weights").write_bytes(data.getvalue())
    return folder / "weights"


WRAPPED: list[File] = [
    saved(_KIND, "bare", lambda s: s),
    saved(_KIND, "torch before 1.6", lambda s: s, zipped=False),
    saved(_KIND, "torch before 1.6, checkpoint", _lightning, zipped=False),
    File(_KIND, "written to a buffer, no suffix", _buffer),
    saved(_KIND, "OpenCLIP", lambda s: {"epoch": 1, "state_dict": prefixed(s, "module."),
                                        "optimizer": _optimizer(s)}),
    saved(_KIND, "Lightning, model.", _lightning, suffix=".ckpt"),
    saved(_KIND, "Lightning, net.", lambda s: _lightning(s, "net."), suffix=".ckpt"),
    saved(_KIND, "Lightning, clip_model.", lambda s: _lightning(s, "clip_model.")),
    saved(_KIND, "Lightning, compiled", lambda s: _lightning(s, "model._orig_mod.")),
    saved(_KIND, "a head beside it", lambda s: {"state_dict": {**prefixed(s, "backbone."),
                                                "head.weight": torch.ones(2, 2)}}),
    saved(_KIND, "a loss with a scale", lambda s: {**prefixed(s, "model."),
                                                   "loss.logit_scale": torch.ones(1)}),
    saved(_KIND, "model", lambda s: {"model": s, "epoch": 1, "args": argparse.Namespace(a=1)}),
    saved(_KIND, "model, by torch.distributed", lambda s: {"model": prefixed(s, "module.")}),
    saved(_KIND, "model.state_dict", lambda s: {"checkpoint": {"model": {"state_dict": s}}}),
    saved(_KIND, "ema", lambda s: {"ema": s, "updates": 3}),
    saved(_KIND, "ema.module", lambda s: {"ema": {"module": prefixed(s, "module.")}}),
    saved(_KIND, "moments by name", lambda s: {"net": s, "optimizer": _by_name(s)}),
    saved(_KIND, "twice the same", lambda s: {"model": s, "state_dict": s}),
    saved(_KIND, "DeepSpeed, ZeRO 1", lambda s: {
        "module": {n: t for n, t in s.items()}, "buffer_names": [], "optimizer": None,
        "param_shapes": [{n: t.shape for n, t in s.items()}], "ds_config": {"zero": {"stage": 1}},
        "ds_version": "0.15", "mp_world_size": 1, "dp_world_size": 2}),
    saved(_KIND, "compiled", lambda s: prefixed(s, "_orig_mod.")),
    saved(_KIND, "compiled parts", _compiled_parts),
    saved(_KIND, "DDP of compiled", lambda s: prefixed(s, "module._orig_mod.")),
    saved(_KIND, "DDP of DDP", lambda s: prefixed(s, "module.module.")),
    saved(_KIND, "DDP of a part", lambda s: {n.replace("visual.", "visual.module.", 1): t
                                             for n, t in s.items()}),
    saved(_KIND, "FSDP with checkpointed blocks", _wrapped_blocks),
    saved(_KIND, "Hugging Face", hugging_face, suffix=".bin"),
    saved(_KIND, "Hugging Face within Lightning", lambda s: _lightning(hugging_face(s))),
    _safetensors("Hugging Face, safetensors", hugging_face),
    saved(_KIND, "CustomTextCLIP", custom_text),
    saved(_KIND, "CustomTextCLIP, OpenCLIP's checkpoint",
          lambda s: {"state_dict": prefixed(custom_text(s), "module.")}),
    _safetensors("CustomTextCLIP, safetensors", custom_text),
    _safetensors("safetensors", lambda s: s),
    _safetensors("safetensors, Lightning's names", lambda s: prefixed(s, "model.")),
    _safetensors("safetensors, compiled parts", _compiled_parts),
    _safetensors("safetensors under another suffix", lambda s: s, ".pt"),
    saved(_KIND, "torch.save under the suffix of safetensors", lambda s: s, suffix=".safetensors"),
    File(_KIND, "index of safetensors", _index),
    File(_KIND, "folder of parts with Lightning's names", _index_of_lightning),
    File(_KIND, "TorchScript", _archive),
    File(_KIND, "without checksums", _without_checksums),
    saved(_KIND, "float64", lambda s: {n: t.double() for n, t in s.items()}),
    saved(_KIND, "slices of one buffer", _views),
    saved(_KIND, "columns of a wider tensor", _columns),
    saved(_KIND, "parameters", _parameters),
    saved(_KIND, "OpenAI's facts beside it", lambda s: {**s, "input_resolution": torch.tensor(64)}),
]  # fmt: skip
