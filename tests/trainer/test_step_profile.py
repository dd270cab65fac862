import json
from types import SimpleNamespace

import pytest
import torch

from harness.errors import UserError
from harness.trainer.meter import Meter
from harness.trainer.step_profile import StepProfile, group, write


@pytest.mark.parametrize(
    ("name", "operator", "shapes", "expected"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "aten::mm", [[8192, 2560], [2560, 9728]], "products"),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNN", "aten::mm", [[8192, 2560], [2560, 8]], "small products (adapters)"),
        (
            "void cublasLt::splitKreduce_kernel<32, 16>",
            "aten::mm",
            [[8, 8192], [8192, 2560]],
            "small products (adapters)",
        ),
        ("void pytorch_flash::flash_fwd_kernel<>", "harness::varlen_attention", [[8192, 32, 128]], "attention"),
        ("triton_poi_fused_mul_silu_3", "", [], "pointwise"),
        ("triton_red_fused_mean_pow_1", "", [], "norms and sums"),
        ("void at::native::vectorized_elementwise_kernel<4>", "aten::mul", [[8192, 8]], "pointwise"),
        ("Memcpy HtoD (Pinned -> Device)", "aten::copy_", [[8]], "memory"),
        ("void at::native::multi_tensor_apply_kernel<>", "aten::_fused_adamw_", [], "optimiser"),
        ("something_else", "", [], "other"),
    ],
)
def test_kernels_are_grouped_by_what_they_are_for(name, operator, shapes, expected):
    assert group(name, operator, shapes) == expected


def test_the_tables_are_milliseconds_a_step(tmp_path):
    write({("products", "aten::mm"): (0.3, 20), ("attention", "flash"): (0.1, 4)}, 2, tmp_path)
    content = json.loads((tmp_path / "kernels.json").read_text())
    assert content["groups"] == {"products": 150.0, "attention": 50.0}
    assert content["kernels"][0] == {"group": "products", "name": "aten::mm", "ms": 150.0, "calls": 10.0}
    assert "| products | 150.00 | 75.0% |" in (tmp_path / "kernels.md").read_text()


def test_it_covers_the_steps_asked_for_and_no_others(tmp_path):
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, lightning_module=SimpleNamespace(meter=Meter()))
    callback = StepProfile(2, 3, tmp_path / "profile")
    for step in range(4):
        callback.on_train_batch_start(trainer)
        torch.ones(8, 8) @ torch.ones(8, 8)
        trainer.global_step = step + 1
        callback.on_train_batch_end(trainer)
    content = json.loads((tmp_path / "profile/kernels.json").read_text())
    products = [item for item in content["kernels"] if item["name"] == "aten::mm"]
    assert [item["calls"] for item in products] == [1.0]
    assert (tmp_path / "profile/trace.json.gz").stat().st_size > 0


@pytest.mark.parametrize("span", ["[3]", "[0,2]", "[4,2]"])
def test_a_span_that_is_none_is_refused(make_config, span):
    with pytest.raises(UserError, match=r"trainer\.profile_steps=.*must be two steps"):
        make_config(f"trainer.profile_steps={span}")
