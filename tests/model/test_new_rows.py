"""Rows of new tokens: first values, training of those rows alone beside any tuner, and exports that hold them."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, PeftModel
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.checkpoint_path import resolve
from harness.model.forward import loss_sum, supervised_logits
from harness.model.loading import load
from harness.trainer.module import TrainingModule
from harness.tuner.new_tokens import settle
from harness.tuner.peft_adapter import wrap
from harness.tuner.targeted import TargetedConfig

TOKENS = ['model.new_special_tokens=["<cat>","<|dog|>"]']
ALONE = [*TOKENS, "model.train_new_tokens=true"]
NEW = [512, 513]
"""Their ids in the tiny checkpoint, which has 512 tokens and as many rows."""


def save(folder: Path, change) -> str:
    """Saves a changed copy of the tiny checkpoint and returns it as an override."""
    shutil.copytree(resolve("harness:tiny"), folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    change(model)
    model.save_pretrained(folder)
    return f"model.path={folder}"


def untie(model):
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.5)


@pytest.fixture
def checkpoints(tmp_path):
    """Overrides: the tiny checkpoint, one with an own head, and one with more rows than tokens, as published ones."""
    return {
        "full table": lambda: f"model.path={resolve('harness:tiny')}",
        "own head": lambda: save(tmp_path / "untied", untie),
        "spare rows": lambda: save(tmp_path / "roomy", lambda model: model.resize_token_embeddings(640)),
    }


@pytest.fixture
def make(make_config, outlook):
    """Builds a tuned model as a run does."""

    def build(*overrides: str):
        config = make_config(*overrides)
        loaded = registry.build("model", config.model)
        policy = registry.build("freeze", config.freeze, loaded.model)
        tuned = registry.build("tuner", config.tuner, loaded, policy, outlook)
        settle(tuned, loaded.new_tokens, config.model.train_new_tokens)
        return tuned

    return build


@pytest.fixture
def batch(make_batch):
    """Digits whose every row has the new tokens in its prompt and its answer."""
    batch = make_batch(0, 1, 2, 3)
    flat = batch.input_ids.flatten()
    predictors = batch.target_index.view(4, -1)
    flat[predictors[:, 0] - 3], batch.targets.view(4, -1)[:, 0] = torch.tensor(NEW * 2), torch.tensor(NEW * 2)
    flat[predictors[:, 0] + 1] = torch.tensor(NEW * 2)
    return batch


def take_steps(tuned, batch, steps=3):
    tuned.model.train()
    optimizer = torch.optim.AdamW((p for p in tuned.model.parameters() if p.requires_grad), lr=1e-2, weight_decay=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised).backward()
        optimizer.step()
    tuned.model.eval()


def logits(model, batch):
    with torch.no_grad():
        return supervised_logits(model, batch)


def tables(model):
    return {"embed": model.get_input_embeddings().weight, "head": model.get_output_embeddings().weight}


def grown(path, size):
    """The base as a user would load it for an adapter."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(path.partition("=")[2])
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size, pad_to_multiple_of=64)
    return model


@pytest.mark.parametrize("name", ["full table", "own head", "spare rows"])
@pytest.mark.parametrize("rule", ["mean", "zero", "normal", "orthogonal"])
def test_new_rows_follow_the_rule_and_old_ones_stay(checkpoints, make_config, name, rule):
    path = checkpoints[name]()
    config = make_config(path, *ALONE, f"model.init_strategy={rule}").model
    loaded = load(config)
    old = tables(Qwen3VLForConditionalGeneration.from_pretrained(path.partition("=")[2]))
    rows = {"full table": 576, "own head": 576, "spare rows": 640}[name]
    for table, weight in tables(loaded.model).items():
        assert weight.shape == (rows, 96) and torch.equal(weight[:512], old[table][:512])
        new, mean = weight[NEW], old[table][:512].mean(0)
        if rule == "mean":
            torch.testing.assert_close(new, mean.expand(2, -1), atol=1e-6, rtol=0)
        elif rule == "orthogonal":
            torch.testing.assert_close(new @ new.T, torch.eye(2), atol=1e-5, rtol=0)
        else:
            assert new.std().item() == pytest.approx({"zero": 0.0, "normal": 0.02}[rule], rel=0.2)
        padding = old[table][514:] if name == "spare rows" else mean.expand(rows - 514, -1)
        torch.testing.assert_close(weight[514:], padding, atol=1e-6, rtol=0)
    assert loaded.model.config.text_config.vocab_size == loaded.model.lm_head.out_features == rows
    again = tables(load(config).model)
    assert all(torch.equal(again[table], weight) for table, weight in tables(loaded.model).items())
    assert (tables(loaded.model)["embed"] is tables(loaded.model)["head"]) == (name != "own head")


