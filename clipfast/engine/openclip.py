"""Answers for those who type the flags of OpenCLIP's training script.

``FLAGS`` is the one table: a test compares docs/from-openclip.md with it.
"""

import re
import shlex
from collections.abc import Sequence

from clipfast.engine.typed import typed_options
from clipfast.names import nearest_name

# What to pass here for each flag, as docs/from-openclip.md prints it.
FLAGS = {
    "--train-data": "`--data.train`; several patterns follow each other instead of `::`",
    "--train-data-upsampling-factors": "not there: each sample is seen once per epoch",
    "--val-data": "`--data.eval`; measures retrieval, not a validation loss; "
    "`coco='coco/*.tar'` names a set",
    "--train-num-samples": "not needed: the samples are counted",
    "--val-num-samples": "not needed; `--data.eval-limit` bounds it",
    "--dataset-type": (
        "not needed: shards only. `python -m clipfast.data.pack` makes them from a table. "
        "For synthetic data take `--data.train synthetic`"
    ),
    "--dataset-resampled": "not there: each sample is seen once per epoch",
    "--csv-separator": "`--separator` of `clipfast.data.pack`, where the table does not tell",
    "--csv-img-key": "`--image-column` of `clipfast.data.pack`",
    "--csv-caption-key": "`--caption-column` of `clipfast.data.pack`",
    "--imagenet-val": "not there: no zero-shot evaluation yet",
    "--imagenet-v2": "not there: no zero-shot evaluation yet",
    "--cache-dir": "not needed: nothing is downloaded",
    "--workers": "`--data.threads`; they are threads",
    "--image-mean": "not there: CLIP's own constants",
    "--image-std": "not there: CLIP's own constants",
    "--image-interpolation": "not there: bicubic with antialiasing",
    "--image-resize-mode": "not there: the short side is resized and the middle is cut out",
    "--aug-cfg": "`--data.scale` for the crop, by side and not by area; the rest is not there",
    "--model": "`--model.name`, or the recipe",
    "--pretrained": "`--model.weights` with a file; tags are not downloaded",
    "--pretrained-image": "not there",
    "--lock-image": "not there",
    "--lock-image-unlocked-groups": "not there",
    "--lock-image-freeze-bn-stats": "not there",
    "--lock-text": "not there",
    "--lock-text-unlocked-layers": "not there",
    "--lock-text-freeze-layer-norm": "not there",
    "--grad-checkpointing": "`--model.recompute full`; `selective` is faster, `auto` picks",
    "--torchcompile": "`--model.compile blocks`; `auto` does so on newer GPUs",
    "--force-context-length": (
        "not there on the command line; `create_model(name, context_length=...)`"
    ),
    "--force-image-size": "not there on the command line; `create_model(name, image_size=...)`",
    "--force-quick-gelu": "not needed: the default; without it `--model.activation gelu`",
    "--force-patch-dropout": "not there",
    "--force-custom-text": "not needed: one class of model",
    "--torchscript": "not there",
    "--trace": "not there",
    "--use-bn-sync": "`--model.sync-bn`; `--bn-batch` for groups of any ranks and micro-batches",
    "--use-bnb-linear": "not there",
    "--local-loss": "not needed: always the sharded form, with the true gradients",
    "--gather-with-grad": "not needed: always",
    "--siglip": (
        "not there; `--loss.name` takes an objective of your own "
        "([Extending](extending.md#objective))"
    ),
    "--loss-dist-impl": "not needed: there is one way over ranks",
    "--coca-caption-loss-weight": "not there",
    "--coca-contrastive-loss-weight": "not there",
    "--distill-model": "not there",
    "--distill-pretrained": "not there",
    "--batch-size": "`--batch-size`, over all GPUs",
    "--accum-freq": "`--micro-batch`, the pairs that a rank encodes at a time",
    "--epochs": "`--schedule.epochs`, or `--max-steps`",
    "--lr": "`--optimizer.lr`",
    "--beta1": "`--optimizer.beta1`",
    "--beta2": "`--optimizer.beta2`",
    "--eps": "`--optimizer.eps`",
    "--wd": "`--optimizer.weight-decay`",
    "--momentum": "not there: AdamW only",
    "--opt": "not there: AdamW only",
    "--warmup": "`--schedule.warmup-steps`; 2,000 by default as in the paper, 10,000 in OpenCLIP",
    "--lr-scheduler": "not there: warm-up, then cosine to zero",
    "--skip-scheduler": "not there: warm-up, then cosine to zero",
    "--epochs-cooldown": "not there",
    "--lr-cooldown-end": "not there",
    "--lr-cooldown-power": "not there",
    "--grad-clip-norm": "`--optimizer.clip-norm`",
    "--precision": "`--precision`, see below",
    "--seed": "`--seed`",
    "--logs": "`--logging.dir`",
    "--log-local": "not there: rank 0 writes",
    "--name": "`--logging.name`",
    "--log-every-n-steps": "`--logging.every-steps`",
    "--report-to": (
        "`--logging.tensorboard`, `--logging.wandb`; `metrics.jsonl` is always written"
    ),
    "--wandb-notes": "not there",
    "--wandb-project-name": "`--logging.wandb`",
    "--debug": "not there",
    "--copy-codebase": "not there; the commit stands in `python -m clipfast.env`",
    "--save-frequency": "`--checkpoint.every-steps` or `--checkpoint.every-minutes`, not by epochs",
    "--save-most-recent": "not needed: `--resume latest` finds the newest",
    "--delete-previous-checkpoint": "`--checkpoint.keep 1`",
    "--resume": "`--resume latest`, or a path",
    "--val-frequency": "`--eval.every`",
    "--zeroshot-frequency": "not there: no zero-shot evaluation yet",
    "--remote-sync": "not there",
    "--remote-sync-frequency": "not there",
    "--remote-sync-protocol": "not there",
    "--device": "not needed: a GPU where there is one. `CUDA_VISIBLE_DEVICES=` hides it",
    "--dist-url": "not needed: the launcher says it",
    "--dist-backend": "not needed: NCCL on GPUs, Gloo on the CPU",
    "--horovod": "not there",
    "--ddp-static-graph": "not needed: DeepSpeed takes DDP's place",
    "--no-set-device-rank": "not there: every rank must see all GPUs of its node",
}

