"""What becomes of each row of a split, as the account has it, with the first rows of each reason."""

import textwrap
from typing import Any

from harness.doctor.wording import counted

_FATES = ("skipped", "dropped", "truncated", "resized")
_WRAP = textwrap.TextWrapper(114, break_long_words=False, break_on_hyphens=False)
"""A path is never broken: it is there to be copied."""


def show(name: str, account: dict[str, Any], streamed: bool) -> None:
    """Prints the account of a split."""
    of = "the first rows of a stream" if streamed else "rows"
    samples = counted(account["samples"], "sample")
    print(f"{name}: {account['used']:,} of {account['rows']:,} {of} used, {samples}")
    for fate in _FATES:
        for reason, entry in account[fate].items():
            print(f"  {entry['rows']:,} {fate}: {reason}")
            if fate == "skipped":
                print("".join(f"    {message}\n" for message in entry["first"]), end="")
                continue
            # Of these nothing but the place is known, so they share lines.
            listed = ", ".join(entry["first"])
            print("\n".join(f"    {line}" for line in _WRAP.wrap(listed)))
    print()


def findings(name: str, account: dict[str, Any]) -> list[str]:
    """Returns a message for each fate by which rows, or parts of them, are not learnt."""
    found = []
    for fate in ("skipped", "dropped", "truncated"):
        if account[fate]:
            reasons = ", ".join(f"{entry['rows']:,} {reason}" for reason, entry in account[fate].items())
            number = sum(entry["rows"] for entry in account[fate].values())
            found.append(f"{name}: {number:,} of {account['rows']:,} rows {fate}: {reasons}")
    return found
