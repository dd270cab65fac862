"""RoPE scaling: the frequencies of the papers, in our own forward pass, packed or padded."""

import json
import math
import re
import shutil

import pytest
import torch

from harness import config as run_config
from harness.compose import compose_config
from harness.data import assemble
from harness.data.config import DataConfig
from harness.errors import UserError
from harness.model.checkpoint_path import resolve
from harness.model.forward import supervised_logits
from harness.model.loading import load, skeleton
from harness.model.processor import load_processor

THETA, HEAD, LENGTH = 10_000.0, 32, 4096
"""Of the tiny checkpoint."""
BASE = THETA ** -(torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)


@pytest.fixture
def short(tmp_path):
    """The tiny checkpoint, said to be trained on 32 positions."""
    folder = tmp_path / "short"
    shutil.copytree(resolve("harness:tiny"), folder)
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["max_position_embeddings"] = 32
    (folder / "config.json").write_text(json.dumps(content))
    return f"model.path={folder}"


@pytest.fixture
def make_model(make_config):
    return lambda *overrides: load(make_config(*overrides).model).model.eval()


def rotation(model):
    return model.model.language_model.rotary_emb


def frequencies(model):
    return rotation(model).inv_freq.double()


def logits(model, batch):
    with torch.no_grad():
        return supervised_logits(model, batch)


def test_linear_divides_every_frequency(make_model):
    model = make_model("model.rope_scaling=linear", "model.max_model_len=16384")
    torch.testing.assert_close(frequencies(model), BASE / 4, rtol=1e-6, atol=0)
    assert rotation(model).attention_scaling == 1.0


