"""Progress in logs, warnings."""

from __future__ import annotations

import pytest

from advjax.cli import console
from advjax.cli.console import Console


def test_progress_in_a_log_is_a_line_now_and_then_and_the_last_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 6.0, 7.0, 10.0, 10.5, 11.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with Console().progress("work") as tell:  # a resumed piece of work: it starts at 50 of 100
        for done in (50, 75, 80, 100, 100):
            tell(done, 100, "loss 1")
        tell(1, 100, "next stage")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "work:  75%, 6 s, 5 s left  loss 1",
        "work: 100%, 10 s  loss 1",
    ]


def test_only_the_json_object_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = Console(json=True)
    quiet.say("for people")
    quiet.note("a remark")
    quiet.result({"a": 1})
    out, err = capsys.readouterr()
    assert (out, err) == ('{"a": 1}\n', "a remark\n")
    Console().result({"a": 1})
    assert capsys.readouterr().out == ""
