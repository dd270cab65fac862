import pytest
import torch
from torch import nn

from harness.optim.adafactor_optimizer import Adafactor
from harness.optim.restored import restored


@pytest.mark.parametrize("keys", [(0, 1, 2), ("a", "b", "c")])
def test_state_is_found_by_numbers_and_by_names(keys):
    first, second, third = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    optimizer = torch.optim.SGD([{"params": [first, second]}, {"params": [third]}], lr=1.0)
    groups = [{"params": list(keys[:2])}, {"params": [keys[2]]}]
    found = list(restored(optimizer, {"param_groups": groups, "state": {keys[2]: {"x": 3}, keys[0]: {"x": 1}}}))
    assert [(id(parameter), stored) for parameter, stored in found] == [(id(first), {"x": 1}), (id(third), {"x": 3})]


def test_adafactor_takes_a_state_by_names():
    """As torch.distributed.checkpoint hands it out."""
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = Adafactor([weight], lr=1e-3, relative_step=False, scale_parameter=False)
    weight.grad = torch.full_like(weight, 0.1)
    optimizer.step()
    saved = optimizer.state_dict()
    saved = {
        "state": {"model.weight": saved["state"][0]},
        "param_groups": [saved["param_groups"][0] | {"params": ["model.weight"]}],
    }
    other = Adafactor([weight], lr=1e-3, relative_step=False, scale_parameter=False)
    other.load_state_dict(saved)
    assert other.state[weight]["exp_avg_sq_row"].dtype == torch.float32
