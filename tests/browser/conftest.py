"""A real browser with the network off, for pages that must need none."""

from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: `pip install playwright`"
    )
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser at {CHROMIUM}: `apt install chromium`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a page and, at the end, make sure that it asked for nothing, threw nothing and broke no policy."""
    opened = []

    def visit(path, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_offline(True)
        page = context.new_page()
        troubles = []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append("dialog: " + dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(("data:", "blob:")) or troubles.append(request.url))
        page.goto(path.as_uri())
        assert troubles.pop(0) == path.as_uri()
        opened.append((context, troubles))
        return page

    yield visit
    for context, troubles in opened:
        context.close()
        assert troubles == []
