"""New special tokens: the list, the tokenizer, and rows that use them."""

import re

import pytest
from transformers import AutoTokenizer

from harness.data import assemble
from harness.data.config import DataConfig
from harness.data.row import Message, Row
from harness.errors import UserError
from harness.model.new_tokens import read_tokens
from harness.model.processor import load_processor, load_tokenizer

TWO = 'model.new_special_tokens=["<cat>","<|dog|>"]'


@pytest.fixture
def make_processor(make_config):
    return lambda *overrides: load_processor(make_config("model.train_new_tokens=true", *overrides).model)


def test_a_list_may_name_files(tmp_path):
    (tmp_path / "some.txt").write_text("<a>\n<b c>\n", encoding="utf-8")
    assert read_tokens(["<0>", str(tmp_path / "some.txt"), "<z>"]) == ["<0>", "<a>", "<b c>", "<z>"]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["<a>", "<b>", "<a>"], "<a>: is listed 2 times; once is enough"),
        ([""], "'': is empty or has blanks around it"),
        (["<a> "], "'<a> ': is empty or has blanks around it"),
        (["nothing.txt"], "nothing.txt: no such file; a token must not end with .txt"),
        (["{folder}/empty.txt"], "empty.txt: the file is empty; write one token a line"),
        (["{folder}/gap.txt"], "'': is empty or has blanks around it; remove them, and empty lines of a file"),
        (["{folder}/latin.txt"], "latin.txt: is not UTF-8"),
        (["<a>", "{folder}/twice.txt"], "<a>: is listed 2 times"),
    ],
)
def test_a_list_that_can_not_be_meant_is_refused(tmp_path, tokens, message):
    for name, content in (("empty", b""), ("gap", b"<a>\n\n<b>\n"), ("latin", b"\xe9\n"), ("twice", b"<a>\n")):
        (tmp_path / f"{name}.txt").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_tokens([token.format(folder=tmp_path) for token in tokens])


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("<|box_start|>", "has this token already; leave it out"),
        ("im_start", "stands in the chat template or in another special token, which it would break"),
        ("message.content", "stands in the chat template or in another special token, which it would break"),
    ],
)
def test_tokens_that_would_change_what_is_there_are_refused(make_processor, token, message):
    with pytest.raises(UserError, match=rf"new_special_tokens={re.escape(token)}: .*{message}"):
        make_processor(f'model.new_special_tokens=["{token}"]')


def test_new_tokens_stand_behind_the_old_ones_and_are_saved(make_processor, make_config, tmp_path):
    processor, plain = make_processor(TWO), load_processor(make_config().model)
    size = len(plain.tokenizer)
    assert load_tokenizer(make_config(TWO, "model.train_new_tokens=true").model)[1] == range(size, size + 2)
    processor.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for tokenizer in (processor.tokenizer, again):
        assert tokenizer("a<cat><|dog|>b")["input_ids"][1:3] == [size, size + 1]
        assert tokenizer.decode([size, size + 1], skip_special_tokens=True) == ""
    assert again("one two")["input_ids"] == plain.tokenizer("one two")["input_ids"]


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_rows_may_use_them_where_control_tokens_are_refused(make_processor, encoder, role):
    """Each is one token, in a question and in an answer, and the key of the index is another."""
    own = assemble.make_encoder(DataConfig(), make_processor(TWO))
    text = {"user": "Hello there", "assistant": "Well"} | {role: "see <cat>, no <|dog|><|dog|>"}
    row = Row(messages=tuple(Message(name, (content,)) for name, content in text.items()), origin="here")
    (sample,) = own.encode(row)
    new = len(own.text.tokenizer) - 2
    assert [token for token in sample.ids.tolist() if token >= new] == [new, new + 1, new + 1]
    assert sum(end - start for start, end in sample.spans.tolist()) > 0
    learnt = [token for start, end in sample.spans.tolist() for token in sample.ids[start:end].tolist()]
    assert (new in learnt) == (role == "assistant")
    (before,) = encoder.encode(row)
    assert len(before.ids) > len(sample.ids)
    keys = {assemble.text_key(DataConfig(), item.text) for item in (own, encoder)}
    assert len(keys) == 2


def test_training_without_tokens_is_refused(make_config):
    with pytest.raises(UserError, match=r"model\.train_new_tokens=true: there are none"):
        make_config("model.train_new_tokens=true")


@pytest.mark.parametrize("tuner", ["lora", "dora"])
def test_an_adapter_without_trained_rows_is_refused(make_config, tuner):
    with pytest.raises(UserError, match=rf"model\.train_new_tokens=false: tuner={tuner} leaves the embedding alone"):
        make_config(TWO, f"tuner={tuner}")
    assert make_config(TWO, "tuner=full").model.new_special_tokens == ["<cat>", "<|dog|>"]
