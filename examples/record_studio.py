"""Record a minute of the studio in Chromium: ``python examples/record_studio.py docs/studio.webp``.

It needs the extra ``studio``, Playwright, and Chromium from Debian's package or at the path CHROMIUM.
"""

import io
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from guidon.core.atomic import atomic_path
from guidon.studio.engine import Studio
from guidon.studio.server import start

SIZE = {"width": 1100, "height": 760}
SHOWN = 880, 608  # pixels of the recording
EVERY = 0.4  # seconds between two pictures
RUN = 14.0  # seconds for which a run is shown, whatever it takes
QUALITY = 80  # at 45, pictures before shine through light grounds


class Recording:
    """Pictures of a page, each with how long it is shown, in seconds."""

    def __init__(self, page: Page) -> None:
        self.page, self.pictures, self.times = page, list[Image.Image](), list[float]()

    def take(self, seconds: float = EVERY) -> None:
        """Show the page as it is now. A picture that is the same as the last one is shown longer."""
        image = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB").resize(SHOWN, Image.Resampling.LANCZOS)
        if self.pictures and np.array_equal(np.asarray(image), np.asarray(self.pictures[-1])):
            self.times[-1] += seconds
        else:
            self.pictures.append(image)
            self.times.append(seconds)

    def watch(self, seconds: float) -> None:
        """Show the page for some time."""
        for _ in range(round(seconds / EVERY)):
            self.take()
            self.page.wait_for_timeout(1000 * EVERY / 2)

    def shorten(self, first: int, seconds: float) -> None:
        """Show the pictures from a number on for some seconds together, evenly, as many as there is time for."""
        kept = np.unique(np.linspace(first, len(self.pictures) - 1, round(seconds / EVERY)).round().astype(int))
        self.pictures[first:] = [self.pictures[each] for each in kept]
        self.times[first:] = [seconds / len(kept)] * len(kept)

    def save(self, path: Path) -> None:
        """Write an animated WebP."""
        first, *rest = self.pictures
        with atomic_path(path) as temporary:
            first.save(
                temporary, format="WEBP", save_all=True, append_images=rest, quality=QUALITY, method=4, loop=0,
                duration=[round(1000 * each) for each in self.times],
            )  # fmt: skip


def act(page: Page, film: Recording) -> None:
    """What is shown: the example, another prompt, another switch, the run, the wipe, what is inside, the command."""

    def go_to(selector: str) -> None:
        page.locator(selector).evaluate("one => one.scrollIntoView({block: 'start'})")

    page.wait_for_selector("body[data-ready='true']")
    film.watch(4)
    page.click("#vocabulary summary")
    film.take(1.2)
    for word in ("circle", "blue", "right"):
        page.click(f"#words .chip:text-is('{word}')")
        film.take(0.9)
    page.click("#vocabulary summary")
    page.fill("#seed", "12")
    go_to("#columns")
    film.take(1.2)
    for channel in (0, 1):
        page.uncheck(f"#on{channel}-1")
        film.take(0.9)

    # the run, with its previews
    page.click("#generate")
    go_to("#working")
    before = len(film.pictures)
    while page.is_visible("#working"):
        film.take()
        time.sleep(EVERY)
    film.shorten(before, RUN)

    # the clips, the same as slices over time, and two of them over each other
    page.wait_for_selector("body[data-ready='true']")
    film.watch(4)
    page.select_option("#mode", "slice")
    film.take(2.5)
    page.select_option("#mode", "clip")
    go_to("#two")
    for edge in range(10, 100, 6):
        page.fill("#wipe", str(edge))
        film.take()

    # what is inside
    go_to("#inside")
    film.take(4)
    button = page.locator("#traces button").nth(1)
    button.click()
    page.wait_for_selector("#traces table")
    go_to("#traces")
    film.take(4)
    go_to("#metrics")
    film.take(3)

    # carry on
    go_to("#carry")
    film.take(4)
    page.click("#study-yaml")
    page.wait_for_selector("#yaml:not([hidden])")
    go_to("#study")
    film.take(4)
    page.evaluate("scrollTo({top: 0})")
    film.watch(3)


def main(path: Path) -> None:
    """Record the studio with the model in the package."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    studio = Studio()
    running = start(studio)
    try:
        studio.warm()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport=SIZE, color_scheme="light")  # type: ignore[arg-type]
            page.set_default_timeout(600_000)  # a run takes as long as the machine needs
            page.goto(running.url)
            film = Recording(page)
            act(page, film)
            film.save(path)
            browser.close()
        print(f"{path}: {sum(film.times):.0f} s, {path.stat().st_size / 1e6:.1f} MB")
    finally:
        running.close()
        studio.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "studio.webp"))
