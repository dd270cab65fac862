"""PEFT's methods as data: which `tuner=peft` offers, what they go into, and why the others can not be used.

`tests/tuner/test_peft.py` holds the list to PEFT's own and runs every method.
"""

from enum import Enum
from typing import Any


class Method(Enum):
    """Every method of PEFT 0.21, by PEFT's name."""

    adalora = "adalora"
    adamss = "adamss"
    adaption_prompt = "adaption_prompt"
    beft = "beft"
    boft = "boft"
    c3a = "c3a"
    cartridge = "cartridge"
    cpt = "cpt"
    deft = "deft"
    delora = "delora"
    fourierft = "fourierft"
    frod = "frod"
    glora = "glora"
    gralora = "gralora"
    hira = "hira"
    hra = "hra"
    ia3 = "ia3"
    lily = "lily"
    ln_tuning = "ln_tuning"
    loha = "loha"
    lokr = "lokr"
    lora = "lora"
    miss = "miss"
    multitask_prompt_tuning = "multitask_prompt_tuning"
    oft = "oft"
    osf = "osf"
    p_tuning = "p_tuning"
    peanut = "peanut"
    poly = "poly"
    prefix_tuning = "prefix_tuning"
    prompt_tuning = "prompt_tuning"
    psoft = "psoft"
    pvera = "pvera"
    randlora = "randlora"
    road = "road"
    shadow = "shadow"
    shira = "shira"
    supertuning = "supertuning"
    tinylora = "tinylora"
    trainable_tokens = "trainable_tokens"
    unilora = "unilora"
    vblora = "vblora"
    vera = "vera"
    waveft = "waveft"
    xlora = "xlora"


class Into(Enum):
    """What a method goes into where that is no linear layer."""

    norm = "norm"
    embedding = "embedding"


_VIRTUAL_TOKENS = "puts virtual tokens before the text, which neither packed rows nor mRoPE positions leave room for"
REFUSED = {
    Method.adaption_prompt: "knows the attention of Llama, Mistral and GPT-2 only",
    Method.cartridge: _VIRTUAL_TOKENS,
    Method.cpt: _VIRTUAL_TOKENS,
    Method.multitask_prompt_tuning: _VIRTUAL_TOKENS,
    Method.p_tuning: _VIRTUAL_TOKENS,
    Method.poly: "chooses among skills by a task number, which rows here do not have",
    Method.prefix_tuning: _VIRTUAL_TOKENS,
    Method.prompt_tuning: _VIRTUAL_TOKENS,
    Method.shadow: "builds a second decoder out of a text model's config, which a Qwen3-VL keeps one level down",
    Method.xlora: "mixes LoRA adapters that were trained before, in a forward pass of its own",
}
"""Methods that can not train a Qwen3-VL here, and why."""

PLAIN_ONLY = {Method.glora: "is for plain linear layers in PEFT"}
"""Methods that a quantised base is not for, and why."""

OWN_TUNER = {
    Method.adalora: "adalora",
    Method.boft: "boft",
    Method.fourierft: "fourierft",
    Method.lora: "lora",
    Method.miss: "bone",
    Method.oft: "oft",
    Method.vera: "vera",
}
"""Methods with a tuner of their own, which checks more and knows their training."""

INTO = {Method.ln_tuning: Into.norm, Method.trainable_tokens: Into.embedding}
"""Methods that go into something else than linear layers."""

DEFAULTS: dict[Method, dict[str, Any]] = {
    # The outputs of attention and of the MLP's inner layers are scaled, and the inputs of its last (arXiv 2205.05638).
    Method.ia3: {"feedforward_modules": r".*\.(?:down_proj|linear_fc2)"},
    Method.frod: {"progressbar": False},
}
"""Options that differ from PEFT's defaults, or that it has none for."""

NEEDED = {Method.trainable_tokens: {"token_indices": "the numbers of the tokens to train"}}
"""Options without which a method trains nothing."""

_BY_TARGETS = "targets are tuner.target_modules or tuner.target_regex"
RESERVED = {
    "target_modules": _BY_TARGETS,
    "exclude_modules": _BY_TARGETS,
    "layers_to_transform": _BY_TARGETS,
    "layers_pattern": _BY_TARGETS,
    "modules_to_save": "is tuner.modules_to_save",
    "fan_in_fan_out": "is for GPT-2's layers, and a Qwen3-VL has none",
    "inference_mode": "is for a trained adapter",
    "peft_type": "is tuner.method",
    "task_type": "goes by PEFT's own forward pass, which does not run here",
    "auto_mapping": "is PEFT's own",
    "base_model_name_or_path": "is model.path",
    "peft_version": "is PEFT's own",
    "revision": "is part of model.path",
}
"""Fields of PEFT's configs that are no options, and why."""

_ASA = "belongs to adaptive subspaces, which need calls in every step that only PEFT's callback for Trainer makes"
WITHOUT_EFFECT = {
    Method.adamss: {
        "use_asa": _ASA,
        "asa_target_subspaces": _ASA,
        "asa_importance_beta": _ASA,
        "asa_uncertainty_beta": _ASA,
        "asa_schedule_exponent": _ASA,
        "init_warmup": _ASA,
        "final_warmup": _ASA,
        "mask_interval": _ASA,
    },
}
"""Options of a method that PEFT would take and that would do nothing here, and why."""
