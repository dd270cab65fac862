"""The script that holds loss curves against each other."""

import loss_curve


def test_differences_are_over_the_steps_that_both_have():
    found = loss_curve.difference([2.0, 1.5, 1.25], [2.0, 1.0])
    assert found == {"steps": 2, "mean": 0.25, "rms": 0.125**0.5, "largest": 0.5, "last_tenth": 0.5}


def test_variants_compose_and_name_what_they_are_held_against():
    for variant in loss_curve.VARIANTS:
        config = loss_curve.config_of(variant, tiny=True)
        assert config.tuner.fused is (variant not in loss_curve.STOCK_FORWARD)
    assert {name for pair in loss_curve.PAIRS for name in pair} == set(loss_curve.VARIANTS)
