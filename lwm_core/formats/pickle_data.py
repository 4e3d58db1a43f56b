"""A pickle read as data: a machine that builds containers and cannot call anything.

Python's own unpickler calls whatever a file names; even a restricted one allocates what a file
asks for before it has seen the bytes. Here the operations come from `pickletools.genops`, which
only parses, and the machine knows only those that put literals, containers and references on a
stack. A global is looked up in a table that the caller gives; what is not in the table is refused
by its name.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any

_LITERALS = frozenset(
    [
        *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_IGNORED = frozenset(["PROTO", "FRAME", "STOP"])

Constructors = Mapping[tuple[str, str], Callable[..., Any]]
"""`(module, name)` as a file writes them, and what makes the inert value for its arguments."""


class RefusedPickle(Exception):
    """The file is damaged or holds more than data; says what was found."""


class Stateful:
    """An inert value whose content comes after it, in a state of its own."""

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


class OrderedDict(dict[str, Any], Stateful):
    """`collections.OrderedDict`: made empty and then filled; attributes set on it are dropped."""

    def __init__(self) -> None:
        super().__init__()

    def set_state(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise RefusedPickle("an OrderedDict in it has a state that is no dict")


class Global:
    """A name that the file asked for and the table knows; an argument of some constructors."""

    def __init__(self, module: str, name: str, make: Callable[..., Any]) -> None:
        self.module = module
        self.name = name
        self.make = make


def _nothing_outside(_: Any) -> Any:
    raise RefusedPickle("it refers to values outside of itself, which these weights never do")


def read_pickle(
    data: mmap | bytes,
    constructors: Constructors,
    find_outside: Callable[[Any], Any] = _nothing_outside,
) -> Any:
    """The value of a pickle, made of plain containers and of what `constructors` return.

    `find_outside` gives the inert value for a persistent id, by which a pickle refers to what is
    stored beside it. The id may be any value that a file can hold.

    Containers may be shared or contain themselves: whoever walks through the value needs limits.
    Raises RefusedPickle when the file is damaged, or names or does anything that is not data.
    """
    machine = _Machine(constructors, find_outside)
    try:
        for operation, argument, _ in pickletools.genops(data):  # type: ignore[arg-type]
            machine.step(operation.name, argument)
        return machine.stack.pop()
    except (ValueError, OverflowError, MemoryError, Warning) as error:  # old texts may make one
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise RefusedPickle(f"it is cut off or no pickle: {reason}") from error
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedPickle("its operations do not fit together") from error


class _Machine:
    """A stack, a memo and the operations that may change them."""

    def __init__(self, constructors: Constructors, find_outside: Callable[[Any], Any]) -> None:
        self.constructors = constructors
        self.find_outside = find_outside
        self.stack: list[Any] = []
        self.waiting: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one operation, or refuse it."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name not in _IGNORED:
            raise RefusedPickle(f"it uses {name}, which weights never need")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: None) -> None:
        self.waiting.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        items, self.stack = self.stack, self.waiting.pop()
        return items

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise TypeError
        return self.stack[-1]

    def tuple_of(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def append(self, _: None) -> None:
        item = self.stack.pop()
        self.top(list).append(item)

    def extend(self, _: None) -> None:
        items = self.marked()
        self.top(list).extend(items)

    def new_dict(self, _: None) -> None:
        items = self.marked()
        self.stack.append({})
        self.update(items)

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def update(self, items: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise RefusedPickle(f"a dict in it has keys of type {type(key).__name__}")
            target[key] = value

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def find_named(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError  # hashing a tuple in tuples without end would overflow the stack
        self.find(module, name)

    def find(self, module: str, name: str) -> None:
        make = self.constructors.get((module, name))
        if make is None:
            raise RefusedPickle(
                f"it asks for {f'{module}.{name}'!a:.160}, which weights never need"
            )
        self.stack.append(Global(module, name, make))

    def reduce(self, _: None) -> None:
        arguments, made_by = self.stack.pop(), self.stack.pop()
        if not isinstance(made_by, Global) or not isinstance(arguments, tuple):
            raise RefusedPickle("it calls what is no constructor of arrays or containers")
        self.stack.append(made_by.make(*arguments))

    def build(self, _: None) -> None:
        state = self.stack.pop()
        self.top(Stateful).set_state(state)


_OPERATIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": _Machine.mark,
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.marked(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": lambda machine, _: machine.push(machine.marked()),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "DICT": _Machine.new_dict,
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.update(machine.marked()),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": lambda machine, names: machine.find(*names.split(" ", 1)),
    "STACK_GLOBAL": _Machine.find_named,
    "BINPERSID": lambda machine, _: machine.push(machine.find_outside(machine.stack.pop())),
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
