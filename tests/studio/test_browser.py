"""The studio as its user has it: in Chromium, with the keyboard, at several widths, with nothing asked of other sites."""

import os
import shutil
from importlib import resources

import numpy as np
import pytest

from guidon.studio.engine import Studio
from guidon.studio.models import Models
from studio.test_server import free_port

pytestmark = pytest.mark.studio
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
WAIT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: install Debian's package, or give its path as CHROMIUM")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running(tiny_model, tmp_path_factory):
    pytest.importorskip("gradio")
    from guidon.studio.server import start

    studio = Studio(
        Models(["guidon-small", str(tiny_model)]), device="cpu", temporary=tmp_path_factory.mktemp("studio")
    )
    server = start(studio, port=free_port())
    yield server.url, studio, str(tiny_model)
    server.close()
    studio.close()


@pytest.fixture
def view(chromium, running):
    """A function that opens the page in a browser of its own. At the end: no fault, and nothing asked of other sites."""
    opened, url = [], running[0]

    def open_page(width=1280, height=900, scheme="light", context=None):
        own = context or chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page, faults, requests = own.new_page(), [], []
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.faults = faults
        opened.append((own, faults, requests))
        page.goto(url)
        page.wait_for_selector("body[data-ready='true']")
        page.keyboard.press("Home")  # clips play at first; this stops them
        return page

    yield open_page
    for own, faults, requests in opened:
        assert faults == []
        assert [r for r in requests if not r.startswith((url, "data:"))] == []
        own.close()


def quick(page):
    """The tiny model, and two steps for each of its two settings."""
    page.focus("#model")
    page.wait_for_selector("#model option:nth-child(5)", state="attached")
    page.select_option("#model", index=1)
    page.wait_for_selector("#about:has-text('Nothing was made with this model yet.')")
    for at in range(page.locator(".setting:not(.truth)").count()):
        panel = page.locator(f".setting[data-number='{at}'] details").nth(1)
        if panel.get_attribute("open") is None:
            panel.locator("summary").click()
        page.fill(f"#steps-{at}", "2")
        page.select_option(f"#timing-{at}", "constant")


def generate(page, seed):
    page.fill("#seed", str(seed))
    page.click("#generate")
    page.wait_for_selector(f"#about:has-text('Seed {seed},')")
    page.wait_for_selector("#working", state="hidden")
    page.wait_for_selector("body[data-ready='true']")


