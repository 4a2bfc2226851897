"""Names for interchangeable parts: one decorator registers, every file of the folder is found by itself."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from frskd_timm.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to builders of one kind of part.

    Args:
        kind: What the parts are, for messages ('self-teacher').
        package: Package whose modules register the parts; they are imported at the first look-up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._builders: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator that files a builder (a class or a function) under `name`.

        Raises:
            ValueError: The name is taken.
        """

        def decorate(builder: Callable[..., T]) -> Callable[..., T]:
            if name in self._builders:
                raise ValueError(f"There is a {self.kind} called '{name}' already.")
            self._builders[name] = builder
            return builder

        return decorate

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        return sorted(self._builders)

    def get(self, name: str) -> Callable[..., T]:
        """The builder called `name`.

        Raises:
            UserError: There is none; the message lists those that exist.
        """
        names = self.names()
        if name not in self._builders:
            raise UserError(f"There is no {self.kind} called '{name}'; there are: {', '.join(names)}.")
        return self._builders[name]
