"""Settings that can not go together or reach nothing: exit code 2, and one line with the key and the remedy."""

import pytest

from harness import config
from harness.compose import compose_config
from harness.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuner.rank=65", "freeze=none"], r"tuner\.rank=65: is larger than the layer model\.visual\.\S+: at most 64"),
        (["tuner.target_modules=[q_projection]"], r"q_projection: matches no linear layer; did you mean q_proj"),
        (["tuner.target_regex=.*nothing"], r"tuner\.target_regex=\.\*nothing: matches no linear layer; known:"),
        (["freeze=regex", "freeze.regex=nothing"], r"freeze\.regex=nothing: matches no parameter of the model"),
        (["tuner=full", "optim=galore"], r"optim\.rank=128: .* 64 fits all targets"),
        (["tuner=reft", "tuner.layers=[4]"], r"tuner\.layers=\[4\]: there is no layer 4; the LLM has 0 to 3"),
        (["tuner=llamapro", "tuner.num_groups=3", "tuner.num_new_blocks=4"], r"tuner\.num_groups=3"),
        (["tuner=adalora", "tuner.tinit=20"], r"tuner\.tinit"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, list) else "",
)
def test_a_run_ends_with_2_and_says_what_to_do(run, capsys, overrides, message):
    _, code = run("a", "trainer.max_steps=20", *overrides)
    error = capsys.readouterr().err
    assert code == 2 and "Traceback" not in error
    with pytest.raises(UserError, match=message):
        raise UserError(error)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim=lisa"], r"optim=lisa: trains the model's own weights, and tuner=lora is an adapter; set tuner=full"),
        (["optim=galore", "tuner=dora"], r"optim=galore: .* tuner=dora is an adapter; set tuner=full"),
        (["tuner.target_modules=[q_proj]", "tuner.target_regex=.*v_proj"], r"stands instead of tuner\.target_modules"),
        (["tuner.lora_ga.iters=3"], r"tuner\.lora_ga"),
        (["tuner=full", "freeze=vit", "freeze.full=[aligner]"], r"freeze\.full=\['aligner'\]: .*; leave it out"),
        (["freeze.full=[aligner]"], r"freeze\.full=\['aligner'\]: is frozen as well"),
        (["optim=schedule_free", "optim.schedule.name=cosine"], r"optim\.schedule\.name=cosine"),
        (["optim.schedule.power=2"], r"optim\.schedule\.power=2\.0: cosine does not use it"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, list) else "",
)
def test_settings_at_odds_are_refused_before_anything_is_loaded(overrides, message):
    with pytest.raises(UserError, match=message):
        config.to_run_config(compose_config(overrides))