def test_yarn_divides_slow_frequencies_only(make_model):
    """Equation 23 of its paper; the ramp runs over whole feature pairs, as in the authors' code."""
    model, factor = make_model("model.rope_scaling=yarn", "model.max_model_len=32768"), 8.0
    turns = LENGTH * BASE / (2 * math.pi)
    found = frequencies(model)
    low, high = int((turns > 32).sum()) - 1, int((turns >= 1).sum())
    ramp = ((torch.arange(HEAD // 2) - low) / (high - low)).clamp(0, 1).double()
    torch.testing.assert_close(found, BASE * (1 - ramp) + BASE / factor * ramp, rtol=1e-6, atol=0)
    torch.testing.assert_close(found[: low + 1], BASE[: low + 1], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[turns < 1], BASE[turns < 1] / factor, rtol=1e-6, atol=0)
    assert 2 < low < high < HEAD // 2 - 1
    assert rotation(model).attention_scaling == pytest.approx(0.1 * math.log(factor) + 1)


def test_yarn_takes_its_options(make_model):
    scaling = "{type: yarn, factor: 2, attention_factor: 1, original_max_position_embeddings: 16}"
    model = make_model(f"model.rope_scaling={scaling}")
    assert rotation(model).attention_scaling == 1.0
    assert model.config.text_config.max_position_embeddings == 32
    torch.testing.assert_close(frequencies(model)[3:], BASE[3:] / 2, rtol=1e-6, atol=0)


def test_dynamic_grows_theta_with_the_longest_sample(make_model, short):
    """NTK-aware: theta (s L' / L - (s - 1))^(d / (d - 2)) for a batch of longest position L' over L."""
    model = make_model(short, "model.rope_scaling={type: dynamic, factor: 2.0}")
    hidden, positions = torch.zeros(1, 48, 96), torch.arange(48).expand(3, 1, 48)
    rotation(model)(hidden, positions)
    theta = THETA * (2 * 48 / 32 - 1) ** (HEAD / (HEAD - 2))
    expected = theta ** -(torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    torch.testing.assert_close(frequencies(model), expected, rtol=1e-5, atol=0)
    rotation(model)(hidden[:, :32], positions[..., :32])
    torch.testing.assert_close(frequencies(model), BASE, rtol=1e-6, atol=0)


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
@pytest.mark.parametrize("kind", ["linear", "yarn", "dynamic"])
def test_packed_is_padded_and_the_loss_is_another(
    make_model, short, make_samples, padded, lay_out, results, assert_same, kind, attention
):
    from harness.model.attention import use_varlen

    plain = make_model(short)
    model = make_model(short, f"model.rope_scaling={{type: {kind}, factor: 4.0}}")
    for item in (plain, model):
        item.requires_grad_(True)
    # A video's positions on mRoPE's axes, and text far over the 32 positions.
    samples = [*make_samples("mixed"), *make_samples("text")]
    samples[0].text(60).answer(5)
    expected = results(model, padded(model, samples))
    assert abs(expected[1] - results(plain, padded(plain, samples))[1]) > 1e-3
    if attention == "varlen":
        use_varlen(model)
    assert_same(results(model, lay_out(model, [samples[:2], samples[2:]], length=256)), expected)


def test_dynamic_depends_on_no_earlier_batch(make_model, short, make_samples, padded):
    """transformers keeps the frequencies of the longest batch so far: a resumed run would be another."""
    model = make_model(short, "model.rope_scaling={type: dynamic, factor: 4.0}")

    def batch(length):
        (sample, *_) = make_samples("text")
        return padded(model, [sample.text(length).answer(4)])

    first = [logits(model, batch(length)) for length in (40, 5)]
    logits(model, batch(200))
    for before, length in zip(first, (40, 5), strict=True):
        assert torch.equal(logits(model, batch(length)), before)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_factor_of_one_is_the_base(make_model, mixed, padded, kind):
    model, base = make_model(f"model.rope_scaling={{type: {kind}, factor: 1}}"), make_model()
    batch = padded(base, mixed)
    torch.testing.assert_close(logits(model, batch), logits(base, batch), atol=1e-5, rtol=1e-5)


def test_our_forward_is_that_of_transformers(make_model, make_samples, stock_inputs, padded):
    model, samples = make_model("model.rope_scaling=yarn", "model.max_model_len=32768"), make_samples("mixed")
    inputs = stock_inputs(samples)
    predicts = (inputs["labels"] != -100).flatten().nonzero().flatten() - 1
    with torch.no_grad():
        stock = model(**inputs).logits.flatten(0, 1)[predicts]
    torch.testing.assert_close(logits(model, padded(model, samples)), stock, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "yarn", "dynamic"])
def test_an_exported_model_keeps_it_and_knows_its_own_length(make_tuned, make_config, mixed, padded, tmp_path, kind):
    from transformers import Qwen3VLForConditionalGeneration

    tuned = make_tuned("tuner=full", f"model.rope_scaling={kind}", "model.max_model_len=16384")
    folder = tuned.export(tmp_path)
    stock = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    rope = stock.config.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["mrope_section"]) == (kind, 4.0, [6, 5, 5])
    assert stock.config.text_config.max_position_embeddings == (LENGTH if kind == "dynamic" else 4 * LENGTH)
    batch = padded(tuned.base, mixed)
    torch.testing.assert_close(logits(stock.eval(), batch), logits(tuned.base.eval(), batch), atol=1e-5, rtol=1e-5)
    again = make_config(f"model.path={folder}", f"model.rope_scaling={kind}", "model.max_model_len=8192")
    assert skeleton(again.model).config.text_config.rope_parameters["factor"] == 2.0


def test_a_length_between_multiples_is_rounded_up(make_config):
    text = skeleton(make_config("model.rope_scaling=yarn", "model.max_model_len=9000").model).config.text_config
    assert text.rope_parameters["factor"] == 3.0 and text.max_position_embeddings == 3 * LENGTH


def test_rows_may_be_as_long_as_there_is_room_for(make_config):
    scaled = ["model.rope_scaling=yarn", "model.max_model_len=9000"]
    processor = load_processor(make_config(*scaled).model)
    assert processor.tokenizer.model_max_length == 9000
    assert assemble.make_encoder(DataConfig(), processor).max_length == 9000
    assert assemble.make_encoder(DataConfig(max_tokens_per_batch=10_000), processor).max_length == 9000
    assert assemble.make_encoder(DataConfig(max_length=8000), processor).max_length == 8000
    with pytest.raises(UserError, match=r"data\.max_length=9001: model\.rope_scaling makes room for 9,000 tokens"):
        assemble.make_encoder(DataConfig(max_length=9001), processor)


@pytest.mark.parametrize(
    "text", ["{type: yarn, factor: 2.0}", """'{"type": "yarn", "factor": 2.0}'""", "{rope_type: yarn, factor: 2}"]
)
def test_a_map_and_json_are_the_same_and_survive_a_run_folder(tmp_path, text):
    cfg = compose_config([f"model.rope_scaling={text}"])
    run_config.save(cfg, tmp_path / "config.yaml")
    again = run_config.load(tmp_path / "config.yaml")
    assert run_config.config_hash(again) == run_config.config_hash(run_config.to_run_config(cfg))
    assert skeleton(again.model).config.text_config.rope_parameters["factor"] == 2.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.rope_scaling=longrope"], "model.rope_scaling=longrope: give linear, dynamic, yarn, or a map"),
        (["model.rope_scaling=[yarn]"], "model.rope_scaling=['yarn']: give linear"),
        (["model.rope_scaling={type: longrope, factor: 2}"], "give linear, dynamic, yarn"),
        (["model.rope_scaling={factor: 2}"], "give linear, dynamic, yarn"),
        (["model.rope_scaling=yarn"], "model.rope_scaling=yarn: how far? give model.max_model_len"),
        (["model.max_model_len=8192"], "model.max_model_len=8192: has no effect alone"),
        (["model.rope_scaling={type: yarn, factor: 2}", "model.max_model_len=9000"], "leave one of the two out"),
        (["model.rope_scaling={type: yarn}"], "model.rope_scaling.factor=None: give a number of 1 or more"),
        (["model.rope_scaling={type: yarn, factor: 0.5}"], "factor=0.5: give a number of 1 or more"),
        (["model.rope_scaling={type: linear, factor: 2, beta_fast: 3}"], "beta_fast: linear takes no such key"),
        (["model.rope_scaling={type: yarn, factor: 2, beta_fast: -1}"], "beta_fast=-1: must be a number above 0"),
        (["model.rope_scaling={type: yarn, factor: 2, truncate: 1}"], "truncate=1: must be true or false"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(make_config, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make_config(*overrides)


@pytest.mark.parametrize("length", [4096, 100])
def test_a_length_that_the_checkpoint_has_already_is_refused(make_config, length):
    model = make_config("model.rope_scaling=yarn", f"model.max_model_len={length}").model
    for start in (load_processor, skeleton, load):
        with pytest.raises(UserError, match=rf"max_model_len={length}: the checkpoint takes 4,096 tokens already"):
            start(model)
