"""Tables of what a parameter or a command chooses by name, which other code can add to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from mitoflow.errors import InputError

T = TypeVar("T")
Registered = TypeVar("Registered")


class Choices(dict[str, T]):
    """Functions or classes by name, in the order in which they were registered.

    Examples
    --------
    >>> shapes: Choices[type] = Choices("params.yaml: shape")
    >>> @shapes.register("square")
    ... class Square: ...
    >>> shapes["square"]
    <class 'mitoflow.core.choices.Square'>
    >>> shapes["circle"]
    Traceback (most recent call last):
    mitoflow.errors.InputError: params.yaml: shape: found 'circle', expected one of square; choose one of them
    """

    def __init__(self, where: str) -> None:
        """`where` is what chooses from the table, for the message about an unknown name: a file with its key."""
        super().__init__()
        self.where = where

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Return a decorator that adds a function or class under `name`.

        Raises
        ------
        ValueError
            The name is taken.
        """
        if name in self:
            raise ValueError(f"{self.where}: {name} is registered already")

        def add(registered: Registered) -> Registered:
            self[name] = cast(T, registered)
            return registered

        return add

    def require(self, name: str) -> None:
        """Raise InputError where nothing is registered under `name`."""
        self[name]

    def __missing__(self, name: str) -> T:
        raise InputError(self.where, repr(name), f"one of {', '.join(self)}", "choose one of them")
