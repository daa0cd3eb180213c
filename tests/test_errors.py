"""Errors carry what and hint, and the exit code of the process."""

from danlu.errors import DanluError, Stopped


def test_an_error_is_two_lines():
    error = DanluError("no such thing", "make one")
    assert str(error) == "no such thing\nhint: make one"
    assert error.exit_code == 2
    assert str(DanluError("alone")) == "alone"


def test_being_stopped_has_the_signal_s_exit_code():
    assert Stopped("ctrl-c").exit_code == 130
    assert Stopped("terminated", exit_code=143).exit_code == 143
    assert isinstance(Stopped("x"), DanluError)
