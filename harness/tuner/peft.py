"""Any method of PEFT that can train a Qwen3-VL, with its options checked: `tuner.method=hra tuner.options={r:8}`.

Papers, formulas and defaults are those of the method in PEFT. Methods with a tuner of their own are refused: that tuner
checks more. `peft_method.py` says which others are refused and why.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import reject
from harness.registry import register
from harness.tuner.peft_method import (
    INTO,
    NEEDED,
    OWN_TUNER,
    PLAIN_ONLY,
    REFUSED,
    RESERVED,
    WITHOUT_EFFECT,
    Into,
    Method,
)
from harness.tuner.targeted import TargetedConfig

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned


@dataclass(kw_only=True, slots=True)
class PeftMethodConfig(TargetedConfig):
    """A method and its options. all-linear stands for all norms with ln_tuning, the embedding with trainable_tokens."""

    name: str = "peft"
    method: Method = Method.lokr
    """PEFT's name of the method."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of the method's config in PEFT, such as {r: 8, alpha: 16}; what is not given is as PEFT has it."""

    @property
    def needs_plain_base(self) -> str | None:
        """Why a quantised base will not do, or None."""
        reason = PLAIN_ONLY.get(self.method)
        return reason and f"with tuner.method={self.method.name} {reason}"

    def __post_init__(self) -> None:
        TargetedConfig.__post_init__(self)
        method = self.method
        if method in OWN_TUNER:
            own = OWN_TUNER[method]
            raise reject("tuner.method", method.name, f"has a tuner of its own: tuner={own}")
        if method in REFUSED:
            raise reject("tuner.method", method.name, f"can not train here: {REFUSED[method]}")
        for key, reason in (RESERVED | WITHOUT_EFFECT.get(method, {})).items():
            if key in self.options:
                raise reject(f"tuner.options.{key}", self.options[key], f"can not be given here: {reason}")
        for key, meaning in NEEDED.get(method, {}).items():
            if not self.options.get(key):
                raise reject(f"tuner.options.{key}", self.options.get(key), f"give {meaning}")
        if method is Method.trainable_tokens and self.modules_to_save:
            raise reject("tuner.modules_to_save", self.modules_to_save, "is no part of trainable_tokens; leave it out")


@register("tuner", PeftMethodConfig)
def build(config: PeftMethodConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts the method into what it goes into, of the trainable components.

    Args:
        config: Method, options and targets.
        loaded: The frozen base model.
        policy: Where adapters may go.
        outlook: Not looked at.

    Raises:
        UserError: The method has no such option, or PEFT refuses its value or this model.
    """
    from harness.tuner.peft_adapter import count_biases, wrap
    from harness.tuner.peft_options import EMBEDDING, NORM, checked_options, config_class, explained
    from harness.tuner.target import LINEAR

    kind = {None: LINEAR, Into.norm: NORM, Into.embedding: EMBEDDING}[INTO.get(config.method)]
    options = checked_options(config.method, config.options)
    with explained(config.method, config.options):
        tuned = wrap(loaded, policy, config, config_class(config.method), kind, **options)
    if options.get("bias", "none") != "none" and not count_biases(tuned.model):
        remedy = "what the freeze policy leaves free has no biases; leave it out"
        raise reject("tuner.options.bias", options["bias"], remedy)
    return tuned
