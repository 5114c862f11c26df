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
    page.wait_for_selector("body[data-ready='true']")
    page.keyboard.press("Home")  # clips play at first; this stops them at their first frame
    yield page
    assert faults == []
    assert [r for r in requests if not r.startswith(("data:", "blob:")) and r.split("#")[0] != url] == []
    page.close()


def frames_of(page):
    return page.eval_on_selector_all("#grid canvas", "all => all.map(one => Number(one.dataset.frame))")


def pixels(page, selector):
    """RGB of a canvas once its clip is loaded, (height, width, 3)."""
    page.wait_for_selector("body[data-ready='true']")
    values = page.eval_on_selector(
        selector,
        "c => [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]",
    )
    return np.array(values[2:], np.uint8).reshape(*values[:2], 4)[..., :3]


def row_of(page, prompt=0):
    return int(page.get_attribute(f"#p-{prompt}", "data-row"))


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
    assert opened.inner_text("#play") == "Play"
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
    assert np.array_equal(pixels(opened, canvas("01-all")), b[:, row_of(opened)])
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
    row = row_of(opened)
    assert opened.input_value("#row") == str(row)
    assert np.array_equal(pixels(opened, "#slice-a"), a[:, row])
    assert np.array_equal(pixels(opened, "#slice-b"), b[:, row])
    opened.fill("#wipe", "0")
    assert np.array_equal(pixels(opened, "#wiped"), b[1])
    opened.select_option("#which", "3.0")
    assert opened.input_value("#row") == str(row_of(opened, 3))


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
        "goto",
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
    drift = next(k for k, head in enumerate(heads) if head.startswith("colour drift"))
    for direction in ("ascending", "descending"):
        opened.click(f"#means thead th:nth-child({drift + 1}) button")
        values = [float(v) for v in column(drift)]
        assert values == sorted(values, reverse=direction == "descending")
        assert opened.get_attribute(f"#means thead th:nth-child({drift + 1})", "aria-sort") == direction


def test_a_point_of_a_plot_opens_its_setting_beside_the_pinned_one(opened):
    opened.click('svg a[data-slug="03-all-strong"] circle >> nth=0')
    shown = opened.eval_on_selector_all("#grid thead th", "all => all.filter(h => !h.hidden).map(h => h.dataset.slug)")
    assert shown == [None, "00-three", "03-all-strong"]
    assert opened.input_value("#b") == "03-all-strong"


def test_clips_keep_the_order_of_the_settings_until_one_is_compared(chromium, tmp_path):
    folder = write_study(tmp_path / "results", names={"three": "all", "all": "three"})  # the baseline is the second
    write_report(folder, videos=False)
    page = chromium.new_page()
    page.goto((folder / "report.html").as_uri())
    page.wait_for_selector("body[data-ready='true']")

    def order():
        slugs = "[...row.querySelectorAll(':scope > [data-slug]')].map(cell => cell.dataset.slug.slice(0, 2))"
        found = page.eval_on_selector_all("#grid tr", f"rows => rows.map(row => {slugs})")
        assert all(row == found[0] for row in found)
        return found[0]

    assert order() == ["00", "01", "02", "03"]
    page.select_option("#mode", "difference")
    assert order() == ["01", "00", "02", "03"]
    page.select_option("#mode", "clip")
    assert order() == ["00", "01", "02", "03"]
    page.select_option("#pin", "02-three-strong")
    assert order() == ["02", "00", "01", "03"]
    page.close()


def test_a_vote_is_blind_and_saved_with_who_stood_left(opened, tmp_path):
    opened.click("#begin")
    text = opened.inner_text("#ballot")
    assert "three" not in text
    assert "three" not in opened.inner_text("body").replace(opened.inner_text("h1"), "")
    for key in "120120":
        opened.keyboard.press(key)
    assert opened.locator("#clips:visible, #ballot:visible").count() == 1  # the page is back, the ballot is over
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
    # The tally and the names are on the page too.
    won = {slug: sum(row["winner"] == slug for row in rows) for slug in ("00-three", "01-all")}
    tally = opened.inner_text("#tally")
    assert tally.startswith(
        f"6 votes: {won['00-three']} for A: three, {won['01-all']} for B: all, 2 without a difference. A coin would "
    )
    names = {"00-three": "A: three", "01-all": "B: all", "": "no difference"}
    shown = opened.eval_on_selector_all("#votes tr", "all => all.map(r => [...r.cells].map(c => c.textContent))")
    assert shown == [[row["caption"], names[row["left"]], names[row["right"]], names[row["winner"]]] for row in rows]
    assert opened.locator("#begin:visible").inner_text() == "Vote again"


def test_a_coin_is_the_sign_test(opened):
    from scipy.stats import binomtest

    for a, b in ((0, 6), (6, 0), (3, 4), (5, 5), (40, 60)):
        assert opened.evaluate(f"chance({a}, {b})") == pytest.approx(binomtest(a, a + b).pvalue)
    assert opened.evaluate("chance(500, 700)") == pytest.approx(binomtest(500, 1200).pvalue)


