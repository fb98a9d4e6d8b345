"""Draw docs/explore.png, the page of ``xent-rs explore`` in README: ``python scripts/explore_picture.py``.

It needs Chromium and Playwright (``pip install playwright``), and looks best with the font Inter.
"""

import shutil
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright
from xent_rs.cli import explore

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "explore.png"
VIEW = "#neurons.epoch=60"


def main():
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with explore._Server("127.0.0.1", 0) as server, sync_playwright() as driver:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 1100, "height": 800}, device_scale_factor=1.5, color_scheme="light"
        )
        page.goto(server.url + VIEW)
        page.wait_for_selector("html[data-ready]")
        page.locator('[data-panel="neurons"]').screenshot(path=PICTURE)
        browser.close()
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    main()
