"""AdamW in one pass over memory, with statistics and weights in half precision."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from clipfast.ops.adamw import BLOCK
from clipfast.ops.adamw.lists import CAN_TELL
from clipfast.optim import states
from clipfast.optim.arrangement import Arrangement, Place
from clipfast.optim.options import FORMAT_OPTIONS, check_options, merged_options
from clipfast.optim.tensor_list import (
    Options,
    Pieces,
    TensorList,
    in_layout,
    moved,
    norm_of,
)

# Tensors that one call of the operator takes agree in these; the arguments of `TensorList`.
Key = tuple[torch.device, torch.dtype, torch.dtype, torch.dtype | None, str, Options]


class FusedAdamW(torch.optim.Optimizer):
    """AdamW (decoupled decay) whose statistics, and where wanted weights, are in half precision.

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        w = w - lr (weight_decay w + (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps))
        w = min(w, maximum)  where a maximum is given

    Equal to ``torch.optim.AdamW`` in fp32; what is kept from step to step is rounded, at random and
    without bias. Gradients are unscaled, clipped and used in the same pass. On a GPU nothing waits
    for the device.

    Statistics (``stats_dtype``): float16 keeps m and sqrt(v) with a power of two for each block of
    256 elements (4.01 bytes a parameter, any range of gradients); bfloat16 without (4 bytes, 8
    times coarser); float32 keeps m and v (8 bytes).

    Weights (``weights``), for a parameter in half precision:

    - "fp32": beside it an fp32 master (4 bytes), of which it is the nearest value;
    - "remainder": bf16 only; beside it 16 bits (2 bytes), together the same fp32 weight, bit for
      bit;
    - "stochastic": nothing beside it; every update is rounded at random, without bias.

    An fp32 parameter is its own master under the first two. Under "stochastic" it is rounded to
    the values of ``weights_dtype``, for arrangements that hold an fp32 copy anyway.

    The random bits are a function of (seed, step, element): a run that is resumed, or has another
    number of threads, repeats them. Elements have the numbers that ``number`` gave them, and others
    are numbered in the order in which ``step`` first meets their parameters, with or without a
    gradient. States are made by ``step`` too, for what
    then stands in ``param_groups``, so that a wrapper may put others there.

    A CUDA graph can capture a step once one was taken. Replays count steps and draw random bits as
    eager steps do; the learning rate and the groups' other numbers stay those of the capture.

    A parameter may be set by hand between steps (a clamp, ``load_state_dict``, an average swapped
    in; also through ``.data``). ``step`` compares each with its master: where it is not the nearest
    value, it is the weight from then on. Of a remainder the 16 bits stay, less than half a unit in
    the parameter's last place; statistics stay as they are, as in ``torch.optim.AdamW``.

    Args:
        params: parameters, or groups with any of the options from ``lr`` to ``weights_dtype`` and
            ``maximum``, a bound of the weights from above.
        lr: step size.
        betas: decay of m and of v.
        eps: added to sqrt(v).
        weight_decay: decoupled decay, per step and unit of ``lr``.
        stats_dtype: torch.float16, torch.bfloat16 or torch.float32.
        weights: "fp32", "remainder" or "stochastic".
        weights_dtype: torch.bfloat16 or torch.float16, for fp32 parameters with stochastic weights.
        max_norm: gradients are scaled down to this 2-norm over all of a ``step``'s parameters, as
            by ``torch.nn.utils.clip_grad_norm_``; None does not clip.
        skip_nonfinite: a step in which a gradient is not finite changes nothing and is counted in
            ``skipped_steps``. Costs one more pass over the gradients, unless they are clipped or a
            ``torch.amp.GradScaler`` has looked at them.
        rounding: "stochastic", or "nearest" to show what is lost by it.
        seed: of the random bits, from 0; the same on every rank that holds the same parameters.
        first_element: number of the first element, a multiple of 256; ranks that hold different
            parts of one model give different ones.

    Raises:
        ValueError: an option is out of its range. What depends on a parameter's type is raised by
            the first ``step``, since a wrapper may change it until then.

    Source: Loshchilov and Hutter 2019, algorithm 2; Dhariwal et al. 2020 (statistics); Radford et
    al. 2021, section 2.5 (weights).
    """

    _step_supports_amp_scaling = True
    # Not in a copy or a pickle, which hold other parameters.
    _arrangement: Arrangement | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        stats_dtype: torch.dtype = torch.float16,
        weights: str = "fp32",
        weights_dtype: torch.dtype | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = True,
        rounding: str = "stochastic",
        seed: int = 0,
        first_element: int = 0,
    ) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ValueError(
                f"expected a max_norm above 0, or None for no clipping; got {max_norm}"
            )
        if rounding not in ("stochastic", "nearest"):
            raise ValueError(f'expected rounding "stochastic" or "nearest", got {rounding!r}')
        if not 0 <= seed < 2**63:
            raise ValueError(f"expected a seed from 0 to 2**63 - 1, got {seed}")
        if first_element < 0 or first_element % BLOCK:
            raise ValueError(
                f"expected a first_element that is a multiple of {BLOCK}, from 0; got "
                f"{first_element}; round up to {-(-first_element // BLOCK) * BLOCK}"
            )
        self.max_norm = max_norm
        self.skip_nonfinite = skip_nonfinite
        self.rounding = rounding
        self.seed = seed
        self._next_element = first_element
        self._pieces: dict[Tensor, Pieces] = {}
        self._skipped: Tensor | None = None
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "stats_dtype": stats_dtype,
            "weights": weights,
            "weights_dtype": weights_dtype,
            "maximum": None,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in ``torch.optim.Optimizer``; the group's options are checked.

        Raises:
            ValueError: an option is out of its range.
        """
        check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        options = ("max_norm", "skip_nonfinite", "rounding", "seed")
        own = (*options, "_next_element", "_pieces", "_skipped")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    @property
    def skipped_steps(self) -> int:
        """Steps without effect since construction, for gradients that were not finite.

        Reading it waits for the device.
        """
        return 0 if self._skipped is None else int(self._skipped)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        A ``torch.amp.GradScaler`` that calls this leaves the division by its scale to it.

        Args:
            closure: evaluates the model anew and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError: a parameter is not fp32, bf16 or fp16, or a gradient is sparse.
            ValueError: the group's options do not suit a parameter, or its state was damaged.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lists = self._collect()
        controls = self._controls(lists)
        for tensors in lists:
            control, taken = controls[tensors.device]
            # torch._foreach_add_ would take a 0-d tensor for a number, and wait to read it.
            torch.ops.aten._foreach_add_.Tensor(tensors.steps, taken)
            tensors.launch(control, self.seed, self.rounding == "stochastic")
        return loss

    def _collect(self) -> list[TensorList]:
        """The tensors of one step, in lists that one call of the operator takes."""
        # A compiler would follow every comparison, to find what it knows without.
        keeps = CAN_TELL and not torch.compiler.is_compiling()
        if keeps and self._arrangement is not None:
            lists = self._arrangement.fill(self.param_groups, self.state)
            if lists is not None:
                return lists
        self._arrangement = None
        sorted_anew, is_plain = self._sort()
        if keeps and is_plain:
            self._arrangement = Arrangement(self.param_groups, self.state, sorted_anew)
        return [tensors for tensors, _ in sorted_anew]

    def _sort(self) -> tuple[list[tuple[TensorList, list[Place]]], bool]:
        """Every parameter with a gradient in its list, its state made or mended.

        Returns:
            The lists with their tensors' places; and whether all gradients lay as their parameters
            do, so that the lists could be filled again without a look at each.
        """
        lists: dict[Key, tuple[TensorList, list[Place]]] = {}
        is_plain = True
        numbers = itertools.count()
        for group_number, group in enumerate(self.param_groups):
            kinds: dict[torch.dtype, tuple[torch.dtype | None, str, Options]] = {}
            stats_dtype, weights = group["stats_dtype"], group["weights"]
            for param in group["params"]:
                place = Place(group_number, next(numbers))
                pieces = self._pieces.get(param)
                if pieces is None:
                    pieces = self._number(param)
                grad = param.grad
                if grad is None:
                    continue
                dtype = param.dtype
                if dtype not in kinds:
                    kept = states.master_dtype(dtype, weights, group["weights_dtype"])
                    on_grid = dtype is torch.float32 and weights == "stochastic"
                    grid = states.GRIDS[group["weights_dtype"]] if on_grid else ""
                    kinds[dtype] = (kept, grid, Options(group, dtype, grid))
                kept, grid, options = kinds[dtype]
                state = self.state[param]
                if not states.fits(param, state, stats_dtype, kept):
                    states.fit(param, state, stats_dtype, kept)
                if grad.layout is not torch.strided or grad.stride() != param.stride():
                    laid = in_layout(param, grad)
                    is_plain = is_plain and laid.data_ptr() == grad.data_ptr()
                    grad = laid
                key = (param.device, dtype, stats_dtype, kept, grid, options)
                found = lists.get(key)
                if found is None:
                    found = lists[key] = (TensorList(*key), [])
                found[0].add(param, grad, state, pieces)
                found[1].append(place)
        return list(lists.values()), is_plain

    def number(self, param: Tensor, starts: Sequence[int], first_elements: Sequence[int]) -> None:
        """Give a parameter's elements their numbers, on which their random bits depend. Where a
        parameter is a flat tensor of others' elements, these keep the bits that they would have
        alone.

        Args:
            param: as it will stand in ``param_groups``.
            starts: where each piece with numbers of its own begins, in the order of memory: 0, then
                multiples of 256 that rise.
            first_elements: the number of each piece's first element, a multiple of 256.

        Raises:
            ValueError: they are no such numbers.
        """
        rises = all(a < b for a, b in itertools.pairwise([*starts, param.numel()]))
        numbers = (*starts, *first_elements)
        if (
            list(starts[:1]) != [0]
            or len(starts) != len(first_elements)
            or not (rises or len(starts) == 1)
            or any(number < 0 or number % BLOCK for number in numbers)
        ):
            raise ValueError(
                f"expected starts of 0 and rising multiples of {BLOCK} below {param.numel()}, and "
                f"as many first_elements, multiples of {BLOCK}; got {[*starts]} and "
                f"{[*first_elements]}"
            )
        self._pieces[param] = Pieces(tuple(starts), tuple(first_elements))
        self._arrangement = None

    def _number(self, param: Tensor) -> Pieces:
        """The numbers of a parameter that got none, given at first sight."""
        pieces = self._pieces[param] = Pieces((0,), (self._next_element,))
        self._next_element += -(-param.numel() // BLOCK) * BLOCK
        return pieces

    def _controls(self, lists: Iterable[TensorList]) -> dict[torch.device, tuple[Tensor, Tensor]]:
        """For each device: [factor of the gradients, whether to skip], and what a step counts."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for tensors in lists:
            by_device.setdefault(tensors.device, []).extend(tensors.grads)
        if not by_device:
            return {}
        home = next(iter(by_device))
        grad_scale = getattr(self, "grad_scale", None)
        found_inf = getattr(self, "found_inf", None)
        looks = self.skip_nonfinite and found_inf is None
        may_skip = self.skip_nonfinite or found_inf is not None
        factor = torch.ones((), dtype=torch.float32, device=home)
        skip = torch.zeros((), dtype=torch.bool, device=home)
        if grad_scale is not None:
            # In fp64, as GradScaler itself does: an fp32 quotient may be compiled to be inexact.
            factor = moved(grad_scale, home).double().reciprocal().float().reshape(())
        if self.max_norm is not None or looks:
            norm = norm_of(by_device, home)
            if self.max_norm is not None:
                clip = self.max_norm / (norm * factor + 1e-6)
                factor = factor * clip.clamp(max=1.0)
            if self.skip_nonfinite:
                skip = ~norm.isfinite()
        if found_inf is not None:
            skip = skip | (moved(found_inf, home).reshape(()) != 0)
        if may_skip:
            self._count(skip)
        skip = skip.float()
        control, taken = torch.stack([factor, skip]), 1 - skip
        return {device: (moved(control, device), moved(taken, device)) for device in by_device}

    def _count(self, skip: Tensor) -> None:
        if self._skipped is None or self._skipped.device != skip.device:
            before = self.skipped_steps
            self._skipped = torch.full((), before, dtype=torch.int64, device=skip.device)
        self._skipped.add_(skip)

    def full_precision(self, param: Tensor) -> Tensor:
        """The exact fp32 weight of a parameter.

        Args:
            param: one of the parameters in ``param_groups``.

        Returns:
            A new fp32 tensor, shape of ``param``: from its master, from bf16 and remainder, or the
            parameter itself.
        """
        return states.exact_weight(param, self.state.get(param, {}))

    def master_parameters(self) -> Iterator[Tensor]:
        """``full_precision`` of every parameter, in the order of groups and parameters."""
        for group in self.param_groups:
            for param in group["params"]:
                yield self.full_precision(param)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict`` gave, or ``torch.optim.AdamW.state_dict``.

        Half statistics stay half, bit for bit; ``torch.optim.Optimizer`` would cast them to the
        parameter's type. Learning rates and the like come from the checkpoint; ``stats_dtype``,
        ``weights`` and ``weights_dtype`` stay those of this optimizer, and what the checkpoint
        holds otherwise is re-encoded, statistics at once and weights by the next ``step``. The
        model's own checkpoint has to be loaded by then. The tensors are copied. ``seed``,
        ``first_element`` and ``skipped_steps`` are not in it: give the first two as before.

        Args:
            state_dict: groups and states; the tensors may be on any device.

        Raises:
            ValueError: the groups differ, a state is none of Adam's or does not have its
                parameter's shape, or the checkpoint uses amsgrad, maximize or coupled decay.
        """
        loaded: dict[Any, Any] = {}

        def convert(_: Any, incoming: dict[str, Any]) -> dict[str, Any]:
            groups = [
                merged_options(mine, theirs)
                for mine, theirs in zip(self.param_groups, incoming["param_groups"], strict=False)
            ]
            loaded.update(self._converted(incoming["state"], incoming["param_groups"]))
            groups += incoming["param_groups"][len(groups) :]
            return {**incoming, "state": {}, "param_groups": groups}

        def install(_: Any) -> None:
            self.state.update(loaded)

        # The first hook runs after the caller's own and the second before them, and torch sees no
        # state that it could cast.
        handles = [
            self.register_load_state_dict_pre_hook(convert),
            self.register_load_state_dict_post_hook(install, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _converted(
        self, incoming: dict[Any, Any], saved_groups: list[dict[str, Any]]
    ) -> dict[Any, Any]:
        converted = dict(incoming)
        for group, saved in zip(self.param_groups, saved_groups, strict=False):
            for param, index in zip(group["params"], saved["params"], strict=False):
                state = converted.pop(index, None)
                if not state:
                    continue
                state = dict(state)
                states.fit_statistics(param, state, group["stats_dtype"], from_torch=True)
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        state[key] = value.to(param.device, copy=True)
                converted[param] = state
        return converted

    def adamw_state_dict(self) -> dict[str, Any]:
        """What ``torch.optim.AdamW.load_state_dict`` takes, with fp32 statistics.

        The weights are ``master_parameters``.
        """
        options = torch.optim.AdamW([torch.zeros(1)]).param_groups[0]
        own = self.state_dict()
        groups = [
            {
                **{key: value for key, value in options.items() if key != "params"},
                **{k: v for k, v in group.items() if k not in (*FORMAT_OPTIONS, "maximum")},
            }
            for group in own["param_groups"]
        ]
        state = {}
        for index, kept in own["state"].items():
            if "exp_avg" in kept:
                first, second = states.moments(kept)
                step = kept["step"].to("cpu", copy=True)
                state[index] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        return {"state": state, "param_groups": groups}
