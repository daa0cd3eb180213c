"""The pages; importing a page's module registers it with NiceGUI."""


def register() -> None:
    from danlu.studio.pages import data, runs, verdict  # noqa: F401