def test_new_tokens_start_with_their_share_of_the_probability(make, batch):
    """The mean row's logit is at most the log of the mean of the others' exponentials."""
    probabilities = logits(make(*ALONE).base, batch).softmax(-1)
    assert probabilities[:, 512:].sum(-1).max() <= 64 / 576


@pytest.mark.parametrize("name", ["full table", "own head", "spare rows"])
@pytest.mark.parametrize("freeze", ["none", "llm"])
def test_full_training_changes_the_new_rows_alone_in_the_tables(checkpoints, make, batch, tmp_path, name, freeze):
    """With weight decay, in data that uses them; the export is a plain model with the rows in their tables."""
    path = checkpoints[name]()
    tuned = make(path, *ALONE, "tuner=full", f"freeze={freeze}")
    start = {table: weight.detach().clone() for table, weight in tables(tuned.base).items()}
    take_steps(tuned, batch)
    expected = logits(tuned.base, batch)
    stock = Qwen3VLForConditionalGeneration.from_pretrained(tuned.export(tmp_path / "run"))
    keys = {key for file in (tmp_path / "run" / "model").glob("*.safetensors") for key in load_file(file)}
    assert not any("new_rows" in key for key in keys)
    torch.testing.assert_close(logits(stock.eval(), batch), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(tuned.base, batch), expected, atol=0, rtol=0)
    old = torch.arange(stock.lm_head.out_features)
    old = old[(old < NEW[0]) | (old > NEW[1])]
    for table, weight in tables(stock).items():
        assert torch.equal(weight[old], start[table][old])
        assert (weight[NEW] != start[table][NEW]).any(dim=1).all()
    layer = "model.language_model.layers.0.mlp.up_proj.weight"
    before = Qwen3VLForConditionalGeneration.from_pretrained(path.partition("=")[2]).get_parameter(layer)
    assert torch.equal(stock.get_parameter(layer), before) == (freeze == "llm")


@pytest.mark.parametrize("name", ["full table", "own head", "spare rows"])
@pytest.mark.parametrize("choice", [["tuner=lora"], ["tuner=dora"], ["tuner=lora", "tuner.init=pissa"]], ids=" ".join)
def test_adapters_export_the_rows_in_pefts_own_format(checkpoints, make, batch, tmp_path, name, choice):
    path = checkpoints[name]()
    tuned = make(path, *ALONE, *choice)
    take_steps(tuned, batch)
    expected = logits(tuned.base, batch)
    folder = tuned.export(tmp_path / "run")
    model = PeftModel.from_pretrained(grown(path, 514), str(folder)).eval()
    torch.testing.assert_close(logits(model.base_model.model, batch), expected, atol=1e-4, rtol=1e-4)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), expected, atol=1e-4, rtol=1e-4)
    trained = tuned.base.get_input_embeddings().new_rows
    torch.testing.assert_close(merged.get_input_embeddings().weight[NEW], trained, atol=1e-6, rtol=0)