def test_clips_play_at_first_unless_less_motion_is_asked_for(chromium, folder):
    for motion, playing in (("no-preference", True), ("reduce", False)):
        context = chromium.new_context(reduced_motion=motion)
        page = context.new_page()
        page.goto((folder / "report.html").as_uri())
        page.wait_for_selector("body[data-ready='true']")
        seen = set()
        for _ in range(20 if playing else 5):
            page.wait_for_timeout(60)
            seen |= set(frames_of(page))
        assert (len(seen) > 1) == playing
        assert page.inner_text("#play") == ("Pause" if playing else "Play")
        context.close()


def test_it_is_read_without_javascript(chromium, folder):
    for motion, animation in (("no-preference", "strip"), ("reduce", "none")):
        context = chromium.new_context(java_script_enabled=False, reduced_motion=motion)
        page = context.new_page()
        page.goto((folder / "report.html").as_uri())
        assert "three" in page.inner_text(".answer")
        assert page.locator("#means tbody tr").count() == len(SETTINGS)
        assert page.locator("#grid img:visible").count() == EVERY
        assert page.locator("svg:visible").count() > 3
        assert page.locator("#play:visible, #vote:visible, canvas:visible").count() == 0
        strip = page.locator("#grid img").first
        assert strip.evaluate("i => getComputedStyle(i).animationName") == animation
        box = strip.bounding_box()
        assert box["width"] == box["height"]  # one frame of the strip is seen
        context.close()


MEASURE = """() => {
  const faults = [];
  const box = (one) => one.getBoundingClientRect();
  const text = (one) => one.textContent.trim().slice(0, 40);
  const cross = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const apart = (all) => all.forEach((one, k) => all.slice(k + 1).forEach((two) => {
    if (cross(box(one), box(two))) faults.push(`${text(one)} overlaps ${text(two)}`);
  }));
  for (const plot of document.querySelectorAll("svg")) {
    const labels = [...plot.querySelectorAll("text")], room = box(plot.closest("figure"));
    apart(labels);
    for (const label of labels) {
      const own = box(label);
      if (own.left < room.left - 1 || own.right > room.right + 1) faults.push(`${text(label)} is outside its figure`);
    }
  }
  for (const row of document.querySelectorAll(".forest li, .axis-title, .energy li, .pair, dl.made")) apart([...row.children]);
  for (const one of document.querySelectorAll("h1, h2, p, li, dd, dt, figcaption, summary, .pair")) {
    if (one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 0) faults.push(`${text(one)} is cut`);
  }
  let smallest = 99;
  for (const one of document.querySelectorAll("body *")) {
    const words = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (words && one.checkVisibility() && !["SCRIPT", "OPTION"].includes(one.tagName)) {
      smallest = Math.min(smallest, parseFloat(getComputedStyle(one).fontSize));
    }
  }
  const heights = [...document.querySelectorAll("#means tbody tr")].map((row) => Math.round(box(row).height));
  return { faults, smallest, heights: [...new Set(heights)], width: document.documentElement.scrollWidth };
}"""


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A page of many settings, some of long names, and some with equal values."""
    names = ["a", "a name that is rather long, as those that a grid makes of many choices often are: timing interval"]
    settings = {
        names[k] if k < 2 else f"scale {k}, channels {3 if k % 2 else 'all'}": ("all", float(k + 1)) for k in range(14)
    }
    folder = write_study(
        tmp_path_factory.mktemp("crowded") / "r",
        settings=settings,
        names=dict(zip(("three", "all"), names, strict=True)),
    )
    return write_report(folder, videos=False)[0]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_label_overlaps_another_or_is_cut_and_all_can_be_read(chromium, folder, crowded, width, scheme):
    for path in (folder / "report.html", crowded):
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready='true']")
        page.eval_on_selector_all("#differences details", "all => all.forEach((one) => (one.open = true))")
        found = page.evaluate(MEASURE)
        assert found["faults"] == []
        assert found["smallest"] >= 12
        assert len(found["heights"]) == 1
        assert found["width"] <= width
        page.close()


def test_a_table_that_is_wider_than_the_screen_says_so(chromium, folder):
    page = chromium.new_page(viewport={"width": 390, "height": 900})
    page.goto((folder / "report.html").as_uri())
    page.wait_for_selector("body[data-ready='true']")
    box = page.locator(".table:has(#means)")
    assert box.locator(".hint").is_visible()
    assert "more" in box.get_attribute("class")
    box.locator(".scroll").evaluate("one => (one.scrollLeft = one.scrollWidth)")
    page.wait_for_function("!document.querySelector('.table:has(#means)').classList.contains('more')")
    page.set_viewport_size({"width": 3000, "height": 900})
    page.evaluate("document.body.style.maxWidth = 'none'")
    page.evaluate("hint()")
    assert not box.locator(".hint").is_visible()
    page.close()


def test_a_narrow_screen_needs_no_sideways_scrolling(chromium, folder):
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.goto((folder / "report.html").as_uri())
    page.wait_for_selector("body[data-ready='true']")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
