"""Replace parts of a live model by others, say what was replaced, and give everything back.

A table says what replaces what. `Replacement` is a row for a module: its class gets another class
in front of it. `MethodReplacement` is a row for a method of a class, for all objects of the class.
`Patch` applies rows, keeps the report, and undoes them.
"""

from __future__ import annotations

import copy
import copyreg
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsIndex

from torch import nn

_joined_classes: dict[tuple[type, type], type] = {}


class Patched:
    """Base of what replaces a module's class.

    A subclass overrides what the module does. Parameters, state dict, hooks and attributes stay
    those of the module, `isinstance` holds, and ``super()`` is the module's own class.
    """

    @classmethod
    def install(cls, module: nn.Module) -> Callable[[], None]:
        """Put this class before the module's own.

        Returns:
            A function that gives the module its own class again.
        """
        own, joined = type(module), _joined(cls, type(module))
        module.__class__ = joined

        def restore() -> None:
            # Another library may have put a class of its own before ours since.
            if type(module) is joined:
                module.__class__ = own

        return restore

    def __deepcopy__(self, memo: dict[int, Any]) -> Patched:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __prepare_scriptable__(self) -> nn.Module:
        # So is a scripted one: TorchScript compiles the code of the module's own class.
        return plain_twin(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # A pickled model is the plain one: it loads where clipfast is not installed.
        return copyreg._reconstructor, (own_class(self), object, None), self.__dict__  # type: ignore[attr-defined]


def _joined(cls: type[Patched], own: type) -> type:
    """One class for all modules of a kind: compiled code is guarded by it."""
    if (cls, own) not in _joined_classes:
        joined = type(own.__name__, (cls, own), {"__module__": own.__module__})
        _joined_classes[cls, own] = joined
    return _joined_classes[cls, own]


def own_class(module: object) -> type:
    """The class of a module without what a patch put before it."""
    return next(base for base in type(module).__mro__ if not issubclass(base, Patched))


def plain_twin(module: object) -> nn.Module:
    """The module without its patch, around the same parts."""
    twin: nn.Module = object.__new__(own_class(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_modules"] = dict(module.__dict__["_modules"])
    return twin


def is_exactly(module: object, kind: type) -> bool:
    """Whether a module is of this class itself, patched or not: a subclass may do anything."""
    return own_class(module) is kind


def always_fits(module: nn.Module) -> str | None:
    """The obstacle of a row that fits every module of its class: none."""
    return None


def _at(model: nn.Module, path: str) -> Any:
    """What is at a path of a model; None where the path ends before."""
    found: Any = model
    for name in filter(None, path.split(".")):
        found = getattr(found, name, None)
    return found


@dataclass(frozen=True)
class Replacement:
    """A row of the table: one module of a model, and what it becomes.

    Attributes:
        part: what the report calls it.
        path: where it is in the model, such as ``visual.attnpool``; "" is the model itself.
        kind: the class that it must have, exactly; any other is left alone. None takes a module of
            any class: `obstacle` knows which ones fit.
        by: the class that is put before its own.
        what: what it does then, for the report.
        obstacle: gives the reason why a module of this class is left alone, or None.
        within: path, from the module, of the part whose modules are replaced along with it.
        along: class -> what is put before it, for the modules there; others stay as they are.
    """

    part: str
    path: str
    kind: type[nn.Module] | None
    by: type[Patched]
    what: str
    obstacle: Callable[[nn.Module], str | None] = always_fits
    within: str = ""
    along: Mapping[type, type[Patched]] = field(default_factory=dict)

    def swaps(self, module: nn.Module) -> list[tuple[nn.Module, type[Patched]]]:
        """The modules that this row replaces, each with its new class."""
        inner = _at(module, self.within).modules() if self.along else ()
        found = [(each, self.along.get(own_class(each))) for each in inner]
        return [(module, self.by), *((each, kind) for each, kind in found if kind is not None)]


@dataclass(frozen=True)
class MethodReplacement:
    """A row of the table: a method of a class, for all its objects in this process.

    Attributes:
        part: what the report calls it.
        owner: the class.
        name: the method.
        make: gets the method as it was and returns the one that takes its place.
        what: what it does then, for the report.
    """

    part: str
    owner: type
    name: str
    make: Callable[[Callable[..., Any]], Callable[..., Any]]
    what: str


@dataclass
class Patch:
    """What was done to a model, and the way back.

    Attributes:
        swapped: part of the model -> what it does now.
        left_alone: part of the model -> why it is as it was.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    _restore: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def apply(self, row: Replacement | MethodReplacement, model: nn.Module) -> None:
        """Do what a row says, or note why not.

        Args:
            row: of a table.
            model: where a `Replacement` looks for its module.
        """
        if isinstance(row, MethodReplacement):
            self._replace_method(row)
            return
        module = _at(model, row.path)
        if module is None:
            self.left_alone[row.part] = "the model has none"
        elif row.kind is not None and not is_exactly(module, row.kind):
            self.left_alone[row.part] = f"it is a {type(module).__name__}"
        elif reason := row.obstacle(module):
            self.left_alone[row.part] = reason
        else:
            self.swapped[row.part] = row.what
            for each, kind in row.swaps(module):
                # One that an earlier patch replaced belongs to that patch.
                if not isinstance(each, kind):
                    self._restore.append(kind.install(each))

    def _replace_method(self, row: MethodReplacement) -> None:
        release = _SharedMethod.acquire(row)
        if release is None:
            self.left_alone[row.part] = "another patch has replaced it by something else"
            return
        self.swapped[row.part] = row.what
        self._restore.append(release)

    def undo(self) -> None:
        """Make everything as it was before; a second call does nothing.

        A part belongs to the patch that swapped it: one made later found it done, and does not
        restore it.
        """
        while self._restore:
            self._restore.pop()()

    def __str__(self) -> str:
        lines = [] if self.swapped else ["nothing was swapped: the model runs as it did"]
        lines += [f"swapped     {part}: {what}" for part, what in self.swapped.items()]
        lines += [f"left alone  {part}: {why}" for part, why in self.left_alone.items()]
        return "\n".join(lines)


class _SharedMethod:
    """A method of a class, replaced while any patch wants it."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _all: ClassVar[dict[tuple[type, str], _SharedMethod]] = {}

    def __init__(self, row: MethodReplacement) -> None:
        self.row = row
        self.wanted = 0
        # What the class inherits is not in its own dictionary, and must not be there afterwards.
        self.inherited = row.name not in vars(row.owner)
        self.original = vars(row.owner).get(row.name)
        setattr(row.owner, row.name, row.make(getattr(row.owner, row.name)))

    @classmethod
    def acquire(cls, row: MethodReplacement) -> Callable[[], None] | None:
        """Replace the method, or join those who did the same; None where they did another thing.

        Returns:
            A function that no longer wants it.
        """
        key = (row.owner, row.name)
        with cls._lock:
            shared = cls._all.get(key)
            if shared is None:
                shared = cls._all[key] = cls(row)
            elif shared.row.make is not row.make:
                return None
            shared.wanted += 1
        return shared._release

    def _release(self) -> None:
        owner, name = self.row.owner, self.row.name
        with self._lock:
            self.wanted -= 1
            if self.wanted:
                return
            del self._all[(owner, name)]
            if self.inherited:
                delattr(owner, name)
            else:
                setattr(owner, name, self.original)
