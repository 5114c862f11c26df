"""The page: what it holds, what it lets in, and which clips fit."""

import base64
import hashlib
import html
import io
import json
import os
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from guidon import cli
from guidon.core.errors import InputError
from guidon.core.version import VERSION
from guidon.metrics.bench import find_bench
from guidon.metrics.world import METRICS
from guidon.studies.answer import answer
from guidon.studies.cells import CONTENT, cells_of, read_plan
from guidon.studies.report import page as page_module
from guidon.studies.report import write_report
from guidon.studies.report.clips import object_row, small_strip
from guidon.studies.report.content import _say_choices, make_content
from guidon.studies.report.tables import extremes, summarise
from guidon.studies.results import results
from guidon.studies.words import write_direction
from studies.written import PROMPTS, SETTINGS, frozen, write_study


def rewrite(cell, values):
    """Give a cell other metrics, and their hash."""
    (cell.folder / "metrics.json").write_text(json.dumps(values))
    rehash(cell)


def retrace(cell, values):
    """Give a cell a trace of these steps (steps, channels), and its hash."""
    np.savez(cell.folder / "trace.npz", difference=values, scale=np.ones_like(values), timestep=np.arange(len(values)))
    rehash(cell)


def rehash(cell):
    hashes = {name: hashlib.sha256((cell.folder / name).read_bytes()).hexdigest() for name in CONTENT}
    (cell.folder / "hashes.json").write_text(json.dumps(hashes))


def test_the_page_lets_nothing_in_and_runs_its_own_script_and_style_alone(page):
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.search(r"(src|href)=\"(?!data:|#|videos/)", page)
    assert not re.search(r"\s(style|on[a-z]+)=\"", page)


def test_what_users_write_is_escaped(tmp_path):
    folder = write_study(tmp_path / "results", captions=[f'<img src=x onerror="alert({k})">' for k in range(PROMPTS)])
    page = write_report(folder, videos=False)[0].read_text()
    assert "A &lt;script&gt;title&lt;/script&gt;" in page
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_every_clip_is_there_with_what_makes_it_again(study, page):
    for cell in cells_of(read_plan(study), study):
        picture = base64.b64encode((cell.folder / "clip.png").read_bytes()).decode()
        assert page.count(picture) == 1
        assert hashlib.sha256((cell.folder / "clip.png").read_bytes()).hexdigest() in page
        assert (study / "videos" / cell.folder.parent.name / f"{cell.folder.name}.mp4").stat().st_size > 0
    assert 'href="videos/00-three/0000-0.mp4"' in page


def shown(page):
    """The prompts of a page's clips: those that are exact, and those that are small."""
    found = re.findall(r'data-prompt="(\d+)" data-sample="0" data-row="\d+" data-exact="([01])"', page)
    return [int(p) for p, exact in found if exact == "1"], [int(p) for p, exact in found if exact == "0"]


def test_a_large_study_shows_all_prompts_small_and_its_extremes_exactly(study, page, tmp_path):
    assert shown(page) == (list(range(PROMPTS)), [])
    limit = len(page) / 1e6 - 0.04
    part = write_report(study, tmp_path / "small.html", max_mb=limit)[0].read_text()
    assert len(part.encode()) <= limit * 1e6
    exact, small = shown(part)
    assert sorted(exact + small) == list(range(PROMPTS))
    assert f"Clips of all {PROMPTS} prompts" in part
    assert part.count('class="strip"') == PROMPTS * len(SETTINGS) + 2 * 3
    gains, losses = extremes(read_plan(study), results(read_plan(study), study))
    assert 0 < len(exact) < PROMPTS
    assert set(exact) & set(gains)
    assert set(exact) <= set(gains) | set(losses)
    assert part.count("SHA-256 of clip.png") == len(exact) * len(SETTINGS)


def test_no_gains_are_listed_where_none_of_their_prompts_fits(study, page):
    plan, found = read_plan(study), results(read_plan(study), study)
    content = make_content(plan, found, answer(plan, found), summarise(plan, found), cells_of(plan, study))
    content |= {"stands_in": False, "object_rows": dict.fromkeys(range(PROMPTS), 0), "examples": []}
    clips = {
        0: [
            SimpleNamespace(cell=cell, exact=False, picture="", value="", video="")
            for cell in cells_of(plan, study)[:4]
        ]
    }
    part = page_module._render(content | {"gains": [2], "losses": [0]}, clips)
    assert "Largest losses: <a" in part
    assert "Largest gains" not in part
    assert "Largest gains" in page


