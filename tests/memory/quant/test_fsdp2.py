"""Bits sharded over two processes by FSDP2: results and gradients are those of one, in either storage."""

import subprocess
import sys

import pytest

pytest.importorskip("bitsandbytes", reason="extra quant")

SCRIPT = """
import copy
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from harness.memory.quant.bnb4_codec import quantized
from harness.memory.quant.linear import QuantLinear

dist.init_process_group("gloo")
mesh, policy = init_device_mesh("cpu", (2,)), MixedPrecisionPolicy(param_dtype=torch.bfloat16)
for storage in (torch.bfloat16, torch.uint8):
    torch.manual_seed(0)
    def layer():
        bits = quantized(torch.randn(64, 64).bfloat16(), "nf4", 64, True, storage)
        return nn.Sequential(nn.LayerNorm(64, dtype=torch.bfloat16), QuantLinear(bits, (64, 64), None, torch.bfloat16))
    model = nn.Sequential(layer(), layer())
    x = torch.randn(3, 64).bfloat16()
    expected = model(x)
    grads = torch.autograd.grad(expected.sum(), [model[0][0].weight, model[1][0].weight])
    for part in (*model, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    assert model[0][1].weight_data.to_local().nbytes == 64 * 64 // 4
    y = model(x)
    y.sum().backward()
    assert torch.equal(y, expected)
    for part, grad in zip(model, grads, strict=True):
        torch.testing.assert_close(part[0].weight.grad.full_tensor(), grad, atol=0.02, rtol=0.02)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_bits_give_the_same(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
