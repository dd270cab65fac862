from harness.data.account import Account


def test_rows_are_used_skipped_or_dropped():
    account = Account(100)
    for number in range(12):
        account.skipped.add("missing image", f"f:{number}: no such file")
    account.skipped.add("not JSON", "f:50: not JSON")
    account.dropped.add("over max_length", "f:60")
    account.truncated.add("left", "f:61")
    assert account.used == 86
    plain = account.plain()
    assert plain["skipped"]["missing image"]["rows"] == 12
    assert plain["skipped"]["missing image"]["first"] == [f"f:{number}: no such file" for number in range(10)]
    assert plain["rows"] == plain["used"] + sum(
        item["rows"] for fate in ("skipped", "dropped") for item in plain[fate].values()
    )
    assert account.text().startswith("86 of 100 rows, 13 skipped: 12 missing image, 1 not JSON (first: f:0: no such")


def test_a_row_that_fails_each_epoch_counts_once():
    account = Account(5)
    failed = ("f:2", "broken image", "can not be decoded")
    assert account.leave_out([failed]) == ["f:2: can not be decoded"]
    assert account.leave_out([failed, ("f:3", "broken image", "too")]) == ["f:3: too"]
    assert account.used == 3 and account.skipped.counts["broken image"] == 2
    assert account.left_out == [failed, ("f:3", "broken image", "too")]
