import pytest
import torch
from peft import PeftModel
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.vera import VeraConfig


def test_trainable_count_is_that_of_the_paper(make_tuned):
    """Rank + outputs for each adapted matrix, however large A and B are (arXiv 2310.11454, section 3.2)."""
    model = make_tuned("tuner=vera", "tuner.rank=16", "freeze=none").model
    outputs = [m.out_features for m in model.modules() if hasattr(m, "vera_lambda_b")]
    assert len(outputs) > 4 * 7 and len(set(outputs)) > 3
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(16 + size for size in outputs)


def test_all_layers_share_one_frozen_pair_of_the_largest_shape(make_tuned):
    model = make_tuned("tuner=vera", "tuner.rank=16").model
    layers = [m for m in model.modules() if hasattr(m, "vera_lambda_b")]
    shapes = {(layer.vera_A["default"].shape, layer.vera_B["default"].shape) for layer in layers}
    assert shapes == {((16, 192), (192, 16))}
    assert len({layer.vera_A["default"].data_ptr() for layer in layers}) == 1
    assert not layers[0].vera_A["default"].requires_grad


def test_update_is_b_times_B_times_d_times_A(make_tuned):
    """Equation 2, on a layer smaller than A and B."""
    model = make_tuned("tuner=vera", "tuner.rank=16").base.model.language_model
    layer = model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.vera_lambda_b["default"])
    a, b = layer.vera_A["default"][:, :96], layer.vera_B["default"][:128]
    update = torch.diag(layer.vera_lambda_b["default"]) @ b @ torch.diag(layer.vera_lambda_d["default"]) @ a
    x = torch.randn(3, 96)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ update.T)


def test_seed_chooses_the_matrices_whatever_the_run_s_seed(make_tuned):
    def matrix(*options):
        return make_tuned("tuner=vera", "tuner.rank=4", *options).model.base_model.vera_A["default"]

    first = matrix()
    torch.manual_seed(1)
    assert torch.equal(matrix(), first)
    assert not torch.equal(matrix("tuner.projection_prng_key=1"), first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices_are_of_the_trained_type_over_any_base(make_tuned, make_batch, dtype):
    tuned = make_tuned("tuner=vera", "tuner.rank=4", "model.dtype=bfloat16", f"tuner.dtype={dtype}")
    assert tuned.model.base_model.vera_A["default"].dtype == getattr(torch, dtype)
    batch = make_batch(0)
    loss_sum(supervised_logits(tuned.base, batch), batch).backward()


def test_without_the_matrices_the_export_is_smaller_and_loads_alike(make_tuned, make_batch, tmp_path):
    sizes, batch = {}, make_batch(0)
    checkpoint = registry._PACKAGE / "model" / "tiny_checkpoint"
    for saved in ("true", "false"):
        tuned = make_tuned("tuner=vera", "tuner.rank=64", f"tuner.save_projection={saved}")
        for name, parameter in tuned.model.named_parameters():
            if "vera_lambda_b" in name:
                parameter.data.fill_(0.1)
        folder = tuned.export(tmp_path / saved)
        sizes[saved] = (folder / "adapter_model.safetensors").stat().st_size
        base = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint)
        if saved == "true":
            plain = PeftModel.from_pretrained(base, folder)
        else:
            with pytest.warns(UserWarning, match="Specified to not"):
                plain = PeftModel.from_pretrained(base, folder)
        tuned.model.eval(), plain.eval()
        with torch.no_grad():
            expected = supervised_logits(tuned.base, batch)
            torch.testing.assert_close(supervised_logits(plain.base_model.model, batch), expected)
    assert sizes["true"] - sizes["false"] > 2 * 64 * 192 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"tuner\.rank=0: must be 1 or more"),
        ({"projection_prng_key": -1}, r"tuner\.projection_prng_key=-1: is a seed"),
        ({"d_initial": 0.0}, r"tuner\.d_initial=0\.0: .*nothing can train"),
        ({"dropout": 1.0}, r"tuner\.dropout=1\.0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        VeraConfig(**options)
