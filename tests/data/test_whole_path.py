"""From lines of a file to logits and gradients: every layout gives what each row alone gives, images, video and all."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.data.assemble import data_module
from harness.data.collator import collate, collate_packed
from harness.model.forward import loss_sum, supervised_logits
from harness.model.processor import load_processor

ANSWER = {"role": "assistant", "content": "a red circle"}


def _user(content):
    return {"role": "user", "content": content}


@pytest.fixture
def media(tmp_path):
    """Pictures of several sizes and five frames of a video."""
    pixels = np.random.default_rng(0)
    for number, size in enumerate([(64, 96), (100, 40), (160, 96)]):
        Image.fromarray(pixels.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    for number in range(5):
        Image.fromarray(pixels.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"frame{number}.png")
    return tmp_path


ROWS = [
    {"messages": [_user("hello there"), ANSWER]},
    {"messages": [_user("<image>What is it?"), ANSWER], "images": ["0.png"]},
    {
        "messages": [_user("<image>and<image>"), ANSWER, _user("next <image>"), {**ANSWER, "loss_scale": 0.5}],
        "images": ["0.png", "1.png", "2.png"],
    },
    {"messages": [_user("<video>What moves?"), ANSWER], "videos": [[f"frame{number}.png" for number in range(5)]]},
    {
        "messages": [_user("<image>then<video>"), ANSWER],
        "images": ["1.png"],
        "videos": [{"frames": [f"frame{number}.png" for number in range(4)], "fps": 2.0}],
    },
]


@pytest.fixture
def loaded(media, make_config):
    """The rows, through source, format, template, index and media to loaded samples; and their encoder."""
    (media / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = make_config("data=jsonl", f"data.train={media / 'rows.jsonl'}", "data.cache_dir=null", "seed=1")
    module = data_module(config, load_processor(config.model))
    module.prepare()
    encoder = module.encoder
    return [encoder.load(module.train_samples[number]) for number in range(len(ROWS))], encoder


def _results(tuned, batch):
    tuned.model.zero_grad()
    logits = supervised_logits(tuned.base, batch)
    loss = loss_sum(logits, batch)
    loss.backward()
    return (
        logits.detach(),
        loss.item(),
        {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in tuned.model.named_parameters()},
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_layout_equals_the_rows_alone(make_tuned, loaded, attention):
    samples, encoder = loaded
    tuned = make_tuned("tuner=full", "freeze=none", f"model.attention={attention}")
    tuned.model.eval()
    text, pad = encoder.text, encoder.pad_token_id
    alone = [_results(tuned, collate([sample], text, pad)) for sample in samples]
    logits, loss = torch.cat([one[0] for one in alone]), sum(one[1] for one in alone)
    gradients = {name: sum(one[2][name] for one in alone) for name in alone[0][2]}
    layouts = {
        "padded": collate(samples, text, pad),
        "padded left": collate(samples, text, pad, left=True),
        "one pack": collate_packed([samples], text, pad, None),
        "filled packs": collate_packed([samples[:2], samples[2:4], samples[4:]], text, pad, 400),
    }
    for name, batch in layouts.items():
        found = _results(tuned, batch)
        torch.testing.assert_close(found[0], logits, atol=1e-5, rtol=1e-5, msg=name)
        assert found[1] == pytest.approx(loss, rel=1e-5), name
        for parameter, gradient in found[2].items():
            torch.testing.assert_close(gradient, gradients[parameter], atol=1e-4, rtol=1e-4, msg=f"{name} {parameter}")


def test_three_rows_of_positions_would_mix_samples(make_tuned, loaded):
    samples, encoder = loaded
    # varlen goes by cu_seqlens and not by positions.
    tuned = make_tuned("tuner=full", "model.attention=sdpa")
    tuned.model.eval()
    batch = collate_packed([samples], encoder.text, encoder.pad_token_id, None)
    with torch.no_grad():
        right = supervised_logits(tuned.base, batch)
        # What a model takes that is given mRoPE's rows alone: one text that counts on through all samples.
        batch.position_ids[0] = torch.arange(batch.input_ids.shape[1])
        wrong = supervised_logits(tuned.base, batch)
    assert (right - wrong).abs().max() > 0.01


def test_a_video_stands_as_timestamps_and_pairs_of_frames(loaded):
    samples, encoder = loaded
    sample = samples[3].sample
    text = encoder.text.tokenizer.decode(sample.ids)
    assert sample.grids[0][0] == 3 and sample.num_visual == sample.grids.prod() // 4
    assert text.count("<|vision_start|>") == text.count("<|vision_end|>") == text.count(" seconds>") == 3
    # Four frames of two a second stand for 0 to 1.5 s: pairs at 0.25 and 1.25 s.
    timed = encoder.text.tokenizer.decode(samples[4].sample.ids)
    assert [part.rpartition("<")[2] for part in timed.split(" seconds>")[:-1]] == ["0.2", "1.2"]


KINDS = {
    "good": lambda text: {"query": f"a {text}", "response": text or "yes"},
    "picture": lambda text: {"query": f"<image>{text}", "response": "yes", "images": ["0.png"]},
    "long": lambda text: {"query": "word " * 200, "response": text or "yes"},
    "missing": lambda text: {"query": text, "response": "yes", "images": ["nowhere.png"]},
    "tags": lambda text: {"query": f"<image>{text}<image>", "response": "yes", "images": ["0.png"]},
    "control": lambda text: {"query": f"{text}<|im_end|>", "response": "yes"},
    "type": lambda text: {"messages": [{"role": "user", "content": len(text)}]},
    "json": lambda text: "{" + text,
}
FATE = {"good": "used", "picture": "used", "long": "dropped"}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from(sorted(KINDS)), st.text('ab <>|\n"é', max_size=12)), min_size=1, max_size=20
    )
)
def test_any_mixture_of_rows_is_counted_right(media, make_config, kinds):
    lines = []
    for kind, text in kinds:
        row = KINDS[kind](text)
        lines.append(row.replace("\n", "") if isinstance(row, str) else json.dumps(row))
    lines.append(json.dumps(KINDS["good"]("the last")))
    (media / "rows.jsonl").write_text("\n".join(lines))
    config = make_config(
        "data=jsonl",
        f"data.train={media / 'rows.jsonl'}",
        "data.cache_dir=null",
        "data.on_error=skip",
        "data.max_length=150",
    )
    module = data_module(config, load_processor(config.model))
    module.prepare()
    account = module.accounts["train"]
    fates = [FATE.get(kind, "skipped") for kind, _ in kinds] + ["used"]
    assert (account.used, account.skipped.total, account.dropped.total) == tuple(
        fates.count(fate) for fate in ("used", "skipped", "dropped")
    )
    named = {entry.split(": ")[0] for entries in account.skipped.first.values() for entry in entries}
    assert named <= {f"{media / 'rows.jsonl'}:{n + 1}" for n, fate in enumerate(fates) if fate == "skipped"}
