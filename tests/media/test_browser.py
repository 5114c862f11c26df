"""A clip in a notebook, as Chromium shows it: from a file, without a script."""

import os
import shutil

import numpy as np
import pytest

from guidon.media import Video

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def test_a_clip_is_shown_enlarged_and_plays_without_a_script(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: install Debian's package, or give its path as CHROMIUM")
    frames = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 255)])
    html = Video(frames, 8, {"generation": {"prompts": ["<i>a circle</i>"]}})._repr_html_()
    (tmp_path / "cell.html").write_text(f"<meta charset=utf-8>{html}")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(java_script_enabled=False, offline=True).new_page()
        page.goto((tmp_path / "cell.html").as_uri())
        shown = page.locator("img")
        assert shown.bounding_box()["width"] == 256
        pictures = set()
        for _ in range(10):
            pictures.add(shown.screenshot())
            page.wait_for_timeout(60)
        assert len(pictures) == 2
        assert page.locator("figcaption").inner_text() == "<i>a circle</i> · 16x16, 2 frames at 8 fps"
        browser.close()
