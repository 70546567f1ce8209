"""A registry of factories by name, and the text form of a factory call: `ivlp(depth=9, num_visual=4)`."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from gram_jax.errors import InputError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Factories of one family, by name.

    Args:
      family: the word for a member in messages, such as "tuner".
      factories: the factories; each is registered under its `__name__`.

    Example:
      >>> def coop(num_tokens=4): return f"coop with {num_tokens} tokens"
      >>> registry = Registry("tuner", coop)
      >>> registry.make("coop", num_tokens=16)
      'coop with 16 tokens'
      >>> registry.parse("coop(num_tokens=2)")
      'coop with 2 tokens'
    """

    def __init__(self, family: str, *factories: Callable[..., T]):
        self.family = family
        self._factories = {factory.__name__: factory for factory in factories}

    def __contains__(self, name: str) -> bool:
        return name in self._factories

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The registered names, sorted."""
        return tuple(sorted(self._factories))

    def register(self, factory: Callable[..., T]) -> Callable[..., T]:
        """Adds a factory under its `__name__`, which must be new, and returns it; can be used as a decorator."""
        if factory.__name__ in self._factories:
            raise InputError(f"{self.family} {factory.__name__!r} exists already; give the function another name")
        self._factories[factory.__name__] = factory
        return factory

    def factory(self, name: str) -> Callable[..., T]:
        """Returns the factory of a name; InputError about an unknown name suggests the closest one."""
        if name not in self._factories:
            raise InputError(
                f"there is no {self.family} {name!r}{nearest(name, self.names)}; choose from {', '.join(self.names)}"
            )
        return self._factories[name]

    def settings(self, name: str) -> dict[str, inspect.Parameter]:
        """Returns the settings of a factory, by name."""
        return dict(inspect.signature(self.factory(name)).parameters)

    def check_settings(self, name: str, settings: dict[str, Any]) -> None:
        """Raises InputError if a factory has no setting of a given name, or a required setting is missing."""
        known = self.settings(name)
        listed = f"its settings are {', '.join(known)}" if known else "it has no settings"
        for setting in settings:
            if setting not in known:
                raise InputError(
                    f"{self.family} {name!r} has no setting {setting!r}{nearest(setting, known)}; {listed}"
                )
        for setting, parameter in known.items():
            if parameter.default is parameter.empty and setting not in settings:
                raise InputError(f"{self.family} {name!r} needs the setting {setting!r}; {listed}")

    def make(self, name: str, **settings: Any) -> T:
        """Returns the member that a factory makes; InputError if name or settings are unknown, missing or refused.

        Args:
          name, settings: the factory's name and arguments.
        """
        self.check_settings(name, settings)
        return self.factory(name)(**settings)

    def parse(self, text: str) -> T:
        """Returns the member that a text describes; InputError as `parse_call` and `make`.

        Args:
          text: `NAME` or `NAME(setting=literal, ...)`.
        """
        call = parse_call(text)
        return self.make(call.name, **call.settings)


def reduced(member: Any, module: str, registry: str = "REGISTRY") -> Any:
    """Returns what pickle keeps of a member of a registry: its name and settings; `__reduce__` returns it.

    A member that is not registered is reduced field by field, so that it can be copied.

    Args:
      member: a named tuple with `name` and `settings`.
      module, registry: the module of its registry, such as "gram_jax.tuners", and the registry's name there.
    """
    if member.name in getattr(importlib.import_module(module), registry):
        return restored, (module, registry, member.name, dict(member.settings))
    return type(member)._make, (tuple(member),)


def restored(module: str, registry: str, name: str, settings: dict[str, Any]) -> Any:
    """Returns the member of a registry that `reduced` describes."""
    return getattr(importlib.import_module(module), registry).make(name, **settings)


class Call(NamedTuple):
    """A name and settings."""

    name: str
    settings: dict[str, Any]

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{self.name}({inside})" if inside else self.name


def parse_call(text: str, flag: str = "") -> Call:
    """Parses `NAME` or `NAME(setting=literal, ...)`; another form raises InputError, which names the flag.

    Nothing is evaluated but Python literals: numbers, quoted strings, True, False, None, tuples, lists, dictionaries.

    Example:
      >>> parse_call("ivlp(depth=9, init_text='a photo of a')")
      Call(name='ivlp', settings={'depth': 9, 'init_text': 'a photo of a'})
      >>> str(parse_call("coop"))
      'coop'
    """
    named = f"--{flag}={text}" if flag else repr(text)
    problem = f"{named} is not NAME or NAME(setting=value, ...), with numbers, quoted strings, True, False or None"
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return Call(node.id, {})
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise InputError(problem)
        settings = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
        if len(settings) < len(node.keywords):  # one was given twice, or as **settings
            raise InputError(f"{problem}, each setting once")
        return Call(node.func.id, settings)
    except InputError:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(problem) from error


def split_calls(text: str) -> list[str]:
    """Splits a text at the commas that are outside brackets and quotes; an empty text has no parts.

    Example:
      >>> split_calls("npt(centered=True):1.0, kgcoop:8")
      ['npt(centered=True):1.0', 'kgcoop:8']
    """
    parts, depth, quote, begin = [], 0, "", 0
    for position, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[begin:position])
            begin = position + 1
    return [part.strip() for part in (*parts, text[begin:])] if text.strip() else []
