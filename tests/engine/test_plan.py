"""A run is decided once: what a plan says, and that nothing else looks at the options behind it."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import clipfast.engine
from clipfast.engine import Config, ConfigError, ModelOptions
from clipfast.engine.headline import headline
from clipfast.engine.launch import Process, set_products
from clipfast.engine.length import Length
from clipfast.engine.plan import decide, resolve_precision
from clipfast.kernels.common.device import dot_precision
from tests.engine.plans import EXACT, PAPER, plan

ENGINE = Path(clipfast.engine.__file__).parent
# The options that ask for a decision, by what they are read from.
DECIDED = {
    ("config", "precision"),
    ("config", "zero"),
    ("config", "micro_batch"),
    ("config", "micro_batches"),
    ("config", "keep_graphs"),
    ("config", "local_batch"),
    ("config", "run_name"),
    ("zero", "stage"),
    ("model", "compile"),
    ("model", "recompute"),
    ("model", "sync_bn"),
    ("model", "bn_batch"),
    ("options", "has_exact_weights"),
    ("optimizer", "has_exact_weights"),
    ("data", "threads"),
}
# Where they may be: the options themselves, and the one place that decides. ``describe`` says in
# words what was asked for, ``idle_options`` what was asked for in vain.
DECIDING = {
    "config.py": None,
    "plan.py": None,
    "optimizer.py": {("options", "has_exact_weights")},
    "typed.py": {("config", "micro_batch")},
}


@pytest.mark.parametrize(
    ("made", "stage"),
    [
        (plan(EXACT, "fp32"), 0),
        (plan(EXACT, "fp32", ranks=8), 1),
        (plan(EXACT, "bf16"), 1),
        (plan(EXACT, "bf16", ranks=2, micro_batch=4), 1),
        (plan(PAPER, "fp32"), 0),
        (plan(PAPER, "bf16"), 1),
        (plan(PAPER, "bf16", ranks=2, micro_batch=4), 2),
        (plan(PAPER, "fp16", ranks=2, micro_batch=4), 1),
        (plan(PAPER, "fp32", 3), 3),
        (plan(PAPER, "bf16", 1, 2, micro_batch=4), 1),
    ],
)
def test_plan_shares_where_that_helps_and_sums_in_float32(made, stage):
    assert made.stage == stage


def test_plan_leaves_masters_to_the_optimizer_in_bf16_alone():
    for stage in range(4):
        assert plan(PAPER, "bf16", stage, 2).optimizer_holds_masters == (stage > 0)
        for made in (plan(EXACT, "bf16", stage), plan(PAPER, "fp16", stage)):
            assert not made.optimizer_holds_masters
            assert made.layout["masters"] == "float32"
        assert not plan(PAPER, "fp32", stage).optimizer_holds_masters


def test_plan_sums_micro_batches_in_float32_but_where_deepspeed_cannot():
    sums = [
        [plan(options, "bf16", stage, 2, micro_batch=4).sums_in_float32 for stage in range(4)]
        for options in (EXACT, PAPER)
    ]
    assert sums == [[False, True, True, True], [False, False, True, True]]
    assert not plan(PAPER, "bf16", 2, 2).sums_in_float32
    assert not plan(PAPER, "fp32", 2, 2, micro_batch=4).sums_in_float32


def test_plan_counts_the_parts_of_a_ranks_share():
    made = plan(ranks=2, batch_size=64, micro_batch=8)
    assert (made.local_batch, made.micro_batches, made.micro_batch) == (32, 4, 8)
    made = plan(ranks=2, batch_size=64, micro_batch=500)
    assert (made.local_batch, made.micro_batches, made.micro_batch) == (32, 1, 32)


def test_plan_resolves_precision_for_the_device():
    assert plan(precision="auto").dtype == torch.float32
    assert plan(precision="fp16").dtype == torch.float16
    assert plan(precision="bf16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("precision", "device", "uses_tf32", "said"),
    [
        ("fp32", "cuda", False, "torch.float32 with products in full, ZeRO"),
        ("tf32", "cuda", True, "torch.float32 with products as TF32, ZeRO"),
        ("fp16", "cuda", True, "torch.float16, ZeRO"),
        ("fp32", "cpu", False, "torch.float32, ZeRO"),
    ],
)
def test_plan_says_how_float32_is_multiplied(precision, device, uses_tf32, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    process = Process(0, 0, 1, 1, torch.device(device))
    options = {"model": ModelOptions("RN-tiny", compile="none"), "precision": precision}
    made = decide(Config(batch_size=32, **options), process)
    assert made.uses_tf32 == uses_tf32
    loader = SimpleNamespace(contents="64 pairs", batches_per_epoch=2)
    assert said in headline(made, loader, Length(steps=2, warmup=1), 100, 0)[0]


def test_plan_refuses_tf32_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ConfigError, match=r"Tesla T4 has no TF32 units\. Pass --precision fp32"):
        resolve_precision("tf32", torch.device("cuda"))


def test_backends_follow_the_plan():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for uses_tf32 in (True, False):
            set_products(uses_tf32)
            assert [backend.allow_tf32 for backend in backends] == [uses_tf32] * 2
            assert dot_precision(torch.float32) == ("tf32" if uses_tf32 else "ieee")
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def test_plan_compiles_blocks_on_a_gpu_unless_asked_for():
    def blocks(**options) -> dict:
        return {"model": ModelOptions("RN-tiny", compile="blocks", **options)}

    assert not plan(stage=1, model=ModelOptions("RN-tiny")).compile
    assert plan(stage=2, **blocks(recompute="full")).compile
    with pytest.raises(ConfigError, match=r"--model\.compile none, or --zero-stage 2"):
        plan(stage=3, **blocks())
    with pytest.raises(ConfigError, match=r"--model\.recompute full, or --model\.compile none"):
        plan(stage=1, **blocks(recompute="selective"))


def test_plan_of_auto_recomputation_never_takes_a_mode_that_would_be_refused():
    def modes(compile: str) -> list[tuple[str, bool]]:
        made = plan(model=ModelOptions("RN-tiny", recompute="auto", compile=compile))
        return [(found.recompute, found.compile) for found in made.recompute_candidates()]

    assert modes("none") == [("none", False), ("selective", False), ("full", False)]
    assert modes("blocks") == [("none", True), ("full", True)]
    given = plan(model=ModelOptions("RN-tiny", recompute="full"))
    assert given.recompute_candidates() == [given]


def modules() -> list[Path]:
    return sorted(ENGINE.rglob("*.py"))


def reads(source: str) -> set[tuple[str, str]]:
    """(owner, attribute) of every attribute read: ``plan.config.model.compile`` has
    ``("model", "compile")``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            found.add((name, node.attr))
    return found


