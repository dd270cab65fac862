"""The one exception for what a user can cause; `python -m harness` turns it into exit code 2."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_USER, EXIT_CRASH, EXIT_HUNG = 2, 1, 3
"""Exit codes: a mistake that the user can mend, anything else, and a run that stood still (`trainer.watchdog_s`)."""


class UserError(ValueError):
    """A mistake that the user can mend: says the key or place, the value found and the remedy.

    It takes one message only, so that it survives pickling across worker processes.
    """


def reject(key: str, value: object, remedy: str) -> UserError:
    """Builds the error for a config value that can not be used.

    Args:
        key: Full config key, for example `tuner.rank`.
        value: The value found there.
        remedy: What to write instead.
    """
    return UserError(f"{key}={value}: {remedy}")


def tell(error: UserError) -> None:
    """Prints a mistake on standard error: one message, or the traceback where HYDRA_FULL_ERROR=1 asks for it."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr)


@contextmanager
def ends_on_mistake() -> Iterator[None]:
    """Tells a mistake and ends the process, within what Hydra calls: Hydra would show where it was raised."""
    try:
        yield
    except UserError as error:
        tell(error)
        sys.exit(EXIT_USER)
