"""The frozen vision tower's features: the same from the cache as from the tower, and nothing decoded for them."""

import json
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data.assemble import data_module
from harness.data.features.key import pixel_settings
from harness.data.features.lookup import Lookup
from harness.data.features.store import Store
from harness.data.layout import PADDED, Kind, Layout
from harness.data.loader import MakeBatch
from harness.data.media.image import ImageRef
from harness.data.media.video import VideoRef
from harness.model import feature_cache
from harness.model.feature_cache import FeatureCache
from harness.model.features import Stage, fingerprint, pick_stage, token_bytes
from harness.model.forward import loss_sum, supervised_logits, supervised_loss
from harness.model.processor import load_processor

CPU = torch.device("cpu")
SIDES = [(64, 96), (100, 40), (96, 160), (32, 32)]
PACKED = Layout(Kind.packed)
COMPOSITIONS = [[[0, 1], [2]], [[3], [1, 4]], [[5, 4], [3, 2, 0]]]
"""Numbers of samples in the packs of each batch; 5 is text alone."""


def row(text, **media):
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a red circle"}], **media}


@pytest.fixture
def module(tmp_path, make_config):
    """Rows of JPEGs, two in a row, a picture twice, a video, and text alone."""
    pixels = np.random.default_rng(0)
    for number, size in enumerate(SIDES):
        picture = Image.fromarray(pixels.integers(0, 256, (*size, 3), dtype=np.uint8))
        picture.save(tmp_path / f"{number}.jpg")
    for number in range(4):
        Image.fromarray(pixels.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"frame{number}.png")
    rows = [
        row("<image>What is it?", images=["0.jpg"]),
        row("<image>and<image>", images=["1.jpg", "0.jpg"]),
        row("<image>Tell.", images=["2.jpg"]),
        row("<video>What moves?", videos=[[f"frame{number}.png" for number in range(4)]]),
        row("<image>then<image>then<image>", images=["3.jpg", "2.jpg", "3.jpg"]),
        row("hello there"),
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    config = make_config("data=jsonl", f"data.train={tmp_path / 'rows.jsonl'}", "data.cache_dir=null")
    made = data_module(config, load_processor(config.model))
    made.prepare()
    return made


@pytest.fixture
def open_cache(module, tmp_path):
    """Puts a cache onto a tuned model's tower; each call is another process's, on the same folder."""
    opened = []

    def make(tuned, precision="fp32"):
        visual, stage = tuned.base.model.visual, pick_stage(tuned)
        store = Store(tmp_path / "kept", fingerprint(visual, stage, precision, CPU), 1 << 30, time.time() - 60)
        store.folder.mkdir(parents=True, exist_ok=True)
        prefix = store.tower + pixel_settings(module.encoder.pixels, module.encoder.text.sampling)
        visual.feature_cache = FeatureCache(Lookup(store, prefix), stage, module.encoder.pixels.merge_size**2)
        opened.append(visual.feature_cache)
        return visual.feature_cache

    yield make
    for cache in opened:
        cache.close()


@pytest.fixture
def make(module):
    """Makes a batch of packs by numbers of samples, with a cache or without."""

    def batch(packs, cache=None, layout=PACKED):
        lookup = None if cache is None else cache.lookup
        return MakeBatch(module.train_samples, module.encoder, layout, False, lookup)(packs)

    return batch


@pytest.fixture
def decoded(monkeypatch):
    """Counts what is decoded, by path."""
    counted = Counter()
    load, frames = ImageRef.load, VideoRef.frames

    def count(original):
        def call(ref, *arguments):
            counted[type(ref).__name__] += 1
            return original(ref, *arguments)

        return call

    monkeypatch.setattr(ImageRef, "load", count(load))
    monkeypatch.setattr(VideoRef, "frames", count(frames))
    return counted


def results(tuned, batch):
    tuned.model.zero_grad()
    torch.manual_seed(0)
    # As the trainer has it: float32 weights that train over a base in bfloat16.
    with torch.autocast("cpu", torch.bfloat16, enabled=tuned.base.dtype == torch.bfloat16):
        logits = supervised_logits(tuned.base, batch, always_see=pick_stage(tuned) is Stage.states)
        loss = loss_sum(logits, batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in tuned.model.named_parameters() if p.grad is not None}
    return logits.detach(), loss.detach(), gradients


def assert_equal(found, expected):
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert found[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        assert torch.equal(found[2][name], gradient), name


STAGES = {
    "merged": (Stage.merged, ("freeze=vit_aligner",)),
    "lora on the aligner": (Stage.states, ("freeze=vit",)),
    "full aligner": (Stage.states, ("tuner=full", "freeze=vit")),
}


@pytest.fixture(params=STAGES.values(), ids=STAGES)
def staged(request, make_tuned):
    stage, overrides = request.param
    tuned = make_tuned("model.dtype=bfloat16", *overrides)
    tuned.model.train()
    for name, weight in tuned.model.named_parameters():
        if "lora_B" in name:  # zero at the start, where dropout changes nothing
            torch.nn.init.normal_(weight, std=0.02)
    assert pick_stage(tuned) is stage
    return tuned


def test_loss_and_gradients_are_those_without_a_cache_bit_for_bit(staged, make, open_cache):
    """In bf16, where the tiny tower's products do not depend on what else is in the batch. Cold, then half warm."""
    expected = [results(staged, make(packs)) for packs in COMPOSITIONS]
    cache = open_cache(staged)
    for packs, one in zip(COMPOSITIONS, expected, strict=True):
        assert_equal(results(staged, make(packs, cache)), one)
        cache.close()
        cache = open_cache(staged)
    batch = make(COMPOSITIONS[-1], cache)
    assert batch.pixel_values is None and not batch.cached.missed
    assert_equal(results(staged, batch), expected[-1])


def test_hits_misses_and_both_are_the_same_in_float32(make_tuned, make, open_cache):
    """There, products of few rows round otherwise than those of many; the tower sees one image at a time for it."""
    tuned = make_tuned()
    tuned.model.eval()
    cold = open_cache(tuned)
    cold.keep = lambda missed, features: None
    expected = [results(tuned, make(packs, cold)) for packs in COMPOSITIONS]
    for packs, one in zip(COMPOSITIONS, expected, strict=True):
        plain = results(tuned, make(packs))
        torch.testing.assert_close(plain[0], one[0], atol=1e-5, rtol=1e-5)
    for packs, one in [*zip(COMPOSITIONS, expected, strict=True), (COMPOSITIONS[0], expected[0])]:
        cache = open_cache(tuned)
        assert_equal(results(tuned, make(packs, cache)), one)
        cache.close()
    assert cache.take()["perf/vit_cache_hit_rate"] == 1


@pytest.mark.parametrize("layout", [PADDED, PACKED, Layout(Kind.joined)], ids=lambda layout: layout.kind.name)
def test_mixed_batches_put_features_where_they_belong(make_tuned, make, open_cache, layout):
    tuned = make_tuned("model.dtype=bfloat16")
    cache = open_cache(tuned)
    supervised_loss(tuned.base, make([[0]], cache))
    cache.close()
    batch = make([[4, 1], [2, 3, 0]], open_cache(tuned), layout)
    assert batch.cached.num_hit == 2 * 6 and len(batch.cached.order) == batch.num_visual
    assert len(batch.cached.missed) == len(batch.grid_thw) == 6
    assert len(batch.pixel_values) == int(batch.grid_thw.prod(dim=1).sum())
    with torch.no_grad():
        found, expected = (
            supervised_logits(tuned.base, one) for one in (batch, make([[4, 1], [2, 3, 0]], None, layout))
        )
    assert torch.equal(found, expected)


def test_what_is_found_is_not_decoded(make_tuned, make, open_cache, decoded):
    tuned = make_tuned()
    cache = open_cache(tuned)
    supervised_loss(tuned.base, make([[0], [1, 3]], cache))
    assert decoded == {"ImageRef": 3 + 4, "VideoRef": 1}
    cache.close()
    decoded.clear()
    cache = open_cache(tuned)
    batch = make([[0], [1, 3]], cache)
    assert not decoded and batch.pixel_values is None and batch.grid_thw is None
    batch = make([[0, 2]], cache)
    assert decoded == {"ImageRef": 1} and batch.cached.missed == [(batch.cached.missed[0][0], 15)]


def test_a_damaged_entry_is_computed_again(make_tuned, make, open_cache, decoded):
    tuned = make_tuned("model.dtype=bfloat16")
    expected = results(tuned, make([[0]]))
    cache = open_cache(tuned)
    supervised_loss(tuned.base, make([[0]], cache))
    cache.close()
    (path,) = cache.lookup.store.folder.glob("*/*.feat")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    decoded.clear()
    cache = open_cache(tuned)
    batch = make([[0]], cache)
    assert decoded["ImageRef"] == 1 and batch.cached.num_damaged == 1 and not path.exists()
    assert torch.equal(results(tuned, batch)[0], expected[0])
    cache.close()
    assert path.exists() and cache.summary()["damaged"] == 1


def test_an_image_that_changes_is_another_entry(make_tuned, make, open_cache, tmp_path):
    tuned = make_tuned()
    cache = open_cache(tuned)
    supervised_loss(tuned.base, make([[0]], cache))
    cache.close()
    Image.new("RGB", SIDES[0][::-1]).save(tmp_path / "0.jpg")
    assert make([[0]], cache).cached.features is None


def test_the_fingerprint_is_of_weights_that_features_depend_on(make_tuned):
    visual = make_tuned().base.model.visual
    known = {stage: fingerprint(visual, stage, "fp32", CPU) for stage in Stage}
    assert known[Stage.merged] != known[Stage.states]
    assert fingerprint(make_tuned("tuner=dora").base.model.visual, Stage.merged, "fp32", CPU) == known[Stage.merged]
    assert fingerprint(visual, Stage.merged, "bf16", CPU) != known[Stage.merged]
    with torch.no_grad():
        visual.merger.linear_fc2.bias[-1] += 1e-3
    assert fingerprint(visual, Stage.states, "fp32", CPU) == known[Stage.states]
    assert fingerprint(visual, Stage.merged, "fp32", CPU) != known[Stage.merged]
    with torch.no_grad():
        visual.blocks[-1].norm2.weight[0] += 1e-3
    assert fingerprint(visual, Stage.states, "fp32", CPU) != known[Stage.states]


@pytest.mark.parametrize("overrides", [("freeze=aligner",), ("tuner=full", "freeze.frozen=[llm]")], ids=" ".join)
def test_a_vit_that_changes_has_no_stage(make_tuned, overrides):
    assert pick_stage(make_tuned(*overrides)) is None


@pytest.mark.parametrize("freeze", ["vit_aligner", "vit"])
@pytest.mark.parametrize(("dtype", "precision"), [("float32", "fp32"), ("float32", "bf16"), ("bfloat16", "bf16")])
def test_the_size_that_is_planned_is_the_size_that_is_kept(make_tuned, make, open_cache, freeze, dtype, precision):
    tuned = make_tuned(f"freeze={freeze}", f"model.dtype={dtype}")
    cache = open_cache(tuned, precision)
    batch = make([[0, 1, 2, 3, 4]], cache)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        supervised_loss(tuned.base, batch)
    cache.close()
    batch = make([[0, 1, 2, 3, 4]], cache)
    planned = token_bytes(tuned.base.model.visual, cache.stage, precision)
    assert batch.cached.features.numel() * batch.cached.features.element_size() == planned * batch.num_visual


def test_features_of_a_validation_serve_training(make_tuned, make, open_cache):
    """Tensors that are made in inference mode can not be differentiated through."""
    tuned = make_tuned("freeze=vit")
    cache = open_cache(tuned)
    with torch.inference_mode():
        supervised_loss(tuned.base, make([[0, 1]], cache))
    cache.close()
    batch = make([[0, 1]], open_cache(tuned))
    assert batch.pixel_values is None
    supervised_loss(tuned.base, batch).backward()


def test_counts_and_seconds(make_tuned, make, open_cache):
    tuned = make_tuned("model.dtype=bfloat16")
    cache = open_cache(tuned)
    supervised_loss(tuned.base, make([[0]], cache))
    cache.close()
    first = cache.summary()
    assert (first["hit_rate"], first["hit_tokens"], first["missed_tokens"], first["saved_s"]) == (0, 0, 6, 0)
    assert first["written_gib"] * 2**30 > 6 * token_bytes(tuned.base.model.visual, Stage.merged, "bf16")
    warm = open_cache(tuned)
    supervised_loss(tuned.base, make([[0, 1]], warm))
    row = warm.take()
    assert row["perf/vit_cache_hit_rate"] == 12 / 15
    assert row["perf/vit_cache_read_gib"] * 2**30 == 12 * token_bytes(tuned.base.model.visual, Stage.merged, "bf16")
    assert row["perf/vit_cache_saved_s"] > 0
    assert warm.take()["perf/vit_cache_hit_rate"] == 0
    warm.close()
    all_there = open_cache(tuned)
    supervised_loss(tuned.base, make([[0]], all_there))
    assert all_there.summary()["saved_s"] > 0, "the speed that another process measured"


def test_the_step_never_waits_for_the_disk(make_tuned, make, open_cache, monkeypatch):
    monkeypatch.setattr(feature_cache, "MAX_PENDING", 0)
    tuned = make_tuned()
    cache = open_cache(tuned)
    supervised_loss(tuned.base, make([[1, 4]], cache))
    cache.close()
    assert cache.summary()["dropped"] == 5 and not list(cache.lookup.store.folder.glob("*/*.feat"))


def test_a_disk_that_fails_ends_the_keeping_and_not_the_run(make_tuned, make, open_cache, monkeypatch, caplog):
    def fail(*_):
        raise OSError("input/output error")

    monkeypatch.setattr(Store, "write", fail)
    tuned = make_tuned()
    cache = open_cache(tuned)
    for packs in COMPOSITIONS[:2]:
        supervised_loss(tuned.base, make(packs, cache))
    cache.close()
    assert cache.summary()["dropped"] == 10
    assert caplog.text.count("no more features are kept: input/output error") == 1


@pytest.mark.gpu
@pytest.mark.parametrize("freeze", ["vit_aligner", "vit"])
def test_the_side_stream_copies_what_the_tower_made(make_tuned, make, open_cache, freeze):
    """With work behind each batch that would take its memory over."""
    tuned = make_tuned("model.dtype=bfloat16", f"freeze={freeze}")
    tuned.model.to("cuda").eval()
    cache, seen = open_cache(tuned, "bf16"), {}
    keep = cache.keep

    def watch(missed, features):
        keep(missed, features)
        for (key, _), one in zip(missed, features.split([n for _, n in missed]), strict=True):
            seen.setdefault(key, one)  # the first is kept; a later one may round otherwise, in another batch

    cache.keep = watch
    for packs in COMPOSITIONS * 3:
        supervised_loss(tuned.base, make(packs, cache).pin_memory().to("cuda", non_blocking=True)).backward()
        torch.empty(1 << 20, device="cuda").normal_()
    cache.close()
    assert len(seen) == 5
    for key, features in seen.items():
        assert torch.equal(cache.lookup.store.read(key), features.cpu())
    torch.cuda.synchronize()
    assert cache.summary()["saved_s"] >= 0
    with torch.no_grad():
        warm = make([[0, 1], [2, 3, 4]], open_cache(tuned, "bf16"))
        plain = make([[0, 1], [2, 3, 4]])
        found, expected = (supervised_logits(tuned.base, batch.to("cuda")) for batch in (warm, plain))
    assert warm.pixel_values is None
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
