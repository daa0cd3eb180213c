"""The one error a user sees: what went wrong and what to do next, never a traceback."""


class DanluError(Exception):
    """A problem that the user can act on; the CLI prints two lines and exits with `exit_code`."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class Stopped(DanluError):
    """The run was interrupted (Ctrl-C, SIGTERM) after saving; it can be resumed."""

    def __init__(self, message: str, hint: str = "", exit_code: int = 130) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code
