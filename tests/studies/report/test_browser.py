"""The report as its reader has it: in Chromium, from a file, with the keyboard, and with JavaScript off."""

import csv
import os
import shutil

import numpy as np
import pytest

from guidon.studies.cells import cells_of, read_plan
from guidon.studies.report import write_report
from studies.written import PROMPTS, SETTINGS, SHAPE, write_study

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FRAMES, HEIGHT, WIDTH, _ = SHAPE
EVERY = len(SETTINGS) * PROMPTS


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: install Debian's package, or give its path as CHROMIUM")
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("study") / "results")
    write_report(folder)
    return folder


@pytest.fixture
def opened(chromium, folder):
    """The page, and at the end: nothing was asked for over a network, nothing went wrong, the policy held."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    faults, requests = [], []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    url = (folder / "report.html").as_uri()
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    yield page
    assert faults == []
    assert [r for r in requests if not r.startswith(("data:", "blob:")) and r.split("#")[0] != url] == []
    page.close()


def frames_of(page):
    return page.eval_on_selector_all("#grid canvas", "all => all.map(one => Number(one.dataset.frame))")


def pixels(page, selector):
    """RGB of a canvas as it is, (height, width, 3)."""
    values = page.eval_on_selector(
        selector,
        "c => [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]",
    )
    return np.array(values[2:], np.uint8).reshape(*values[:2], 4)[..., :3]


def canvas(slug, prompt=0):
    return f'tr[data-prompt="{prompt}"] td[data-slug="{slug}"] canvas'


def clip(folder, setting, prompt=0):
    return next(c.frames() for c in cells_of(read_plan(folder), folder) if (c.setting, c.prompt) == (setting, prompt))


def test_all_players_show_the_same_frame_after_a_hundred_steps(opened):
    for _ in range(100):
        opened.keyboard.press("ArrowRight")
    assert frames_of(opened) == [100 % FRAMES] * EVERY
    for _ in range(3):
        opened.keyboard.press("ArrowLeft")
    assert frames_of(opened) == [97 % FRAMES] * EVERY
    opened.keyboard.press("Home")
    assert frames_of(opened) == [0] * EVERY


def test_playing_moves_all_players_together(opened):
    opened.keyboard.press(" ")
    seen = set()
    for _ in range(12):
        opened.wait_for_timeout(60)
        shown = set(frames_of(opened))
        assert len(shown) == 1
        seen |= shown
    assert len(seen) > 2
    opened.keyboard.press(" ")
    stopped = frames_of(opened)
    opened.wait_for_timeout(400)
    assert frames_of(opened) == stopped


def test_a_players_pixels_are_the_frames(opened, folder):
    for step in range(FRAMES):
        for slug, setting in (("00-three", "three"), ("03-all-strong", "all, strong")):
            assert np.array_equal(pixels(opened, canvas(slug, 1)), clip(folder, setting, 1)[step])
        opened.keyboard.press("ArrowRight")


def test_differences_from_the_pinned_setting_and_slices_over_time(opened, folder):
    a, b = clip(folder, "three").astype(int), clip(folder, "all").astype(int)
    opened.select_option("#mode", "difference")
    assert np.array_equal(pixels(opened, canvas("01-all")), np.minimum(255, 4 * abs(b - a)[0]))
    assert not pixels(opened, canvas("00-three")).any()
    opened.select_option("#pin", "01-all")
    assert not pixels(opened, canvas("01-all")).any()
    opened.select_option("#mode", "slice")
    assert np.array_equal(pixels(opened, canvas("01-all")), b[:, HEIGHT // 2])
    opened.select_option("#mode", "clip")
    assert np.array_equal(pixels(opened, canvas("01-all")), b[0])


def test_two_settings_are_wiped_subtracted_and_sliced(opened, folder):
    a, b = clip(folder, "three").astype(int), clip(folder, "all").astype(int)
    opened.keyboard.press("ArrowRight")
    wiped = pixels(opened, "#wiped")
    half = WIDTH // 2
    assert np.array_equal(wiped[:, :half], a[1, :, :half])
    assert np.array_equal(wiped[:, half + 1 :], b[1, :, half + 1 :])
    assert np.array_equal(pixels(opened, "#differ"), np.minimum(255, 4 * abs(a - b)[1]))
    assert np.array_equal(pixels(opened, "#slice-b"), b[:, HEIGHT // 2])
    opened.fill("#wipe", "0")
    assert np.array_equal(pixels(opened, "#wiped"), b[1])


def test_it_works_by_keyboard_alone(opened):
    """Tab reaches every control in reach of a mouse, and Enter works them."""
    reached = set()
    while "begin" not in reached:
        opened.keyboard.press("Tab")
        name = opened.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        if name == "forth":
            opened.keyboard.press("Enter")
        assert len(reached) < 400
        reached.add(name)
    controls = {
        "play",
        "back",
        "forth",
        "scrub",
        "zoom",
        "pin",
        "mode",
        "only",
        "which",
        "a",
        "b",
        "wipe",
        "gain",
        "row",
    }
    assert controls <= reached
    assert frames_of(opened) == [1] * EVERY


def test_columns_sort_both_ways_with_what_is_undefined_last(opened):
    def column(number):
        return opened.eval_on_selector_all("#means tbody tr", f"rows => rows.map(r => r.cells[{number}].dataset.value)")

    heads = opened.eval_on_selector_all("#means thead th", "all => all.map(h => h.textContent)")
    drift = next(k for k, head in enumerate(heads) if head.startswith("colour_drift"))
    for direction in ("ascending", "descending"):
        opened.click(f"#means thead th:nth-child({drift + 1}) button")
        values = [float(v) for v in column(drift)]
        assert values == sorted(values, reverse=direction == "descending")
        assert opened.get_attribute(f"#means thead th:nth-child({drift + 1})", "aria-sort") == direction


def test_a_point_of_a_plot_opens_its_setting_beside_the_pinned_one(opened):
    opened.click('svg a[data-setting="all, strong"] circle >> nth=0')
    shown = opened.eval_on_selector_all("#grid thead th", "all => all.filter(h => !h.hidden).map(h => h.dataset.slug)")
    assert shown == [None, "00-three", "03-all-strong"]
    assert opened.input_value("#b") == "03-all-strong"


def test_a_vote_is_blind_and_saved_with_who_stood_left(opened, tmp_path):
    opened.click("#begin")
    text = opened.inner_text("#ballot")
    assert "three" not in text
    for key in "120120":
        opened.keyboard.press(key)
    assert opened.inner_text("#tally") == "6 votes; thank you"
    with opened.expect_download() as saved:
        opened.click("#export")
    saved.value.save_as(tmp_path / "votes.csv")
    rows = list(csv.DictReader((tmp_path / "votes.csv").open()))
    assert sorted(int(row["prompt"]) for row in rows) == list(range(PROMPTS))
    assert [row["vote"] for row in rows] == ["left", "right", "none"] * 2
    for row in rows:
        assert {row["left"], row["right"]} == {"00-three", "01-all"}
        assert row["winner"] == (row[row["vote"]] if row["vote"] != "none" else "")
        assert row["caption"] == f"prompt number {row['prompt']}"


def test_it_is_read_without_javascript(chromium, folder):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "report.html").as_uri())
    assert "three" in page.inner_text(".answer")
    assert page.locator("#means tbody tr").count() == len(SETTINGS)
    assert page.locator("#grid img:visible").count() == EVERY
    assert page.locator("svg:visible").count() > 3
    assert page.locator("#play:visible, #vote:visible, canvas:visible").count() == 0
    context.close()


def test_a_narrow_screen_needs_no_sideways_scrolling(chromium, folder):
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.goto((folder / "report.html").as_uri())
    page.wait_for_selector("body[data-ready]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
