"""Tokens of a split's samples: all of them, those that carry loss, and those of images and videos."""

from typing import Any

from harness.doctor import spread
from harness.doctor.split import Split
from harness.doctor.wording import counted

_LITTLE = 0.01
"""Share of supervised tokens below which it is worth a word."""


def measure(split: Split) -> dict[str, Any]:
    """Returns the figures for doctor.json."""
    samples = split.samples
    quantities = {"tokens": samples.lengths, "supervised": samples.supervised, "visual": samples.visual}
    total = int(samples.lengths.sum(dtype="int64"))
    return {
        "samples": len(samples),
        "spread": {name: spread.measure(values) for name, values in quantities.items()},
        "before_truncation": spread.measure(split.whole_lengths),
        "supervised_share": int(samples.supervised.sum(dtype="int64")) / total if total else None,
        "max_length": samples.encoder.max_length,
    }


def show(name: str, tokens: dict[str, Any]) -> None:
    """Prints the figures; where a cut or drop took tokens, those before it too."""
    if not tokens["samples"]:
        return
    spreads = dict(tokens["spread"])
    whole = tokens["before_truncation"]
    if whole != spreads["tokens"]:
        spreads = {"tokens before data.max_length": whole, **spreads}
    if not spreads["visual"]["max"]:
        del spreads["visual"]
    share = f"{100 * tokens['supervised_share']:.1f} % of the tokens carry loss"
    samples = counted(tokens["samples"], "sample")
    title = f"{name}: {samples} of at most {tokens['max_length']:,} tokens; {share}"
    spread.show(title, "per sample", spreads)


def findings(name: str, tokens: dict[str, Any]) -> list[str]:
    """Returns whether hardly anything is learnt."""
    share = tokens["supervised_share"]
    if share is None or share >= _LITTLE:
        return []
    return [f"{name}: only {100 * share:.2f} % of the tokens carry loss"]