def test_the_same_results_give_the_same_page(study, page):
    assert write_report(study)[0].read_text() == page


def test_a_grid_of_scales_is_a_table_with_stronger_colours_for_larger_values(page, tmp_path):
    grid = re.search(r'<table id="scales">.*?</table>', page, re.S)[0]
    assert re.findall(r'<td class="level(\d)">([^<]*)</td>', grid) == [
        ("0", "33%"),
        ("8", "67%"),
        ("8", "67%"),
        ("8", "67%"),
    ]
    folder = write_study(tmp_path / "results", settings={name: SETTINGS[name] for name in ("three", "all")})
    assert "over guided channels and guidance scale" not in write_report(folder, videos=False)[0].read_text()


@pytest.mark.filterwarnings("error")
def test_a_setting_without_a_value_has_an_empty_field_of_the_grid(tmp_path):
    folder = write_study(tmp_path / "results")
    for cell in cells_of(read_plan(folder), folder):
        if cell.setting == "three, strong":
            rewrite(cell, dict.fromkeys(cell.metrics(), 0.5) | {"joint": None})
    grid = re.search(r'<table id="scales">.*?</table>', write_report(folder, videos=False)[0].read_text(), re.S)[0]
    assert re.findall(r'<td class="level(\d)">([^<]*)</td>', grid) == [
        ("0", "33%"),
        ("0", ""),
        ("8", "67%"),
        ("8", "67%"),
    ]


def test_what_does_not_differ_has_no_plot_and_no_winner(tmp_path):
    """Where all settings are equal there is no forest, no scatter plot, no grid, and no largest gain."""
    folder = write_study(tmp_path / "results")
    for cell in cells_of(read_plan(folder), folder):
        rewrite(cell, dict.fromkeys(cell.metrics(), 0.0))
    page = write_report(folder, videos=False)[0].read_text()
    assert "No difference found between three and all: 0% and 0% of clips show all that was asked." in page
    assert not re.search(
        r'<figure class="(forest|front)"|id="scales"|Largest (gains|losses)|class="(better|worse)"', page
    )
    assert "No setting differs from the baseline on any prompt in: all as asked, one object" in page
    assert "are equal in all as asked on every prompt" in page


def test_what_cannot_be_compared_is_not_called_equal(tmp_path):
    folder = write_study(tmp_path / "results")
    write_report(folder, videos=False)
    assert "are equal in all as asked on every prompt" not in (folder / "report.html").read_text()
    for cell in cells_of(read_plan(folder), folder):
        rewrite(cell, dict.fromkeys(cell.metrics(), 0.5) | {"joint": None})
    page = write_report(folder, videos=False)[0].read_text()
    assert "fewer than two prompts have a value of all as asked in both" in page
    assert "are equal in all as asked on every prompt" not in page


def test_every_metric_is_explained_where_it_stands(page):
    plan_metrics = [METRICS[name] for name in find_bench("world").shown]
    legend = html.unescape(re.search(r'<details class="legend" open>.*?</details>', page, re.S)[0])
    heads = html.unescape(re.search(r'<table id="means".*?</thead>', page, re.S)[0])
    for metric in plan_metrics:
        assert f"{metric.label} <code>{metric.name}</code>" in legend
        assert metric.meaning in legend
        assert metric.meaning in heads
        assert f"<b>{write_direction(metric)}</b>" in legend


def test_settings_are_named_in_words_and_by_a_letter(tmp_path):
    settings = {"channels 1": ("1", 2.0), "channels only:1": ("only:1", 2.0)}
    names = {"three": "channels 1", "all": "channels only:1"}
    page = write_report(write_study(tmp_path / "r", settings=settings, names=names), videos=False)[0].read_text()
    assert 'A</b> <a href="#clips" data-slug="00-channels-1">first channel</a>' in page
    assert 'B</b> <a href="#clips" data-slug="01-channels-only-1">channel 1 alone</a>' in page
    assert not re.search(r"(?<!--cfg-)channels only:1", page)


def test_a_setting_without_guidance_says_its_other_choices():
    own = frozen("3", 1.0) | {"eta": 0.5, "dtype": "bf16", "decode_dtype": "bf16", "distilled": True, "reuse": 2}
    said = _say_choices(own, {*own})
    assert said == "no guidance, sampler ddim, 5 steps, drawn by the distilled network, eta 0.5, bf16, decoded in bf16"


