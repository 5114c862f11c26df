"""The page: what it holds, what it lets in, and which clips fit."""

import base64
import hashlib
import html
import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from guidon import cli
from guidon.core.errors import InputError
from guidon.studies.cells import CONTENT, cells_of, read_plan
from guidon.studies.report import write_report
from guidon.studies.report.tables import extremes
from guidon.studies.results import results
from studies.written import PROMPTS, SETTINGS, write_study


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
    page = write_report(folder)[0].read_text()
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


def test_a_large_study_shows_whole_prompts_of_its_extremes_first(study, page, tmp_path):
    small = write_report(study, tmp_path / "small.html", max_mb=len(page) / 1e6 * 0.75)[0].read_text()
    assert len(small.encode()) <= len(page.encode()) * 0.75
    shown = [int(p) for p in re.findall(r'<tr id="p-(\d+)"', small)]
    assert 0 < len(shown) < PROMPTS
    assert f"{len(shown)} of {PROMPTS} prompts are in this file" in small
    assert small.count("data:image/png") == len(shown) * len(SETTINGS)
    gains, losses = extremes(read_plan(study), results(read_plan(study), study))
    turns = [p for pair in zip(gains, losses, strict=False) for p in pair]
    assert set(shown[:4]) <= set(turns)
    assert set(shown) & set(gains)
    assert set(shown) & set(losses)


def test_the_same_results_give_the_same_page(study, page):
    assert write_report(study)[0].read_text() == page


def test_a_grid_of_scales_is_a_heat_map(page, tmp_path):
    assert "joint over guided channels and guidance scale" in page
    folder = write_study(tmp_path / "results", settings={name: SETTINGS[name] for name in ("three", "all")})
    assert "over guided channels and guidance scale" not in write_report(folder)[0].read_text()


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
    assert "cannot be written" in refused(study, "--out", tmp_path / "file" / "r.html")
    unfinished = write_study(tmp_path / "unfinished")
    (unfinished / "cells" / "00-three" / "0000-0" / "clip.png").write_bytes(b"")
    assert "1 of 24 cells" in refused(unfinished)
    with pytest.raises(InputError, match="missing or damaged"):
        write_report(unfinished)


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


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A page of the size of those with odd texts."""
    captions = [f"prompt {k}" for k in range(len(ODD))]
    folder = write_study(tmp_path_factory.mktemp("plain") / "results", prompts=len(ODD), captions=captions)
    return Tags(write_report(folder, videos=False)[0].read_text())


@pytest.mark.parametrize("first", range(0, len(ODD), len(SETTINGS)))
def test_odd_texts_add_no_tag_and_no_attribute_that_acts(tmp_path, plain, first):
    settings = {f"{ODD[(first + k) % len(ODD)]} {k}": chosen for k, chosen in enumerate(SETTINGS.values())}
    names = dict(zip(("three", "all"), settings, strict=False))
    folder = write_study(tmp_path / "odd", prompts=len(ODD), captions=ODD, settings=settings, names=names)
    odd = Tags(write_report(folder, videos=False)[0].read_text())
    assert odd.tags == plain.tags
    assert {name for name, _ in odd.attributes} == {name for name, _ in plain.attributes}
    links = [value for name, value in odd.attributes if name in ("href", "src", "action", "formaction")]
    assert all(re.match(r"(data:image/png;base64,|#)", value) for value in links)


@pytest.mark.parametrize("value", [1e308, 5e-324, None])
def test_extreme_values_make_a_page(tmp_path, value):
    folder = write_study(tmp_path / "results", prompts=3)
    for cell in cells_of(read_plan(folder), folder):
        stored = json.loads((cell.folder / "metrics.json").read_text())
        if cell.prompt != 1:
            (cell.folder / "metrics.json").write_text(json.dumps(dict.fromkeys(stored, value)))
            hashes = {name: hashlib.sha256((cell.folder / name).read_bytes()).hexdigest() for name in CONTENT}
            (cell.folder / "hashes.json").write_text(json.dumps(hashes))
    assert "</html>" in write_report(folder, videos=False)[0].read_text()