# PEFT says that it can not tie such adapters, and then ties them.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("name", ["full table", "own head"])
def test_methods_without_a_place_for_rows_have_them_beside(checkpoints, make_config, batch, tmp_path, name):
    path = checkpoints[name]()
    config = make_config(path, *ALONE)
    loaded = load(config.model)
    policy = registry.build("freeze", config.freeze, loaded.model)
    tuned = wrap(loaded, policy, TargetedConfig(), LoHaConfig, r=4)
    settle(tuned, loaded.new_tokens, alone=True)
    take_steps(tuned, batch)
    expected = logits(tuned.base, batch)
    folder = tuned.export(tmp_path / "run")
    base = PeftModel.from_pretrained(grown(path, 514), str(folder / "new_tokens")).merge_and_unload()
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    torch.testing.assert_close(logits(model.base_model.model, batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("choice", [["tuner=full", "freeze=none"], ["tuner=lora"]], ids=" ".join)
def test_a_checkpoint_holds_the_rows_and_not_the_tables(make, make_config, batch, choice):
    tuned = make(*ALONE, *choice)
    module = TrainingModule(tuned, make_config(*ALONE, *choice), total_steps=3)
    (name,) = [name for name in module.state_dict() if "embed_tokens" in name or "lm_head" in name]
    assert name.endswith("language_model.embed_tokens.new_rows") and module.state_dict()[name].shape == (2, 96)
    assert name.removeprefix("model.") in tuned.adapter
    (group,) = [
        group["name"]
        for group in module.configure_optimizers()["optimizer"].param_groups
        if any(value.endswith("new_rows") for value in group["param_names"])
    ]
    assert group == "llm"
    take_steps(tuned, batch)
    state, other = module.state_dict(), TrainingModule(make(*ALONE, *choice), make_config(*ALONE), 3)
    other.load_state_dict(state, strict=False)
    other.model.eval()
    assert torch.equal(logits(other.tuned.base, batch), logits(tuned.base, batch))


def test_a_step_without_new_tokens_gives_the_rows_a_gradient_all_the_same(checkpoints, make, make_batch):
    """Where ranks average gradients, none may be missing."""
    tuned, plain = make(checkpoints["own head"](), *ALONE, "tuner=lora"), make_batch(0, 1)
    loss_sum(supervised_logits(tuned.base, plain), plain).backward()
    embedding, head = tuned.base.get_input_embeddings(), tuned.base.get_output_embeddings()
    assert embedding.weight.grad is None and head.weight.grad is None
    assert not embedding.new_rows.grad.any() and head.new_rows.grad.any()


def test_the_base_may_have_16_bits(make, batch, tmp_path):
    tuned = make(*ALONE, "tuner=full", "freeze=none", "model.dtype=bfloat16")
    embedding = tuned.base.get_input_embeddings()
    assert (embedding.weight.dtype, embedding.new_rows.dtype) == (torch.bfloat16, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        take_steps(tuned, batch)
    stock = Qwen3VLForConditionalGeneration.from_pretrained(tuned.export(tmp_path))
    assert stock.dtype == torch.bfloat16
    assert torch.equal(stock.get_input_embeddings().weight[NEW], embedding.new_rows.to(torch.bfloat16))


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_stock_forward_sees_the_rows_too(make, make_samples, stock_inputs, padded, side):
    """Validation generates with it."""
    tuned, samples = make(*ALONE, "tuner=full"), make_samples("mixed")
    with torch.no_grad():
        tuned.base.get_input_embeddings().new_rows.normal_(std=0.5)
    for sample in samples:
        sample.ids[0], sample.ids[-1] = NEW
    tuned.base.eval()
    inputs = stock_inputs(samples)
    predicts = (inputs["labels"] != -100).flatten().nonzero().flatten() - 1
    with torch.no_grad():
        stock = tuned.base(**inputs).logits.flatten(0, 1)[predicts]
    torch.testing.assert_close(logits(tuned.base, padded(tuned.base, samples, side=side)), stock, atol=1e-4, rtol=1e-4)


def test_full_training_of_the_whole_table_needs_nothing_more(make, batch, tmp_path):
    tuned = make(*TOKENS, "tuner=full", "freeze=none")
    take_steps(tuned, batch)
    stock = Qwen3VLForConditionalGeneration.from_pretrained(tuned.export(tmp_path))
    torch.testing.assert_close(logits(stock.eval(), batch), logits(tuned.base, batch), atol=1e-4, rtol=1e-4)


def test_rows_that_nothing_trains_are_refused(make):
    with pytest.raises(UserError, match=r"train_new_tokens=false: nothing trains the rows of new_special_tokens"):
        make(*TOKENS, "tuner=full", "freeze=llm")


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_a_tuner_that_trains_the_whole_table_is_refused(checkpoints, make, module):
    with pytest.raises(UserError, match=r"train_new_tokens=true: the tuner trains the whole embedding or head"):
        make(checkpoints["own head"](), *ALONE, "tuner=lora", f"tuner.modules_to_save=[{module}]")
