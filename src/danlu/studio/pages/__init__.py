"""The pages; importing a page's module registers it with NiceGUI."""


def register() -> None:
    from danlu.studio.pages import chat, data, export, run, runs, start, verdict  # noqa: F401
