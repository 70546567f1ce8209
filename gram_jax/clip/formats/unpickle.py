"""A pickle reader that executes nothing: an opcode machine over inert values.

A pickle is a program for a stack machine. Python's own reader looks up classes and calls them, which runs whatever code
the file names. This machine has no access to any module: a global name is given to `find`, which returns one of our own
values or raises InputError, and the only calls are those of the functions that `find` wraps in `Call`.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from gram_jax.errors import InputError

MAX_STEPS = 1_000_000  # opcodes; a checkpoint with optimizer states of 1,500 tensors has 200,000
_MAX_KEY = 1 << 60  # larger integers can be chosen such that a dictionary of them is slow
_HINT = "nothing was executed; save the tensors alone, torch.save(model.state_dict(), FILE)"


@dataclasses.dataclass(frozen=True)
class Call:
    """A global that may be called: its name and our own function."""

    name: str
    function: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class ModuleClass:
    """A TorchScript class, by its name."""

    name: str


@dataclasses.dataclass(eq=False)
class Module:
    """A TorchScript object: the name of its class, and its attributes."""

    name: str
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)


class StateDict(dict):
    """An OrderedDict; attributes that the pickle sets on it are ignored."""


_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


class _Mark:
    """The type of the mark on the stack."""


_MARK = _Mark()


def unpickle(
    file: BinaryIO, find: Callable[[str], Any], load: Callable[[Any], Any], max_steps: int | None = None
) -> Any:
    """Returns the value of a pickle, and leaves the file behind it.

    Lists, dictionaries, tuples, text, bytes, numbers, booleans and None are read. Every other opcode, and a call of
    anything but a `Call`, raises InputError that names it. The number of steps is limited, and each takes time and
    memory in proportion to the bytes that it reads or the values that it takes from the stack.

    Args:
      file: an in-memory or memory-mapped file: its `read` must not allocate more than it has.
      find: from a global's name, "module.name", to a value; raises InputError for unknown names, see `refuse`.
      load: from a persistent id to a value; raises InputError for unknown ones.
      max_steps: the largest number of opcodes; None: that of a checkpoint, `MAX_STEPS`.
    """
    machine, max_steps = _Machine(find, load), MAX_STEPS if max_steps is None else max_steps
    for _ in range(max_steps):
        if not (code := file.read(1)):
            raise InputError("the pickle ends too early; copy the file again")
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise InputError(f"byte {code!r} is no opcode of a pickle; copy the file again")
        if opcode.name not in _READ:
            raise InputError(_unsupported(opcode, file))
        argument = opcode.arg.reader(file) if opcode.arg else None
        if opcode.name == "STOP":
            return machine.pop()
        machine.step(opcode.name, argument)
    raise InputError(f"the pickle has more than {max_steps} opcodes; {_HINT}")


def refuse(name: str, reason: str = "it is neither a tensor nor a plain value") -> InputError:
    """Returns the error for a global that is not read; its message names it."""
    return InputError(f"the file uses {name[:200]!r}: {reason}; {_HINT}")


class _Machine:
    """The stack, the positions of the marks on it, and the memo."""

    def __init__(self, find: Callable[[str], Any], load: Callable[[Any], Any]):
        self.find, self.load = find, load
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise InputError("the pickle takes a value from an empty stack; copy the file again")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise InputError("the pickle lacks a mark; copy the file again")
        position = self.marks.pop()
        items = self.stack[position + 1 :]
        del self.stack[position:]
        return items

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise InputError(f"the pickle fills something that is not a {kind.__name__}; copy the file again")
        return self.stack[-1]

    def step(self, name: str, argument: Any) -> None:
        """Executes one opcode of `_READ` except STOP."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)

    def mark(self, _: None) -> None:
        self.marks.append(len(self.stack))
        self.stack.append(_MARK)

    def put(self, index: int | None) -> None:
        value = self.pop()
        self.memo[len(self.memo) if index is None else index] = value
        self.stack.append(value)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise InputError(f"the pickle refers to entry {index} of its memo, which is empty; copy the file again")
        self.stack.append(self.memo[index])

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) and not (isinstance(key, int) and -_MAX_KEY < key < _MAX_KEY):
                raise InputError(f"a dictionary of the file has a key of type {type(key).__name__}; {_HINT}")
            target[key] = value

    def stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise InputError("the pickle has a global whose name is not text; do not trust the file")
        self.stack.append(self.find(f"{module}.{name}"))

    def reduce(self, _: None) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Call) or not isinstance(arguments, tuple):
            raise refuse(_name_of(function), "it cannot be called")
        try:
            self.stack.append(function.function(*arguments))
        except TypeError as error:  # a wrong number of arguments
            raise InputError(f"the file calls {function.name} with wrong arguments; copy it again") from error

    def new(self, _: None) -> None:
        arguments, kind = self.pop(), self.pop()
        if not isinstance(kind, ModuleClass) or arguments != ():
            raise refuse(_name_of(kind), "it cannot be created")
        self.stack.append(Module(kind.name))

    def build(self, _: None) -> None:
        state, target = self.pop(), self.pop()
        if isinstance(target, Module) and isinstance(state, dict):
            target.attributes.update(state)
        elif not isinstance(target, StateDict):
            raise refuse(_name_of(target), "its state cannot be set")
        self.stack.append(target)


def _name_of(value: Any) -> str:
    return value.name if isinstance(value, (Call, ModuleClass, Module)) else type(value).__name__


def _unsupported(opcode: pickletools.OpcodeInfo, file: BinaryIO) -> str:
    """Returns the message for an opcode that is not read, with the global that it names."""
    named = ""
    if opcode.arg and opcode.name in ("INST", "EXT1", "EXT2", "EXT4"):
        named = f" of {str(opcode.arg.reader(file)).replace(' ', '.')[:200]!r}"
    return f"the pickle has the opcode {opcode.name}{named}, which checkpoints do not need; {_HINT}"


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.update([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": lambda machine, names: machine.stack.append(machine.find(names.replace(" ", ".", 1))),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new,
    "BUILD": _Machine.build,
    "BINPERSID": lambda machine, _: machine.stack.append(machine.load(machine.pop())),
}
_READ = {"PROTO", "FRAME", "STOP", *_CONSTANTS, *_LITERALS, *_ACTIONS}
