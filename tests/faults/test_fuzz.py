"""Broken input of every family ends in a right result or in an error that names its file; a case can be replayed."""

import contextlib

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def test_a_short_form_of_the_fuzzer_finds_nothing(scripts):
    figures = scripts("fuzz").fuzz(cases=150, seed=1)
    assert figures["wrong"] == []
    assert all(figures["counts"].values()) and sum(sum(kinds.values()) for kinds in figures["counts"].values()) == 150


def test_a_case_follows_from_its_name(scripts, tmp_path):
    fuzzer = scripts("fuzz").Fuzzer(tmp_path)
    first, again = (fuzzer.case("images", 3, 5) for _ in range(2))
    assert first | {"seconds": 0} == again | {"seconds": 0} and first["case"] == "images:3:5"


@pytest.mark.parametrize("what", ["used", "said"])
def test_a_wrong_count_is_seen(scripts, tmp_path, monkeypatch, what):
    """The fuzzer's own judgement: an account that is off by a row, or an error without a row, is a failure."""
    account = scripts("harness.data.account").Account
    if what == "used":
        monkeypatch.setattr(account, "used", property(lambda self: self.rows))
    else:
        error = scripts("harness.data.row_error").RowError
        monkeypatch.setattr(error, "__str__", lambda self: "something is wrong")
    fuzzer = scripts("fuzz").Fuzzer(tmp_path)
    assert any(fuzzer.case("rows", 0, number)["wrong"] for number in range(8))


def test_a_case_without_end_is_ended(scripts, tmp_path, monkeypatch):
    fuzz = scripts("fuzz")
    monkeypatch.setattr(fuzz, "LIMIT_S", 0.2)

    def endless(folder, draw, note):
        while True:
            with contextlib.suppress(Exception):
                draw.random()

    monkeypatch.setitem(fuzz.FAMILIES, "rows", lambda home: endless)
    assert fuzz.Fuzzer(tmp_path).case("rows", 0, 0)["wrong"].startswith("over 0 s, in ")