def test_what_only_guidance_has_is_not_said_of_a_setting_without_it(page, tmp_path):
    assert re.search(r"The same in all: guided at every step, sampler ddim, 5 steps\.", page)
    settings = {"three": ("3", 2.0), "all": ("all", 2.0), "none": ("all", 1.0)}
    mixed = write_report(write_study(tmp_path / "r", settings=settings), videos=False)[0].read_text()
    assert "The same in all: sampler ddim, 5 steps. The same in all guided settings: guided at every step." in mixed


def test_clips_whose_guidance_ends_early_add_nothing_to_the_later_steps(tmp_path):
    folder = write_study(tmp_path / "s", settings={"three": ("3", 2.0), "all": ("all", 2.0, 0.99)})
    steps = [3, 5, 2, 5, 1, 4]
    cells = [cell for cell in cells_of(read_plan(folder), folder) if cell.setting == "all"]
    for cell, count in zip(cells, steps, strict=True):
        retrace(cell, np.full((count, 4), 6.0))
    page = write_report(folder)[0].read_text()
    shown = re.findall(r'aria-label="channel 0">(.*?)</svg><span>(.*?)</span>', page)
    assert re.findall("<title>(.*?)</title>", shown[1][0]) == ["0: 6", "1: 5", "2: 4", "3: 3", "4: 2"]
    assert shown[1][1] == "4"
    retrace(cells[0], np.full((3, 3), 6.0))
    with pytest.raises(InputError, match="has another shape than that of the setting's first clip"):
        write_report(folder)
    retrace(cells[0], np.full((3, 4), 6.0))
    three = next(cell for cell in cells_of(read_plan(folder), folder) if cell.setting == "three")
    retrace(three, np.full((4, 4), 6.0))
    with pytest.raises(InputError, match="has another shape"):
        write_report(folder)


def test_grey_says_for_how_many_comparisons_it_is_corrected(page):
    count = 3 * (len(METRICS) - 1) - 1  # three settings against the baseline; law_residual has no value
    assert f"grey is not certain after correcting for {count} comparisons. The intervals are not corrected" in page
    assert "[0, 0]" not in page


def test_it_says_which_weights_and_version_it_is_of(study, page):
    assert f"denoiser <code>{read_plan(study).weights['denoiser']}</code>" in page
    assert f"Guidon {VERSION} for this page" in page
    assert f"<code>{read_plan(study).hash}</code>" in page


def test_slices_are_on_the_row_where_the_object_is():
    clip = np.full((5, 16, 16, 3), 200, np.uint8)
    clip[:, 11:14, 3:6] = 20
    clip[:, 12, 2:7] = 20
    assert object_row([clip]) == 12
    assert object_row([np.full_like(clip, 7), clip]) == 12  # the same row for a setting whose clip shows nothing


def test_a_small_strip_has_every_frame_at_the_same_width():
    strip = Image.open(io.BytesIO(small_strip(np.zeros((7, 50, 100, 3), np.uint8), 64)))
    assert strip.size == (7 * 64, 32)
    long = Image.open(io.BytesIO(small_strip(np.zeros((1000, 16, 16, 3), np.uint8), 64)))
    assert long.size == (1000 * 16, 16)


def test_what_cannot_be_reported_is_refused(study, tmp_path, capsys):
    def refused(*words):
        with pytest.raises(SystemExit) as stop:
            cli.main(["study", "report", *map(str, words)])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    assert "holds no plan.json" in refused(tmp_path)
    assert "give a larger --max-mb" in refused(study, "--max-mb", "0.1", "--out", tmp_path / "r.html")
    (tmp_path / "file").write_text("")
    assert "choose another --out or make room" in refused(study, "--out", tmp_path / "file" / "r.html")
    unfinished = write_study(tmp_path / "unfinished")
    (unfinished / "cells" / "00-three" / "0000-0" / "clip.png").write_bytes(b"")
    assert "1 of 24 cells" in refused(unfinished)
    with pytest.raises(InputError, match="missing or damaged"):
        write_report(unfinished)
    taken = write_study(tmp_path / "taken", prompts=2)
    (taken / "summary.csv").mkdir()
    assert "summary.csv cannot be written (Is a directory): report a copy" in refused(
        taken, "--out", tmp_path / "r.html"
    )


