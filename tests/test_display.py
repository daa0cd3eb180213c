"""Progress and messages: all on stderr, by mode."""

from __future__ import annotations

import re

import pytest

from danlu import display


@pytest.fixture(autouse=True)
def _restore_mode():
    yield
    display.set_mode("auto")


def test_a_pipe_gets_plain_text(capsys):
    assert display.mode() == "plain"
    with display.task("work", 3) as task:
        task.advance(loss=0.5)
        task.advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("work 3/3  done in ")
    assert "\033" not in captured.err


def test_plain_lines_come_at_intervals(capsys, monkeypatch):
    monkeypatch.setattr(display, "PLAIN_EVERY", 0.0)
    with display.task("work", 2) as task:
        task.advance(loss=0.125)
    assert "work 1/2  eta" in (err := capsys.readouterr().err)
    assert "loss 0.125" in err


def test_before_anything_is_done_nobody_knows_how_long_it_takes(capsys, monkeypatch):
    monkeypatch.setattr(display, "PLAIN_EVERY", 0.0)
    with display.task("work", 2) as task:
        task.advance(0, sampled="1/8")
    assert "work 0/2  eta ?  sampled 1/8" in capsys.readouterr().err


def test_a_terminal_shows_the_newest_steps_as_a_table(capsys, monkeypatch):
    """The last drawing holds the rows that fit, each figure in its column, and no note of a step that is over."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    display.set_mode("rich")
    with display.task("grpo", 5, rows=3) as task:
        for step in range(5):
            task.advance(0, sampled=f"{step}/8")
            task.advance(1, reward=step / 8, length=40 + step, **({"eval_accuracy": 0.75} if step == 3 else {}))
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    last = drawn[drawn.rindex("step") :]
    rows = [line.split() for line in last.splitlines() if re.match(r" *[0-9]", line)]
    assert rows == [["3", "0.25", "42"], ["4", "0.375", "43", "0.75"], ["5", "0.5", "44"]]
    assert last.splitlines()[0].split() == ["step", "reward", "length", "eval_accuracy"]
    assert "5/5" in last
    assert "sampled" not in last


def test_none_is_silent_but_for_warnings_and_failures(capsys):
    display.set_mode("none")
    display.say("hello")
    with display.task("work", 1) as task:
        task.advance()
    display.warn("careful [bold]")
    display.failure("broken", "mend it")
    err = capsys.readouterr().err
    assert err == "warning: careful [bold]\nerror: broken\nhint: mend it\n"


def test_a_failure_is_two_lines_whatever_its_text(capsys):
    display.failure("one\ntwo", "three\nfour")
    assert capsys.readouterr().err == "error: one two\nhint: three four\n"


@pytest.mark.parametrize("no_colour", [{}, {"NO_COLOR": "1"}])
def test_colour_only_on_a_terminal_that_wants_it(capsys, monkeypatch, no_colour):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in no_colour.items():
        monkeypatch.setenv(name, value)
    display.failure("x")
    assert ("\033" in capsys.readouterr().err) is (not no_colour)


def test_durations() -> None:
    assert [display.duration(one) for one in (None, -1, 7.2, 90, 4000, 100_000)] == [
        *("", "0 s", "7 s", "1.5 min", "1.1 h", "1.2 d")
    ]
