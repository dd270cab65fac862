"""What is shown of pools that were timed."""

import pools


def sweep(seconds, *losses):
    times = {"wall_time_s": 9.0, "startup_time_s": 4.0, "steps_s": 3.0, "finish_time_s": None}
    trials = {str(number): {**times, "losses": list(each)} for number, each in enumerate(losses)}
    return {"command": "python -m harness", "seconds": seconds, "code": 0, "trials": trials}


def test_a_sweep_that_was_ended_is_compared_up_to_its_last_trial():
    warm, apart = sweep(40.0, [1.0], [1.0], [1.0]), {**sweep(60.0, [1.0], [1.0]), "code": pools.TIMED_OUT}
    for made, ends in ((warm, (20.0, 27.0, 34.0)), (apart, (25.0, 50.0))):
        for trial, ended in zip(made["trials"].values(), ends, strict=True):
            trial["ended_s"] = ended
    ratio, until = pools.compared(warm, apart)
    assert ratio == 27 / 50 and until == " until 2 trials were done (27 against 50 s)"
    assert pools.compared(warm, apart | {"code": 0}) == (40 / 60, "")


def test_ways_are_compared_by_seconds_and_losses(tmp_path):
    own = {"device": "NVIDIA H200", "versions": {"torch": "2.11.0"}}
    apart = sweep(80.0, [2.0, 1.0], [2.0, 1.0])
    warm = {"key": "warm", "side_by_side": True, "warm": sweep(40.0, [2.0, 1.0], [2.3, 1.4]), "apart": apart, **own}
    both = {"key": "gpus 2", "gpus": 2, "one": sweep(40.0, [1.0]), "all": sweep(42.0, [1.0], [1.0]), **own}
    for entry in (warm, both):
        pools.keep(entry, tmp_path, "pools")
    (tmp_path / "sweeps.md").write_text("<!-- pools -->\n<!-- end -->\n")
    pools.render(tmp_path, tmp_path)
    page = (tmp_path / "sweeps.md").read_text()
    assert "one process takes 50 % of the seconds; losses of a trial differ by 0.3536 at most" in page
    assert "a trial on each GPU takes 1.05 times as long as one alone" in page
    assert "| one process | 2 | 40 | 9.0 | 4.0 | 3.0 | 0.0 |" in page
