from advjax.report.text import aligned, ruled


def test_tables_are_aligned():
    assert ruled(["", "x"], [["long name", "1"], ["b", "22"]]).splitlines() == [
        "            x",
        "-------------",
        "long name   1",
        "b          22",
    ]
    assert aligned([["a", "bb", "1"], ["cc", "d", "10"]], left=2) == ["a   bb   1", "cc  d   10"]
    assert ruled(["name"], []) == "name\n----"
