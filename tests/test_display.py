"""Progress and messages: all on stderr, by mode."""

from __future__ import annotations

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
