"""A package that an option needs and that the harness does not bring along."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.errors import UserError


@dataclass(frozen=True, slots=True)
class Library:
    """What is imported, and how it gets here."""

    module: str
    """As it is imported."""
    package: str
    """As it is called."""
    extra: str
    """Of pyproject.toml."""

    @contextmanager
    def needed(self, key: str) -> Iterator[None]:
        """Turns a failed import of it into a message with the extra that brings it.

        Args:
            key: Who wants it, `memory/quant=bnb4`.

        Raises:
            UserError: It is not installed, or does not load.
        """
        try:
            yield
        except ImportError as error:
            remedy = f"pip install -c constraints.txt -e '.[{self.extra}]'"
            raise UserError(f"{key}: {self.package} is not installed or does not load ({error}); {remedy}") from error

    def find(self, key: str) -> None:
        """Looks whether it is there, without importing it.

        Raises:
            UserError: As for `needed`.
        """
        with self.needed(key):
            # Raises by itself where the package around it is not there.
            if importlib.util.find_spec(self.module) is None:
                raise ModuleNotFoundError(f"No module named {self.module!r}")
