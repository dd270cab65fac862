"""Signals that ask a run to end: the step is finished, saved, and the run leaves as `preempted`.

A handler only notes the number. Lightning's answers SIGTERM with a broadcast from within the handler, which waits for
ever where ranks are at different places. Here ranks tell each other with the count of tokens that they sum in each step
anyway, so all leave behind the same step.
"""

import logging
import signal
import threading
from dataclasses import dataclass
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What SLURM and others send, once or several times. A Ctrl-C counts as well where a run is one process; the second one
stops at once."""


class Preempted(Exception):
    """The run was asked to end, and has done so between two steps."""

    def __init__(self, number: int) -> None:
        """Args: number: Of the signal."""
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(slots=True)
class Stop:
    """What was asked so far."""

    number: int | None = None
    """Of the signal that this process received."""
    agreed: bool = False
    """Whether the current step is the last one, on every rank."""

    def install(self, *, interactive: bool) -> None:
        """Takes the signals; Lightning puts back what was there when it ends.

        Args:
            interactive: Ctrl-C too.
        """
        if threading.current_thread() is threading.main_thread():
            for number in (*SIGNALS, *([signal.SIGINT] if interactive else [])):
                signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Notes a signal.

        Raises:
            KeyboardInterrupt: It is the second Ctrl-C.
        """
        if number == signal.SIGINT and self.number is not None:
            raise KeyboardInterrupt
        self.number = self.number or number

    def agree(self, num_asked: int) -> None:
        """Takes on how many ranks a signal has come; each learns the same at the same step."""
        if num_asked and not self.agreed:
            log.info("asked to end: finishes this step, and saves")
        self.agreed = num_asked > 0

    def leave(self) -> None:
        """Ends the run.

        Raises:
            Preempted: Always.
        """
        raise Preempted(self.number or signal.SIGTERM)
