"""What is said where a quantisation's library is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import UserError


@contextmanager
def needed(key: str, package: str, extra: str) -> Iterator[None]:
    """Turns a failed import of a library into a message with the extra that brings it.

    Args:
        key: Who wants it, `memory/quant=bnb4`.
        package: Its name.
        extra: Of pyproject.toml.

    Raises:
        UserError: It is not installed, or does not load.
    """
    try:
        yield
    except ImportError as error:
        remedy = f"pip install -c constraints.txt -e '.[{extra}]'"
        raise UserError(f"{key}: {package} is not installed or does not load ({error}); {remedy}") from error
