import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import UserError
from harness.tuner.start.factors import Factors, kept

LAYERS = {"layer": Factors(torch.randn(2, 3), torch.randn(4, 2), None, torch.ones(4, 2))}


def test_a_resumed_run_reads_what_the_first_one_wrote(outlook):
    """On a GPU the same SVD need not give the same bits twice."""
    file = outlook.start_file
    first = kept(outlook, "pissa", torch.float32, lambda: LAYERS)
    again = kept(outlook, "pissa", torch.float32, lambda: pytest.fail("computed anew"))
    for found in (first["layer"], again["layer"]):
        assert torch.equal(found.A_RD, LAYERS["layer"].A_RD) and torch.equal(found.B_ER, LAYERS["layer"].B_ER)
        assert found.before_A_RD is None and torch.equal(found.before_B_ER, torch.ones(4, 2))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_start_has_the_type_that_trains(outlook):
    """What is taken out of the base has to be what the adapter holds, rounding included."""
    found = kept(outlook, "pissa", torch.bfloat16, lambda: LAYERS)["layer"]
    assert torch.equal(found.A_RD, LAYERS["layer"].A_RD.bfloat16())


def test_random_numbers_drawn_for_a_start_are_put_back(outlook):
    """A resumed run draws none."""
    before = torch.get_rng_state()
    kept(
        outlook,
        "orthogonal",
        torch.float32,
        lambda: {"layer": Factors(torch.randn(2, 3), torch.randn(4, 2))},
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_other_ranks_wait_for_the_first(outlook, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    found = {}
    asked = threading.Thread(
        target=lambda: found.update(kept(outlook, "pissa", torch.float32, lambda: pytest.fail("second")))
    )
    asked.start()
    time.sleep(0.05)
    monkeypatch.setenv("RANK", "0")
    kept(outlook, "pissa", torch.float32, lambda: LAYERS)
    asked.join(timeout=5)
    assert torch.equal(found["layer"].A_RD, LAYERS["layer"].A_RD)


def test_the_start_of_other_settings_is_refused(outlook):
    kept(outlook, "rank 8", torch.float32, lambda: LAYERS)
    with pytest.raises(UserError, match="the start of a run with other settings of its tuner"):
        kept(outlook, "rank 4", torch.float32, lambda: LAYERS)


@pytest.mark.parametrize("change", [lambda content: content[:50], lambda content: content[:8] + b"[" + content[9:]])
def test_a_damaged_start_is_told_by_its_file(outlook, change):
    kept(outlook, "rank 8", torch.float32, lambda: LAYERS)
    outlook.start_file.write_bytes(change(outlook.start_file.read_bytes()))
    with pytest.raises(UserError, match=r"start\.safetensors: damaged \("):
        kept(outlook, "rank 8", torch.float32, lambda: LAYERS)


def test_a_file_without_settings_is_no_start_of_this_run(outlook):
    save_file({"A_RD/layer": torch.ones(2, 3)}, outlook.start_file)
    with pytest.raises(UserError, match="the start of a run with other settings"):
        kept(outlook, "rank 8", torch.float32, lambda: LAYERS)