def test_a_large_study_has_the_mp4s_of_its_first_prompts_or_of_all_that_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "VIDEOS", 9)  # of 24: two prompts of four settings
    folder, said = write_study(tmp_path / "r"), []

    def linked(**options):
        text = write_report(folder, say=said.append, **options)[0].read_text()
        links = {folder / path for path in re.findall(r'href="(videos/[^"]+)"', text)}
        assert links <= set(folder.glob("videos/*/*.mp4"))
        return links

    assert len(linked()) == len([*folder.glob("videos/*/*.mp4")]) == 8
    assert "MP4s are of 2 of 6 prompts" in said[-1]
    assert len(linked(videos=True)) == 24
    assert "MP4s" not in said[-1]
    assert len(linked()) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_a_folder_whose_name_is_no_text_is_linked_by_its_bytes(tmp_path):
    folder = write_study(
        tmp_path / os.fsdecode(b"bad\xff"), prompts=1, settings={"three": ("3", 2.0), "all": ("all", 2.0)}
    )
    (page, *_) = write_report(folder, tmp_path / "page.html")
    assert 'href="bad%FF/videos/00-three/0000-0.mp4"' in page.read_text()


def test_a_page_that_goes_elsewhere_links_no_videos(tmp_path):
    folder = write_study(tmp_path / "results", prompts=2)
    paths = write_report(folder, tmp_path / "page.html", videos=False)
    assert not (folder / "videos").exists()
    assert ".mp4" not in paths[0].read_text()


ODD = [
    "<script>alert(1)</script>", "</script><!--", "<!-- ", "]]>", '" onload="alert(1)', "' onload='alert(1)", "{{ 7 * 7 }}",
    "{% include 'x' %}", "javascript:alert(1)", "a\u202eb", "a\u0000b\u0007\u001b[31m", "a\nb\tc", "&lt;b&gt; &amp;", "%s %d {0}",
    "../../../etc/passwd", "long " * 2000, "",
]  # fmt: skip


class Tags(HTMLParser):
    """Counts a page's tags, and keeps its attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = Counter(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_comment(self, data):
        self.tags["comment"] += 1


TOGETHER = len(SETTINGS)  # odd texts on one page, as captions and as names of settings


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A page of the size of those with odd texts."""
    captions = [f"prompt {k}" for k in range(TOGETHER)]
    folder = write_study(tmp_path_factory.mktemp("plain") / "results", prompts=TOGETHER, captions=captions)
    return Tags(write_report(folder, videos=False)[0].read_text())


@pytest.mark.parametrize("first", range(0, len(ODD), TOGETHER))
def test_odd_texts_add_no_tag_and_no_attribute_that_acts(tmp_path, plain, first):
    texts = [ODD[(first + k) % len(ODD)] for k in range(TOGETHER)]
    settings = {f"{text} {k}": chosen for k, (text, chosen) in enumerate(zip(texts, SETTINGS.values(), strict=True))}
    names = dict(zip(("three", "all"), settings, strict=False))
    folder = write_study(tmp_path / "odd", prompts=TOGETHER, captions=texts, settings=settings, names=names)
    odd = Tags(write_report(folder, videos=False)[0].read_text())
    assert odd.tags == plain.tags
    assert {name for name, _ in odd.attributes} == {name for name, _ in plain.attributes}
    links = [value for name, value in odd.attributes if name in ("href", "src", "action", "formaction")]
    assert all(re.match(r"(data:image/(png|webp);base64,|#)", value) for value in links)


@pytest.mark.parametrize("value", [1e308, 5e-324, None])
def test_extreme_values_make_a_page(tmp_path, value):
    folder = write_study(tmp_path / "results", prompts=3)
    for cell in cells_of(read_plan(folder), folder):
        if cell.prompt != 1:
            rewrite(cell, dict.fromkeys(cell.metrics(), value))
    assert "</html>" in write_report(folder, videos=False)[0].read_text()


def test_the_first_clips_are_of_the_sample_that_differs_most(tmp_path):
    folder = write_study(tmp_path / "results")
    plan = read_plan(folder)
    metric, both = plan.primary.metric, (plan.primary.baseline, plan.primary.against)
    for cell in cells_of(plan, folder):  # one prompt differs, and on its last sample alone
        last = (cell.prompt, cell.sample, cell.setting) == (PROMPTS - 1, plan.seeds - 1, both[1])
        rewrite(cell, json.loads((cell.folder / "metrics.json").read_text()) | {metric: 0.0 if last else 1.0})
    page = write_report(folder, videos=False)[0].read_text()
    first = re.search(r'<div class="pair">(.*?)</small></div></div>', page, re.S)[1]
    assert plan.captions[PROMPTS - 1] in html.unescape(first)
    assert re.findall(r": (yes|no)", first) == ["yes", "no"]
