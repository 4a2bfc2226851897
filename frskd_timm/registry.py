"""Registry of interchangeable parts by name; the files of a folder are imported automatically."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from frskd_timm.errors import UserError

T = TypeVar("T")


def _place(builder: Callable[..., Any]) -> Any:
    """Return module and name of a builder, or the builder if it has no name, as a `functools.partial`."""
    return (builder.__module__, builder.__qualname__) if hasattr(builder, "__qualname__") else builder


class Registry(Generic[T]):
    """Maps names to builders of one kind of part.

    Args:
        kind: What the parts are, for messages ('self-teacher').
        package: Package whose modules register the parts; they are imported at the first lookup.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._builders: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Return a decorator that registers a builder (a class or a function) under `name`.

        Registering a builder of the same module and name again, as when a notebook cell is re-run, replaces it.

        Raises:
            TypeError: There is no name.
            ValueError: The name is already registered.
        """
        if not isinstance(name, str):
            raise TypeError(f"A {self.kind} is registered with a name: @register('mine'), not @register.")

        def decorate(builder: Callable[..., T]) -> Callable[..., T]:
            if not str(builder.__module__).startswith(self.package):
                self.names()  # so that the package's own parts have their names first
            other = self._builders.get(name, builder)
            if other is not builder and _place(other) != _place(builder):
                raise ValueError(f"There is already a {self.kind} named '{name}', in {other.__module__}.")
            self._builders[name] = builder
            return builder

        return decorate

    def names(self) -> list[str]:
        """Return all registered names, sorted."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        return sorted(self._builders)

    def get(self, name: str, also: Iterable[str] = ()) -> Callable[..., T]:
        """Return the builder registered under `name`; `also` are names for the message that need no builder.

        Raises:
            UserError: The name is unknown; the message lists the known names.
        """
        if name not in self._builders and name not in (names := self.names()):
            raise UserError(f"Unknown {self.kind} '{name}'; choose from {', '.join([*also, *names])}.")
        return self._builders[name]
