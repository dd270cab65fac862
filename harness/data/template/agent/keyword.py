"""Calls behind keywords, each in a line of its own, as ReAct (https://arxiv.org/abs/2210.03629) has them.

ms-swift writes arguments as Python prints them, with single quotes; here they are the JSON that the formats ask for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.data.template.agent.call import Call


@dataclass(frozen=True, slots=True)
class Keywords:
    """What stands in front of a call's parts and of its result."""

    name: str
    arguments: str
    result: str

    def calls(self, calls: Sequence[Call]) -> list[str]:
        """Writes calls; the model stops at the keyword of the result."""
        texts = [f"{self.name} {call.name}\n{self.arguments} {call.json}\n" for call in calls]
        return [*texts[:-1], texts[-1] + self.result]

    def results(self, written: str, results: Sequence[str]) -> tuple[str, str] | None:
        """Writes results, also those of calls that an assistant message spells out itself."""
        if self.name not in written or self.arguments not in written:
            return None
        stop = "" if written.endswith(self.result) else self.result
        if stop and not written.endswith("\n"):
            stop = "\n" + stop
        return stop, self.result.join(text if text.endswith("\n") else text + "\n" for text in results)


REACT = Keywords("Action:", "Action Input:", "Observation:")
