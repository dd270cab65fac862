import pytest
import torch

from harness.tuner.start.calibration import input_moments
from harness.tuner.start.corda import covariance

UP_PROJ = "language_model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_the_base_keeps_the_components_of_w_c_that_do_not_train(start_of, make_tuned, outlook, method):
    """W' C has the singular values of W C but the r largest (ipm) or smallest (kpm): arXiv 2406.05223, equation 5."""
    base = make_tuned("tuner=full").base
    C_DD = covariance(input_moments(base, [f"model.{UP_PROJ}"], outlook, (2, 2, None))[f"model.{UP_PROJ}"])
    options = ["tuner.corda.batches=2", "tuner.corda.batch_size=2", f"tuner.corda.method={method}"]
    weight, layer = start_of(UP_PROJ, "tuner.init=corda", *options, "tuner.rank=8")
    values = torch.linalg.svdvals(weight @ C_DD)
    expected = values[8:] if method == "ipm" else values[:-8]
    left = torch.linalg.svdvals(layer.base_layer.weight @ C_DD)[: len(expected)]
    torch.testing.assert_close(left, expected, atol=1e-4 * values[0].item(), rtol=1e-3)


def test_what_trains_matters_more_on_the_data_than_that_of_pissa(start_of, make_tuned, outlook, product):
    """ipm: of all products of rank r, B A changes the layer's outputs on the data most."""
    samples = (4, 4, None)
    moments = input_moments(make_tuned("tuner=full").base, [f"model.{UP_PROJ}"], outlook, samples)[f"model.{UP_PROJ}"]
    kept = {}
    for init in ("corda", "pissa"):
        outlook.start_file.unlink(missing_ok=True)
        options = ["tuner.corda.batches=4", "tuner.corda.batch_size=4"] if init == "corda" else []
        weight, layer = start_of(UP_PROJ, f"tuner.init={init}", *options)
        rest = weight - product(layer)
        kept[init] = torch.einsum("ed,df,ef->", rest, moments.square_DD, rest)
    assert kept["corda"] < kept["pissa"]
