"""What the commands beside `python -m harness` share: how mistakes and a Ctrl-C end them, and flags among overrides."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from harness.errors import EXIT_USER, UserError, tell


class Parser(argparse.ArgumentParser):
    """Says what is wrong as every other mistake is said; --help is the command's own."""

    def __init__(self, prog: str) -> None:
        """Args: the command, `python -m ...`."""
        super().__init__(prog=prog, add_help=False, allow_abbrev=False)
        self.add_argument("--help", "-h", action="store_true")

    def error(self, message: str) -> Any:
        """Raises what argparse would exit with."""
        raise UserError(f"{message}; see {self.prog} --help")


def run(
    parser: Parser, arguments: Sequence[str] | None, usage: str, command: Callable[[argparse.Namespace], int]
) -> int:
    """Parses and runs a command; returns its exit code, 2 for a mistake of the user's, 130 after Ctrl-C, 141 where
    nobody reads on.

    Args:
        parser: Of its flags; values without a flag may stand between them.
        arguments: Behind the command; None takes those of this process.
        usage: What --help prints.
        command: Takes what was parsed.
    """
    try:
        asked = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
        if asked.help:
            print(usage, end="")
            return 0
        code = command(asked)
        sys.stdout.flush()
        return code
    except UserError as error:
        tell(error)
        return EXIT_USER
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Who reads has seen enough; Python would try again to write what is left when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
