"""Refuses exceptions of a freeze policy that free what an adapter does not train all the same."""

from harness.errors import reject
from harness.freeze.policy import Policy
from harness.model.component import strip_peft
from harness.tuner.peft_adapter import base_name
from harness.tuner.tuned import Tuned


def check_exceptions(tuned: Tuned, policy: Policy, tuner: str) -> None:
    """Checks that something of each exception trains, or has an adapter around it.

    Args:
        tuned: What the tuner made of the model.
        policy: Where it was allowed.
        tuner: Its name.

    Raises:
        UserError: `freeze.trainable` or `freeze.trainable_regex` has no effect.
    """
    if not tuned.adapter or not policy.exceptions:
        return
    named = dict(tuned.model.named_parameters())
    known = {base_name(name) for name in named.keys() - tuned.adapter}
    trained = {base_name(name) for name in named.keys() - tuned.adapter if named[name].requires_grad}
    places = {place for name in known for place in _above(name)}
    # PEFT says where its adapters are, some of which share their weights. Others are where their weights are, on behalf
    # of what is around that: a bottleneck behind o_proj is the attention's.
    added = getattr(tuned.model, "targeted_module_names", None)
    if added is None:
        inside = [next((p for p in _above(strip_peft(name)) if p in places), "") for name in tuned.adapter]
        added = [place.rpartition(".")[0] for place in inside]
    adapted = set(added)
    for (key, value), names in policy.exceptions.items():
        if not any(name in trained or adapted.intersection((*_above(name), "")) for name in names):
            remedy = f"tuner={tuner} trains nothing of it: it puts no adapter there; name its modules or leave it out"
            raise reject(key, value, remedy)


def _above(name: str) -> list[str]:
    """Returns the modules that a parameter is in, the innermost first."""
    parts = name.split(".")
    return [".".join(parts[:number]) for number in range(len(parts) - 1, 0, -1)]
