"""Where operators are declared: the one caller of torch.library in clipfast.

An operator is declared once, with all that torch and clipfast must know of it:

    declare(
        Operator(
            name="quick_gelu",                    # torch.ops.clipfast.quick_gelu
            schema="(Tensor x) -> Tensor y",
            plain=plain.forward,                  # plain torch: serves where no other form does
            fake=_fake_forward,                   # shapes and types, for torch.compile
            gradient=Gradient(_backward, _setup_context),
            forms=(Compiled("cpu"), Triton("quick_gelu:launch_quick_gelu")),
        )
    )

Schemas stand here alone. The compiled functions of csrc register themselves when clipfast._C is
loaded, which comes first: as a schema is then defined, torch compares the function's arguments with
it. In the other order a difference would end the process.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from clipfast.ops.extension import REMEDY, has_cuda_operators, import_kernels, load_extension

PLAIN, TRITON = "plain", "triton"
# Below every backend's key: what is registered here serves whatever device has no form of its own.
_ANYWHERE = "CompositeExplicitAutograd"

# Found here and not in a call, which torch.compile may trace.
_HAS_EXTENSION = load_extension() is not None
_HAS_CUDA = has_cuda_operators()
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
_TORCH_VERSION = tuple(int(number) for number in torch.__version__.split(".")[:2])


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A function of csrc that registers itself in clipfast._C.

    Attributes:
        name: of the implementation, and of the devices that it serves: "cpu" or "cuda".
    """

    name: Literal["cpu", "cuda"]

    def serves(self, device: torch.device) -> bool:
        """Whether it was built, and is for this device."""
        return device.type == self.name and (_HAS_CUDA if self.name == "cuda" else _HAS_EXTENSION)


@dataclasses.dataclass(frozen=True)
class Triton:
    """A launcher of clipfast.kernels, and what it needs.

    Attributes:
        launcher: "room:function", of clipfast.kernels.<room>.launch; the room alone where the
            operator's `impl` argument chooses.
        capability: the least compute capability.
        least_torch: the least version of torch, on a GPU.
        name: of the implementation.
    """

    launcher: str
    capability: tuple[int, int] = (8, 0)
    least_torch: tuple[int, int] = (2, 6)
    name: str = TRITON

    def serves(self, device: torch.device) -> bool:
        """Whether Triton runs it on this device; on the CPU only interpreted."""
        return runs_triton(device, self.capability, self.least_torch)


