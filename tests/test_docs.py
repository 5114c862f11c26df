"""Every command and snippet of the README runs, and so do the commands of the other pages."""

import re
import shlex
from pathlib import Path

import pytest

from guidon import cli
from released import make_checkpoints, make_t5, make_vae

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def commands(text):
    return [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]


COMMANDS = commands(README)
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    for path in (ROOT / "studies").glob("*.yaml"):
        small = re.sub(r"^(prompts|steps): \d+", r"\1: 2", path.read_text(), flags=re.MULTILINE)
        (tmp_path / "studies" / path.name).write_text(small)
    return tmp_path


def run(line, *more):
    words = [str(w) for word in shlex.split(line) for w in (sorted(Path().glob(word)) if "*" in word else [word])]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words[1:], *more])
    assert stop.value.code == 0, line


def cheap(line):
    """The command with few steps and evaluations."""
    return re.sub(r"--evaluations \d+", "--evaluations 6", re.sub(r"--steps \d+", "--steps 2", line))


def test_the_readmes_commands_run(elsewhere):
    assert len(COMMANDS) >= 6
    for line in map(cheap, COMMANDS):
        quick = () if re.search(r"--steps|--from|\*|guidon study", line) else ("--steps", "4")
        run(line, *quick)
    assert len(list(elsewhere.glob("outputs/*.mp4"))) >= 5
    assert list(elsewhere.glob("again/*.mp4"))


STAND_INS = {
    "OpenSora-v1-HQ-16x256x256.pth": "video.pth", "DiT-XL-2-256x256.pt": "class.pt",
    "PixArt-XL-2-512x512.pth": "image.pth", "PixArt-XL-2-1024-MS.pth": "sizes.pth",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*makes latents of", "ignore:.*was trained on another size")
@pytest.mark.parametrize("page", ["open-sora", "dit", "pixart"])
def test_the_originals_pages_commands_run_on_files_of_those_names(elsewhere, page):
    make_t5(elsewhere / "t5-v1_1-xxl"), make_checkpoints(elsewhere)
    for name in ("sd-vae-ft-ema", "sd-vae-ft-mse"):
        make_vae(elsewhere / name)
    for name, stand_in in STAND_INS.items():
        (elsewhere / stand_in).rename(elsewhere / name)
    lines = commands((ROOT / "docs" / f"{page}.md").read_text())
    made = 0
    for line in lines:
        line = re.sub(r"--size \S+", "--size 48x80", re.sub(r"--steps \d+", "", line))
        run(line, *(("--steps", "2", "--out", f"out/{made}") if "generate" in line else ()))
        made += "generate" in line
    assert made >= 4
    for k in range(made):
        assert list(elsewhere.glob(f"out/{k}/*.json"))


@pytest.mark.parametrize("page", ["rules", "studies", "calibration"])
def test_the_commands_of_the_pages_on_guidance_run(elsewhere, page):
    lines = commands((ROOT / "docs" / f"{page}.md").read_text())
    assert lines
    for line in map(cheap, lines):
        run(line, *(("--steps", "3") if "generate" in line else ()))


def test_the_page_of_rules_has_them_all_with_their_settings():
    from dataclasses import fields

    from guidon.guidance import RULES

    page = (ROOT / "docs" / "rules.md").read_text()
    for name, rule in RULES.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        for setting in fields(rule):
            assert f"`{setting.name}` {setting.default:g}" in row


def test_the_readmes_snippets_run(elsewhere):
    assert len(SNIPPETS) >= 2
    for snippet in SNIPPETS:
        exec(
            compile(snippet.replace("seed=0)", "seed=0, steps=4)").replace("steps=20", "steps=2"), "README", "exec"), {}
        )
    assert (elsewhere / "circle.mp4").exists()


def test_the_page_of_metrics_has_every_metric_as_the_code_says_it():
    from guidon.metrics.video import VIDEO_METRICS
    from guidon.metrics.world import METRICS

    page = (ROOT / "docs" / "metrics.md").read_text()
    for metric in (*METRICS.values(), *VIDEO_METRICS.values()):
        row = f"| `{metric.name}` | {metric.unit} | {metric.better or '-'} | {metric.meaning} | {metric.undefined} |"
        assert row in page, metric.name


def test_the_readme_names_every_room():
    tree = README.split("## What is where")[1]
    named = set(re.findall(r"^ +([a-z_]+(?:/|\.py)) ", tree, re.MULTILINE))
    package = {f"{path.name}/" for path in (ROOT / "src" / "guidon").iterdir() if path.is_dir()} - {"__pycache__/"}
    modules = {path.name for path in (ROOT / "src" / "guidon").glob("*.py") if not path.name.startswith("__")}
    folders = {f"{name}/" for name in ("integrations", "recipes", "studies", "examples", "benchmarks", "docs", "tests")}
    assert named == package | modules | folders


def test_the_example_makes_its_picture(elsewhere):
    import runpy

    runpy.run_path(str(ROOT / "examples" / "compare_channels.py"))["main"](str(elsewhere / "guidance.webp"), steps=2)
    assert (elsewhere / "guidance.webp").stat().st_size > 10_000


def test_the_page_on_diffusers_runs(elsewhere):
    """Its snippets run in order, in one namespace, on a tiny Wan 2.2 of 16 channels."""
    from tiny_pipelines import PIPELINES, run
    from tiny_pipelines.video import make_wan

    tiny = next(tiny for tiny in PIPELINES if tiny.name == "wan-2.2")
    pipe = make_wan(experts=2, scheduler="UniPCMultistepScheduler", channels=16, boundary_ratio=0.875)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "diffusers.md").read_text(), re.S)
    namespace = {"pipe": pipe, "call": lambda guidance_scale, **more: run(tiny, pipe, guidance_scale, **more)}
    for snippet in snippets:
        exec(compile(snippet.replace("pipe(prompt, ", "call("), "docs/diffusers.md", "exec"), namespace)
    assert namespace["trace"].as_arrays()["difference"].shape[-1] == 16
    assert len(namespace["images"]) == 1