def takes_a_config(source: str) -> list[str]:
    """Functions with a parameter that is a whole ``Config``."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if argument.annotation is not None and ast.unparse(argument.annotation) == "Config"
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(ENGINE).as_posix())
def test_options_that_ask_for_a_decision_are_read_by_the_plan_alone(path):
    allowed = DECIDING.get(path.name, set())
    if allowed is not None:
        assert reads(path.read_text()) & DECIDED <= allowed


def test_a_whole_config_travels_no_further_than_the_plan():
    found = {path.name: takes_a_config(path.read_text()) for path in modules()}
    assert {name: names for name, names in found.items() if names} == {
        # The command line makes it, and refuses what is not there.
        "cli.py": ["main", "_agreed", "_check_names", "_check_files"],
        "plan.py": ["decide", "_zero_stage", "_norms"],
        # A recipe that is only read gives it away.
        "recipes.py": ["hand_over", "__init__"],
        # It is written down, and compared with what was.
        "differences.py": ["plain", "differences"],
    }


def test_the_checks_above_see_what_they_look_for():
    source = "def f(config: Config):\n    return plan.config.zero.stage, options.model.compile\n"
    assert reads(source) & DECIDED == {("config", "zero"), ("zero", "stage"), ("model", "compile")}
    assert takes_a_config(source) == ["f"]
    decided = set().union(*(reads((ENGINE / name).read_text()) for name in DECIDING))
    # Read under another name there.
    assert DECIDED - decided == {("optimizer", "has_exact_weights")}


def test_a_hidden_gather_on_a_cpu_is_refused_where_the_image_tower_sends_too(monkeypatch):
    monkeypatch.setenv("CLIPFAST_CPU_GATHER", "hidden")
    assert plan(ranks=2, stage=2).stage == 2
    assert plan(ranks=1, stage=3).stage == 3
    with pytest.raises(ConfigError, match="CLIPFAST_CPU_GATHER=hidden: at ZeRO stage 3"):
        plan(ranks=2, stage=3)
    shared = ModelOptions("RN-tiny", compile="none", sync_bn=True)
    assert plan(ranks=1, model=shared).norm.ranks == 1
    with pytest.raises(ConfigError, match="CLIPFAST_CPU_GATHER=hidden: with --model"):
        plan(ranks=2, model=shared)
    monkeypatch.setenv("CLIPFAST_CPU_GATHER", "perhaps")
    with pytest.raises(ConfigError, match="is hidden or awaited"):
        plan()