class Gradient(NamedTuple):
    """An operator's backward.

    Attributes:
        backward: (ctx, *gradients of the results) -> gradients of the arguments.
        setup_context: (ctx, inputs, output), keeps what `backward` needs.
    """

    backward: Callable[..., Any]
    setup_context: Callable[..., None]


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator of torch.ops.clipfast.

    Attributes:
        name: in torch.ops.clipfast.
        schema: arguments and results, without the name.
        plain: the operator in plain torch, on any device.
        fake: results of the right shapes and types, without values.
        gradient: None where autograd is somebody else's matter.
        forms: implementations beside `plain`, best first.
        chosen_by: "device": torch's dispatcher takes the first form that serves the arguments'
            device, else `plain`. "caller": every form has a name of its own (`overload`), and
            nothing takes another's place. "argument": `plain` itself reads the argument `impl`, and
            takes the steps of that form.
        fakes: by implementation, where its results differ from those of `fake` in shape or type.
    """

    name: str
    schema: str
    plain: Callable[..., Any]
    fake: Callable[..., Any]
    gradient: Gradient | None = None
    forms: tuple[Compiled | Triton, ...] = ()
    chosen_by: Literal["device", "caller", "argument"] = "device"
    fakes: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)

    def name_of(self, impl: str) -> str:
        """The name of one implementation in torch.ops.clipfast."""
        return f"{self.name}_{impl}" if self.has_own_name(impl) else self.name

    def has_own_name(self, impl: str) -> bool:
        """Whether an implementation is an operator beside the one that the dispatcher serves."""
        return self.chosen_by == "caller" and impl in (PLAIN, TRITON)


OPERATORS: dict[str, Operator] = {}


def runs_triton(
    device: torch.device | str,
    capability: tuple[int, int] = (8, 0),
    least_torch: tuple[int, int] = (2, 6),
) -> bool:
    """Whether Triton's kernels run on a device.

    Args:
        device: where the arguments are.
        capability: the least compute capability.
        least_torch: the least version of torch, on a GPU.

    Returns:
        True on a GPU that is new enough where Triton is installed. On the CPU only where
        TRITON_INTERPRET=1 makes Triton interpret its kernels, for tests.
    """
    device = torch.device(device)
    if not _HAS_TRITON:
        return False
    if device.type != "cuda":
        return _INTERPRETS and device.type == "cpu"
    return least_torch <= _TORCH_VERSION and torch.cuda.get_device_capability(device) >= capability


def available_impls(operator: str, device: torch.device | str) -> list[str]:
    """Names of the implementations that can serve an operator on a device.

    Args:
        operator: its name.
        device: where its arguments are.

    Returns:
        Some of "cpu", "cuda", "triton" and "plain", best first. Interpreted Triton comes after
        plain torch: it is there for tests.
    """
    device = torch.device(device)
    names = [form.name for form in OPERATORS[operator].forms if form.serves(device)]
    if device.type == "cpu" and TRITON in names:
        return [*(name for name in names if name != TRITON), PLAIN, TRITON]
    return [*names, PLAIN]


def current_name(impl: str) -> str:
    """The name of an implementation as it is spelled now.

    Args:
        impl: as a caller gave it. "torch", the name of "plain" up to 0.1, still serves in 0.2.

    Returns:
        The name, known or not.
    """
    if impl != "torch":
        return impl
    if not torch.compiler.is_compiling():
        warnings.warn(
            "impl='torch' is now called impl='plain'. The old name serves in 0.2 and ends with it.",
            FutureWarning,
            stacklevel=2,
        )
    return PLAIN


def overload(operator: str, impl: str) -> torch._ops.OpOverload:
    """One implementation of an operator whose caller chooses.

    Args:
        operator: its name.
        impl: "cpu", "cuda", "triton" or "plain".

    Returns:
        What is called with the operator's arguments. The compiled forms share theirs: the device
        picks among them.
    """
    return getattr(torch.ops.clipfast, OPERATORS[operator].name_of(impl)).default


def launcher(where: str) -> Callable[..., Any]:
    """A launcher of clipfast.kernels, imported when it is first called.

    Args:
        where: "room:function", of clipfast.kernels.<room>.launch.

    Returns:
        The launcher, run with the GPU of its first argument as the current one.
    """
    room, _, function = where.partition(":")

    def launch(*arguments: Any) -> Any:
        launch_function = getattr(import_kernels(room), function)
        device = arguments[0].device
        with torch.cuda.device(device if device.type == "cuda" else -1):
            return launch_function(*arguments)

    return launch


def no_second_derivative(operator: str, instead: str) -> Gradient:
    """The gradient of a backward operator, which refuses.

    Args:
        operator: the forward operator, for the message.
        instead: a function that has a second derivative.
    """

    def refuse(ctx: Any, *_gradients: Tensor | None) -> None:
        raise NotImplementedError(
            f"{operator} has no second derivative; for one, use clipfast.ops.{instead}"
        )

    return Gradient(refuse, lambda ctx, inputs, output: None)


def declare(operator: Operator) -> torch._ops.OpOverloadPacket:
    """Makes an operator known to torch; once per process.

    Returns:
        torch.ops.clipfast.<name>.

    Raises:
        ImportError: clipfast._C has a function of this name with other arguments. It was built from
            another version of clipfast.
    """
    OPERATORS[operator.name] = operator
    library = torch.library
    for impl in (None, PLAIN, TRITON):
        if impl is not None and not operator.has_own_name(impl):
            continue
        name = operator.name if impl is None else operator.name_of(impl)
        _define(name, operator.schema)
        fake = operator.fakes.get(impl or "", operator.fake)
        library.register_fake(f"clipfast::{name}")(_on_one_device(operator.name, fake))
    library.impl(f"clipfast::{operator.name_of(PLAIN)}", _ANYWHERE)(operator.plain)
    for form in operator.forms:
        if isinstance(form, Triton):
            _add_triton(operator, form)
    if operator.gradient is not None:
        library.register_autograd(
            f"clipfast::{operator.name}",
            operator.gradient.backward,
            setup_context=operator.gradient.setup_context,
        )
    return getattr(torch.ops.clipfast, operator.name)


def _define(name: str, schema: str) -> None:
    try:
        torch.library.define(f"clipfast::{name}", schema)
    except RuntimeError as error:
        if not _HAS_EXTENSION:
            raise
        raise ImportError(
            f"clipfast._C was built from another version of clipfast: its {name} does not fit the "
            f"schema {name}{schema}. Remedy: {REMEDY}."
        ) from error


def _on_one_device(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """A fake that refuses real tensors beside meta ones: dispatched to it, those would be answered
    with memory that nobody has written."""

    @functools.wraps(fake)
    def checked(*args: Any, **kwargs: Any) -> Any:
        lists = (arg if isinstance(arg, (list, tuple)) else (arg,) for arg in args)
        flat = [item for items in lists for item in items]
        devices = {str(item.device) for item in flat if isinstance(item, Tensor)}
        if "meta" in devices and len(devices) > 1:
            raise RuntimeError(
                f"{name}: expected all tensors on one device, got {', '.join(sorted(devices))}; a "
                "meta tensor has no values (module.to_empty(device=...) gives it memory to load "
                "weights into)"
            )
        return fake(*args, **kwargs)

    return checked


def _add_triton(operator: Operator, form: Triton) -> None:
    if operator.has_own_name(TRITON):
        launch = launcher(form.launcher)
        torch.library.impl(f"clipfast::{operator.name_of(TRITON)}", _ANYWHERE)(launch)
        return
    before = operator.forms[: operator.forms.index(form)]
    is_first = not (_HAS_CUDA and Compiled("cuda") in before)
    if operator.chosen_by == "device" and _HAS_TRITON and is_first:
        torch.library.impl(f"clipfast::{operator.name}", "CUDA")(_triton_or_plain(operator, form))


def _triton_or_plain(operator: Operator, form: Triton) -> Callable[..., Any]:
    """The GPU's form of an operator that has no compiled one there: plain where it is too old."""
    launch = launcher(form.launcher)

    @functools.cache
    def serves(index: int) -> bool:
        return form.serves(torch.device("cuda", index))

    def call(*arguments: Any) -> Any:
        chosen = launch if serves(arguments[0].device.index) else operator.plain
        return chosen(*arguments)

    return call


if torch.cuda.is_available() and not _HAS_CUDA and not _HAS_TRITON:
    warnings.warn(
        "neither clipfast's CUDA operators nor Triton are here: on the GPU plain torch serves, "
        "slower. `pip install triton`, or rebuild clipfast where nvcc is found.",
        RuntimeWarning,
        stacklevel=2,
    )
