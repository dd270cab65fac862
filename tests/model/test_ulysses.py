"""The exchanges on two real processes (gloo), against attention of one; whole runs: tests/memory/strategy."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import harness
from harness.data.batch import Share
from harness.errors import UserError
from harness.model import ulysses
from harness.model.attention import _attend as varlen
from harness.model.forward import embedding_noise
from harness.model.ulysses import check_heads, share_sequences

ROOT = Path(harness.__file__).parent.parent
RANK = """
import os, sys
from datetime import timedelta
from functools import partial
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from harness.data.batch import Share
from harness.model import ulysses
from harness.model.attention import _attend as varlen

torch.set_num_threads(1)
folder, rank = sys.argv[1], int(os.environ["RANK"])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
                        timeout=timedelta(seconds=60))
name = dist.group.WORLD.group_name
ulysses._groups[name] = dist.group.WORLD
T, D, scale = 24, 8, 8**-0.5
starts = torch.tensor([0, 7, 16, 24], dtype=torch.int32)
told = {"cu_seq_lens_q": starts, "max_length_q": torch.tensor(9)}
sample_T = torch.searchsorted(starts, torch.arange(T, dtype=torch.int32), right=True)
packed = (sample_T[:, None] == sample_T[None]).tril()[None, None]
padded = torch.ones(12, 12, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
padded[1, :, :, 10:] = False


def module(groups):
    layer = torch.nn.Module()
    layer.is_causal, layer.num_key_value_groups = True, groups
    return layer


def run(kernel, groups, mask, rows, wrap):
    torch.manual_seed(0)
    heads = [torch.randn(1, h, T, D, requires_grad=True) for h in (4, 4 // groups, 4 // groups)]
    weight = torch.randn(1, T, 4, D)
    layer, cut = module(groups), slice(rank * T // 2, (rank + 1) * T // 2)
    told_ = told if mask is None else {}
    whole = [h.view(h.shape[1], rows, -1, D).transpose(0, 1) for h in heads]
    expected = kernel(layer, *whole, mask, scaling=scale, **told_)[0].reshape(1, T, 4, D)
    wanted = torch.autograd.grad((expected * weight).sum(), heads)

    def attend(*parts):
        return ulysses._attend(kernel, layer, *parts, mask, scaling=scale, sequence_group=name, sequence_size=2,
                               sequence_rows=rows, **told_)[0]

    own = [h.detach()[:, :, cut].clone().requires_grad_() for h in heads]
    out = wrap(attend)(*own)
    (out * weight[:, cut]).sum().backward()
    torch.testing.assert_close(out, expected[:, cut], atol=1e-6, rtol=1e-5)
    for part, grad in zip(own, wanted, strict=True):
        torch.testing.assert_close(part.grad, grad[:, :, cut], atol=1e-6, rtol=1e-5)


plain = lambda f: f
recompute = lambda f: lambda *parts: checkpoint(f, *parts, use_reentrant=False)
compiled = lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)
both = lambda f: recompute(compiled(f))
for wrap in (plain, recompute, compiled, both):
    run(varlen, 2, None, 1, wrap)
for groups in (1, 4):
    run(varlen, groups, None, 1, plain)
run(sdpa_attention_forward, 2, packed, 1, plain)
run(sdpa_attention_forward, 2, padded, 2, plain)
run(sdpa_attention_forward, 1, None, 1, recompute)

# Features: rank 0 has tokens 0 1 2 5 6 of images, rank 1 tokens 3 4; slices hold 0 to 1, and 2 to 6.
tokens, sends, receives, order = (
    ([0, 1, 2, 5, 6], [2, 3], [2, 0], [0, 1]), ([3, 4], [0, 2], [3, 2], [0, 3, 4, 1, 2])
)[rank]
share = Share(rank=rank, size=2, rows=1, positions=torch.zeros(1, 1), sees=True, sends=sends, receives=receives,
              order=torch.tensor(order), num_fresh=0)
own = torch.tensor(tokens, dtype=torch.bfloat16).view(-1, 1, 1).expand(-1, 2, 3).clone().requires_grad_()
got = ulysses.read_features(own, share, name)
first = (0, 2)[rank]
assert got[:, 0, 0].tolist() == list(range(first, first + len(order)))
(got * (1 + torch.arange(len(order)).view(-1, 1, 1) + first)).sum().backward()
assert own.grad[:, 1, 2].tolist() == [1 + token for token in tokens]
# A rank without an image, and one without a visual token.
share.sends, share.receives, share.order = ([0, 3], [0, 0], torch.zeros(0).long()) if rank == 0 else (
    [0, 0], [3, 0], torch.arange(3))
own = torch.ones(3 if rank == 0 else 0, 2, 3, requires_grad=True)
ulysses.read_features(own, share, name).sum().backward()
assert own.grad.sum() == own.numel()
torch.save(True, f"{folder}/done_{rank}")
dist.destroy_process_group()
"""


def test_attention_and_features_of_two_ranks_are_those_of_one(tmp_path):
    """Forward and backward: plain, computed again, compiled; heads of keys for each query, for two, for all."""
    processes = []
    for rank in range(2):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": str(rank), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", RANK, str(tmp_path)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all((tmp_path / f"done_{rank}").is_file() for rank in range(2)), "\n".join(errors)


def test_heads_that_ranks_can_not_share_are_refused():
    text = SimpleNamespace(num_attention_heads=24, num_key_value_heads=4)
    for ranks in (1, 2, 4, 8, 12):
        check_heads(text, ranks)
    with pytest.raises(UserError, match=r"memory\.sequence_parallel=5: the checkpoint has 24 attention heads"):
        check_heads(text, 5)
    with pytest.raises(UserError, match=r"memory\.sequence_parallel=6: the checkpoint has 4 heads of keys and values"):
        check_heads(text, 6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=3"], r"memory\.sequence_parallel=2: 3 processes do not make groups of it"),
        (["memory/strategy=fsdp2"], r"memory\.sequence_parallel=2: memory/strategy=fsdp2 deals micro-batches"),
        (["memory/strategy=zero2"], r"memory\.sequence_parallel=2: memory/strategy=zero2 deals micro-batches"),
        (["memory.sequence_parallel=0"], r"memory\.sequence_parallel=0: must be 1 or more"),
        (["trainer.oom_replay=true"], r"trainer\.oom_replay=true: memory\.sequence_parallel=2 makes processes wait"),
        (["trainer.probe=true"], r"trainer\.probe=true: memory\.sequence_parallel=2 makes processes wait"),
        (["data.on_error=skip"], r"data\.on_error=skip: memory\.sequence_parallel=2: one process alone may fail"),
        (["tuner=longlora"], "tuner=longlora: halves the heads"),
        (["tuner=reft", "tuner.suffix=2"], "tuner=reft: edits by the place in a prompt"),
    ],
)
def test_what_does_not_go_together_is_refused(make_config, overrides, message):
    with pytest.raises(UserError, match=message):
        make_config("trainer.devices=2", "memory.sequence_parallel=2", *overrides)


@pytest.mark.parametrize(("name", "remedy"), [("eager", "set one of varlen, sdpa"), ("sdpa", "only varlen can do")])
def test_kernels_that_can_not_share_heads_are_refused(load_model, make_config, name, remedy):
    model = load_model(make_config(f"model.attention={name}").model).model
    with pytest.raises(UserError, match=rf"model\.attention={name}: .*{remedy}"):
        share_sequences(model, 4, 60.0)


def test_processes_that_share_a_batch_count_once(make_config):
    config = make_config("trainer.devices=8", "trainer.nodes=2", "memory.sequence_parallel=4")
    assert config.data_ranks == 4


def test_rows_and_noise_of_slices_are_those_of_the_batch(make_batch):
    """NEFTune goes by the length of the token's own sample, which may begin in another slice."""
    batch = make_batch(0, 1)
    rows, length = batch.input_ids.shape
    torch.manual_seed(0)
    zero = dataclasses.replace(batch, visual_index=batch.visual_index[:0])
    whole = embedding_noise(torch.ones(rows, length, 3), zero, 5.0).abs().flatten(0, 1)
    half = rows * length // 2
    assert half * 2 == rows * length
    for rank in range(2):
        share = Share(rank, 2, rows, batch.position_ids[0], True, [], [], torch.zeros(0), 0)
        ids = batch.input_ids.view(1, -1)[:, rank * half : (rank + 1) * half]
        part = dataclasses.replace(zero, input_ids=ids, share=share)
        noise = torch.stack([embedding_noise(torch.ones(1, half, 3), part, 5.0).abs()[0] for _ in range(200)])
        bound = whole.new_tensor([5 / (n * 3) ** 0.5 for n in batch.cu_seqlens.diff().tolist() for _ in range(n)])
        own = bound[rank * half : (rank + 1) * half]
        assert (noise.amax((0, 2)) <= own).all() and (noise.amax((0, 2)) > 0.9 * own).all()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_one_gpu_exchanges_with_itself_in_a_compiled_program(tmp_path):
    """NCCL, the GPU's varlen kernel on what is received, and inductor: 1 rank, to attention without an exchange."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        group = dist.group.WORLD
        ulysses._groups[group.group_name] = group
        starts = torch.tensor([0, 100, 256], dtype=torch.int32, device="cuda")
        told = {"scaling": 0.1, "cu_seq_lens_q": starts, "max_length_q": torch.tensor(156)}
        layer = torch.nn.Module()
        layer.is_causal = True
        heads = [torch.randn(1, h, 256, 64, device="cuda", dtype=torch.bfloat16) for h in (8, 2, 2)]
        parts = [head.requires_grad_() for head in heads]

        def run(**shared):
            return ulysses._attend(varlen, layer, *parts, None, **told, **shared)[0]

        expected = run()
        shared = {"sequence_group": group.group_name, "sequence_size": 1, "sequence_rows": 1}
        weight = torch.randn_like(expected)
        wanted = torch.autograd.grad((expected * weight).sum(), parts)
        for made in (run, torch.compile(run, fullgraph=True)):
            out = made(**shared)
            torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
            for got, want in zip(torch.autograd.grad((out * weight).sum(), parts), wanted, strict=True):
                torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)
    finally:
        dist.destroy_process_group()
