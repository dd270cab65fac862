import pytest
import torch

Q_PROJ = "language_model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(("init", "rtol"), [("pissa", 1e-4), ("pissa_niter_8", 3e-2)])
def test_pissa_holds_the_principal_singular_values(start_of, product, init, rtol):
    """A and B carry the largest singular values of W, the frozen rest the others (arXiv 2404.02948, equation 2)."""
    weight, layer = start_of(Q_PROJ, f"tuner.init={init}", "tuner.rank=4")
    values, near = torch.linalg.svdvals(weight), {"atol": 1e-4, "rtol": rtol}
    torch.testing.assert_close(torch.linalg.svdvals(product(layer))[:4], values[:4], **near)
    torch.testing.assert_close(torch.linalg.svdvals(layer.base_layer.weight)[0], values[4], **near)


def test_olora_holds_the_first_columns_of_q_and_rows_of_r(start_of):
    """(arXiv 2406.01775, section 3.1) B is orthonormal, and R is triangular."""
    weight, layer = start_of(Q_PROJ, "tuner.init=olora", "tuner.rank=4")
    A_RD, B_ER = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(B_ER.T @ B_ER, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(A_RD, B_ER.T @ weight, atol=1e-5, rtol=1e-5)
    assert torch.equal(A_RD, A_RD.triu())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_orthogonal_factors_are_not_zero_and_their_product_is(start_of, product, dtype):
    _, layer = start_of(Q_PROJ, "tuner.init=orthogonal", f"model.dtype={dtype}")
    assert layer.lora_A["default"].weight.abs().min() > 0 and layer.lora_B["default"].weight.abs().min() > 0
    assert product(layer).abs().max() < 1e-6