def pixels(page, selector):
    values = page.eval_on_selector(
        selector, "c => [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    return np.array(values[2:], np.uint8).reshape(*values[:2], 4)[..., :3]


def frames_shown(page):
    return page.eval_on_selector_all("#columns canvas", "all => all.map(one => Number(one.dataset.frame))")


def test_it_opens_with_a_finished_example_on_one_clock(view):
    page = view()
    assert page.locator("#columns canvas").count() == 4  # three settings and the truth
    for _ in range(5):
        page.click("#forth")
    assert frames_shown(page) == [5] * 4
    page.click("#back")
    assert frames_shown(page) == [4] * 4
    page.click("#play")
    page.wait_for_timeout(400)
    assert len(set(frames_shown(page))) == 1
    assert page.inner_text("#play") == "Pause"


def test_a_clip_is_made_and_shown_as_it_is(view, running):
    page = view()
    quick(page)
    page.uncheck("#on0-0")
    generate(page, 11)
    _, studio, _ = running
    job = next(j for j in studio.queue.jobs(_session(page)) if j.kind == "comparison")
    settings = job.result["settings"]
    assert job.about.asked.settings[0].channels[0] is False
    page.keyboard.press("Home")
    page.locator("#clips").focus()
    for step in range(3):
        for at, own in enumerate(settings[:2]):
            frames = studio.outputs.frames(own["clips"][0])
            assert np.array_equal(pixels(page, f"#columns canvas[data-number='{at}']"), frames[step])
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Home")
    a, b = (studio.outputs.frames(own["clips"][0]) for own in settings[:2])
    page.select_option("#gain", "1")
    assert np.array_equal(pixels(page, "#differ"), np.abs(a[0].astype(int) - b[0]))
    row = int(page.input_value("#row"))
    assert np.array_equal(pixels(page, "#slice-a"), a[:, row])
    wiped = pixels(page, "#wiped")
    assert np.array_equal(wiped[:, :32], a[0][:, :32])
    assert np.array_equal(wiped[:, 33:], b[0][:, 33:])


def _session(page):
    return next(one["value"] for one in page.context.cookies() if one["name"].startswith("guidon_"))


def test_an_edited_setting_says_that_its_clip_is_older(view):
    page = view()
    said = page.locator(".setting[data-number='1'] .said")
    assert "as asked" in said.inner_text()
    page.check("#on3-1")
    assert said.inner_text() == "changed since this clip: press Generate"
    page.uncheck("#on3-1")
    assert "as asked" in said.inner_text()
    page.fill("#scale0-1", "5")
    page.keyboard.press("Tab")
    assert [page.input_value(f"#scale{k}-1") for k in range(4)] == ["5"] * 4  # one scale for all
    page.fill("#scale0-1", "")
    page.keyboard.press("Tab")
    assert page.input_value("#scale0-1") == "5"  # an empty field is no scale


def test_a_run_is_cancelled_and_the_page_goes_on(view):
    page = view()
    quick(page)
    page.fill("#steps-0", "1000")
    page.click("#generate")
    page.wait_for_selector("#status:has-text('denoising')")
    remove = page.locator("button[aria-label='Remove setting A']")
    assert remove.is_disabled()  # the clips that come belong to the columns
    page.click("#cancel")
    page.wait_for_selector("#working", state="hidden")
    assert "cancelled" in page.inner_text("#history li")
    assert remove.is_enabled()
    page.fill("#steps-0", "2")
    generate(page, 12)


def test_no_earlier_run_is_opened_while_one_works(view):
    page = view()
    quick(page)
    generate(page, 20)
    page.fill("#steps-0", "1000")
    page.click("#generate")
    earlier = page.locator("#history li:last-child button").first
    assert earlier.is_disabled()  # at once: its settings would take the columns of the clips that come
    page.wait_for_selector("#status:has-text('denoising')")
    assert earlier.is_disabled()
    page.click("#cancel")
    page.wait_for_selector("#working", state="hidden")
    earlier.click()
    page.wait_for_selector("#about:has-text('Seed 20,')")
    assert page.input_value("#steps-0") == "2"


def test_a_reload_keeps_the_runs_of_the_session_and_goes_on_waiting(view, running):
    page = view()
    quick(page)
    generate(page, 13)
    page.fill("#steps-0", "300")
    page.fill("#seed", "14")
    page.click("#generate")
    page.wait_for_selector("#status:has-text('denoising')")
    page.reload()
    page.wait_for_selector("#about:has-text('Seed 14,')")
    page.wait_for_selector("#working", state="hidden")
    assert page.locator("#history li").count() == 2
    page.select_option("#model", index=0)
    page.locator("#history li button").nth(2).click()
    page.wait_for_selector("#about:has-text('Seed 13,')")
    assert page.input_value("#seed") == "13"
    assert page.input_value("#model") == running[2]  # whatever was chosen since


def test_what_is_refused_is_said_in_one_line_and_can_be_mended(view):
    page = view()
    page.fill("#prompt", "a horse")
    page.click("#generate")
    page.wait_for_selector("#error:not([hidden])")
    assert "horse" in page.inner_text("#error")
    page.faults.clear()  # the browser itself notes the refusal
    quick(page)
    page.click("#vocabulary summary")
    page.fill("#prompt", "a red circle moves left on a white background")
    page.click("#words .chip:text-is('blue')")
    assert page.input_value("#prompt") == "a blue circle moves left on a white background"
    generate(page, 15)
    assert page.is_hidden("#error")


def test_everything_is_carried_on(view):
    page = view()
    quick(page)
    generate(page, 16)
    page.select_option("#whose", "1")
    assert "--cfg-channels all --seed 16 --steps 2" in page.inner_text("#command")
    assert "seed=16" in page.inner_text("#python")
    assert '"cfg_channels": "all"' in page.inner_text("#manifest")
    for name in ("mp4", "gif", "webp", "png", "manifest"):
        with page.expect_download() as download:
            page.click(f"#downloads a:text-is('{name}')")
        assert download.value.path().stat().st_size > 100
    page.click("button:text-is('What the decoder shows of it') >> nth=1")
    page.wait_for_selector("#traces table")
    assert "structure" in page.inner_text("#traces table")


def test_the_decoder_is_asked_about_the_setting_of_the_card_after_another_one_was_removed(view):
    page = view()
    quick(page)
    generate(page, 19)
    page.click("button[aria-label='Remove setting A']")
    assert page.locator("#traces .card").count() == page.locator(".setting:not(.truth)").count()
    with page.expect_request("**/api/spectrum") as asked:
        page.click("button:text-is('What the decoder shows of it') >> nth=0")
    assert asked.value.post_data_json["number"] == 1
    page.wait_for_selector("#traces table")


def test_a_comparison_becomes_a_study_whose_report_opens_in_the_page(view):
    page = view()
    quick(page)
    generate(page, 17)
    page.fill("#study-prompts", "2")
    page.click("#study-yaml")
    page.wait_for_selector("#yaml:not([hidden])")
    assert "primary:" in page.inner_text("#yaml")
    page.click("#study button[type=submit]")
    page.wait_for_selector("#report:not([hidden])")
    report = page.frame_locator("#report-frame")
    assert "From the studio" in report.locator("h1").inner_text()
    report.locator("body[data-ready='true']").wait_for()
    with page.context.expect_page() as other:
        page.click("#report-link")
    other.value.wait_for_selector("body[data-ready='true']")


def test_the_keyboard_alone_reaches_and_does_everything(view):
    page = view()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "clips"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert frames_shown(page) == [2] * 4
    page.keyboard.press(" ")
    assert page.inner_text("#play") == "Pause"
    page.keyboard.press("Home")
    reached = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        found = page.evaluate("document.activeElement.id || document.activeElement.textContent.slice(0, 30)")
        visible = page.evaluate(
            "(e => e === document.body || (e.getBoundingClientRect().width > 0 && getComputedStyle(e).outlineStyle !== 'none'"
            " || e.tagName === 'IFRAME'))(document.activeElement)"
        )
        assert visible, found  # where the focus is can be seen
        reached.add(found)
    assert {
        "on0-0",
        "scale0-0",
        "on3-2",
        "wipe",
        "a",
        "b",
        "whose",
        "study-yaml",
        "prompt",
        "seed",
        "generate",
        "model",
    } <= reached
    quick(page)
    page.fill("#seed", "18")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#about:has-text('Seed 18,')")
    page.wait_for_selector("#working", state="hidden")


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_can_be_read_by_everyone(view, width, scheme):
    page = view(width=width, scheme=scheme)
    quick_open = page.locator("details > summary")
    for number in range(quick_open.count()):
        if quick_open.nth(number).locator("..").get_attribute("open") is None:
            quick_open.nth(number).click()
    page.wait_for_selector("#models-all li")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pytest.importorskip("axe_playwright_python")
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    page.evaluate(axe)
    answer = page.evaluate("axe.run()")
    assert len(answer["passes"]) > 20
    found = answer["violations"]
    serious = [
        (one["id"], [node["html"][:120] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in ("serious", "critical", "moderate")
    ]
    assert serious == []