# Values of --precision that only OpenCLIP has.
PRECISIONS = {
    "amp": "`--precision fp16`",
    "amp_bf16": "`--precision bf16`",
    "amp_bfloat16": "`--precision bf16`",
    "pure_bf16": (
        "`--precision bf16`, `--optimizer.image-weights stochastic` and "
        "`--optimizer.text-weights stochastic`; rounded at random, so that small updates are "
        "not lost"
    ),
    "pure_fp16": "`--precision fp16`; an fp32 master stays",
}

# Spelled the same here. What of it means something else is told below.
SHARED = ("--batch-size", "--precision", "--seed", "--resume")

# The value is counted in another unit, or is another kind of thing.
_OTHER_VALUES = ("--accum-freq", "--model", "--report-to", "--val-frequency")


def answer(arguments: Sequence[str], world_size: int) -> str:
    """What a person who typed OpenCLIP's flags needs to know, all of it at once.

    Args:
        arguments: as typed.
        world_size: number of processes; OpenCLIP's batch is that of one of them.

    Returns:
        Lines with the answer to each flag; empty where none is OpenCLIP's alone.
    """
    typed = dict(typed_options(arguments))
    foreign = {flag for flag in typed if flag in FLAGS and flag not in SHARED}
    precision = " ".join(typed.get("--precision", []))
    if not foreign and precision not in PRECISIONS:
        return ""
    lines = ["these are flags of OpenCLIP's training script. Here it is:"]
    for flag, words in typed.items():
        if flag == "--precision" and precision in PRECISIONS:
            text = _plain(PRECISIONS[precision])
        elif flag == "--batch-size":
            text = _batch(words, typed.get("--accum-freq", []), world_size)
        elif flag in foreign:
            text = _model(words) if flag == "--model" and words else _translated(flag, words)
        else:
            continue
        lines.append(f"    {shlex.join([flag, *words])}: {text}")
    if any(FLAGS[flag].startswith("not there") for flag in foreign):
        lines.append(
            "What is not there: go on with OpenCLIP's script, and let patch_open_clip put "
            "clipfast's parts into its model (docs/pieces.md)"
        )
    return "\n".join([*lines, "docs/from-openclip.md has all of OpenCLIP's flags beside ours"])


def activation_note(name: str) -> str:
    """A reminder for OpenCLIP's names of models whose activation is not the paper's.

    Args:
        name: as typed.

    Returns:
        A sentence with its leading blank; empty for other names.
    """
    if not re.fullmatch(r"RN\d+(x\d+)?|ViT-[BL]-\d+(-\d+)?", name, re.IGNORECASE):
        return ""
    return (
        f" Models here have QuickGELU, as OpenCLIP's {name}-quickgelu has: its {name} is "
        "--model.activation gelu."
    )


def _translated(flag: str, words: Sequence[str]) -> str:
    text = FLAGS[flag]
    renamed = re.match(r"`(--[\w.-]+)`(?=$|[,;])", text)
    if not renamed or not words or flag in _OTHER_VALUES:
        return _plain(text)
    if flag in ("--train-data", "--val-data"):
        words = [part for word in words for part in word.split("::")]
    rest = _plain(text[renamed.end() :]).lstrip(",; ")
    return shlex.join([renamed[1], *words]) + (f"; {rest}" if rest else "")


def _model(words: Sequence[str]) -> str:
    from clipfast.models import list_models

    nearest = nearest_name(words[0], list_models())
    if nearest is None:
        return f"--model.name with one of {', '.join(list_models())}"
    return f"--model.name {nearest}, or the recipe.{activation_note(words[0])}"


def _batch(words: Sequence[str], parts: Sequence[str], world_size: int) -> str:
    meaning = "it counts the pairs over all GPUs, OpenCLIP's those of one"
    if not all(word.isdecimal() for word in (*words, *parts)) or len(words) != 1:
        return meaning
    theirs, accumulated = int(words[0]), int(parts[0]) if parts else 1
    total = f"{theirs} x {world_size} processes" + f" x {accumulated}" * (accumulated > 1)
    ours = f"--batch-size {theirs * world_size * accumulated}"
    ours += f" --micro-batch {theirs}" * (accumulated > 1)
    return f"{meaning}. {total}: {ours}"


def _plain(text: str) -> str:
    """A cell of the table without its marks."""
    return re.sub(r"\[([^]]+)\]\(([^)]+)\)", r"docs/\2", text).replace("`", "")
