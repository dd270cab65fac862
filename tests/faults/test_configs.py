"""Wrong keys and values of the command line are refused by their key."""

import pytest


@pytest.mark.faults
@pytest.mark.slow
def test_a_sample_of_the_mutations_is_refused(scripts):
    mutated = scripts("mutated_configs")
    with mutated.composed_once():
        found = [mutated.refused(item) for item in list(mutated.mutations())[::60]]
    assert len(found) > 100 and not [item for item in found if not item["ok"]]


@pytest.mark.faults
def test_shares_and_counts_are_keys_that_there_are(scripts):
    mutated = scripts("mutated_configs")
    assert {*mutated.SHARES, *mutated.COUNTS} <= mutated.known_numbers()


@pytest.mark.faults
def test_what_is_right_is_not_called_wrong(scripts):
    mutated = scripts("mutated_configs")
    assert mutated.wrong_types(float | None) == ("much", "true", "{a: 1}"), "an integer is a float, and null is allowed"
    assert "0" not in mutated.out_of_range("data.workers", int)
    assert not mutated.out_of_range("trainer.probe", bool)
