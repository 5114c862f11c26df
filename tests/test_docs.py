"""Every command and snippet of the README and of docs/ runs, each in a test of its own, in the process of pytest.

Steps, prompts and evaluations are made few. Commands that measure many clips run on a tiny model in place of
``guidon-small``, and the released models' pages on tiny files of the released names.
"""

import re
import runpy
import shlex
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from docs_pages import ROOT, blocks, commands
from guidon import cli
from released import make_checkpoints, make_t5, make_vae

COMMANDS, SNIPPETS = commands(), blocks("python")
README = (ROOT / "README.md").read_text()

FEWER = {
    "--steps": 2,
    "--prompts": 2,
    "--captions": 2,
    "--held-out": 2,
    "--evaluations": 6,
    "--seeds": 1,
    "--frames": 2,
    "--size": "48x80",
}
"""What takes the place of an option's value."""
SAMPLING = ("generate", "evaluate", "spectrum", "match", "tune")
"""Commands that get ``--steps 2``, except where they read videos or a manifest."""
MEASURING = ("evaluate", "spectrum", "match", "tune", "study")
"""Commands that sample the tiny model."""
RELEASED = {
    "OpenSora-v1-HQ-16x256x256.pth": "video.pth",
    "DiT-XL-2-256x256.pt": "class.pt",
    "PixArt-XL-2-512x512.pth": "image.pth",
    "PixArt-XL-2-1024-MS.pth": "sizes.pth",
}
"""The stand-ins for released checkpoints."""
AUDITED = "def forward_with_cfg(out, scale):\n    eps, rest = out[:, :3], out[:, 3:]\n    cond, uncond = eps.chunk(2)\n"
AUDITED += "    return cat([uncond + scale * (cond - uncond), rest[: len(cond)]], 1)\n"


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """A folder of tiny files with the names of the released ones."""
    folder = tmp_path_factory.mktemp("released")
    make_t5(folder / "t5-v1_1-xxl"), make_checkpoints(folder)
    for name in ("sd-vae-ft-ema", "sd-vae-ft-mse"):
        make_vae(folder / name)
    for name, stand_in in RELEASED.items():
        (folder / stand_in).rename(folder / name)
    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The working folder of a page, in which each of its commands runs once."""
    folders = {}

    def folder_of(page):
        if page not in folders:
            folders[page] = folder = tmp_path_factory.mktemp("page")
            (folder / "studies").mkdir()
            for path in (ROOT / "studies").glob("*.yaml"):
                few = re.sub(r"^(prompts|steps): \d+", r"\1: 2", path.read_text(), flags=re.MULTILINE)
                (folder / "studies" / path.name).write_text(few)
            for name in ("integrations", "examples", "recipes"):
                (folder / name).symlink_to(ROOT / name)
            (folder / "src").mkdir()
            (folder / "src" / "model.py").write_text(AUDITED)
        return folders[page]

    return folder_of


@pytest.fixture(scope="session")
def done():
    """The commands that ran, so that one that several others need runs once."""
    return set()


@pytest.fixture
def tiny(tiny_model, monkeypatch):
    """Puts the tiny model in the place of guidon-small, and few scales in that of the grid of ``match``."""
    from guidon.analysis import matching
    from guidon.models.small import SmallFamily

    find = SmallFamily.find_model

    def put():
        monkeypatch.setattr(matching, "STEPS_OF_GRID", (1,))
        monkeypatch.setattr(SmallFamily, "find_model", lambda self, preset, *more: find(self, replace(preset, weights=tiny_model), *more))  # fmt: skip

    return put


def few(words):
    """The words of a command that does little."""
    words = [str(FEWER.get(before, word)) for before, word in zip(["", *words], words, strict=False)]
    reads_files = "--from" in words or any(re.search(r"\.(mp4|gif|webp)$|\*", word) for word in words[2:])
    if words[1] in SAMPLING and "--steps" not in words and not reads_files:
        words += ["--steps", "2"]
    return words


def expanded(words):
    """The words with every pattern replaced by the files that it matches."""
    return [str(w) for word in words for w in (sorted(Path().glob(word)) if "*" in word else [word])]


@pytest.fixture
def run(request, folder_of, done, tiny, monkeypatch):
    """Runs a command, after those of its page that write what it reads."""

    def run(command):
        if command in done:
            return
        for earlier in reversed(COMMANDS[: COMMANDS.index(command)]):
            if earlier.page == command.page and command.reads(earlier):
                run(earlier)
                break
        monkeypatch.chdir(folder_of(command.page))
        if "--model" in command.words or "--checkpoint" in command.words or command.words[1] in ("inspect", "encode"):
            for path in request.getfixturevalue("released").iterdir():
                if not Path(path.name).exists():
                    Path(path.name).symlink_to(path)
        words = command.words
        while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        HANDLERS[words[0]](words, tiny)
        done.add(command)

    return run


def run_guidon(words, tiny):
    if words[1] in MEASURING and "--model" not in words:
        tiny()
    for word in words:
        if word == "long.mp4":
            shutil.copy(clip(), word)
    with pytest.raises(SystemExit) as stop:
        cli.main(expanded(few(words))[1:])
    finds = words[1] == "audit" and "--exit-zero" not in words  # 1 says that it found guidance of some channels
    assert stop.value.code == (1 if finds else 0), shlex.join(words)


def clip():
    """A video file."""
    import numpy as np

    from guidon.media import Video

    return Video(np.zeros((4, 32, 32, 3), np.uint8), 8, {}).save("clip.mp4")


HANDLERS = {"guidon": run_guidon}


@pytest.mark.filterwarnings("ignore:.*makes latents of", "ignore:.*was trained on another size")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_command_runs(command, run):
    run(command)
    written = [path for path in Path().glob(f"{command.writes}*") if command.writes]
    assert written or not command.writes or "--dry-run" in command.words


def test_every_page_with_commands_is_tested():
    assert {command.page for command in COMMANDS} >= {"README.md", "docs/studies.md", "docs/rules.md", "docs/dit.md"}


@pytest.fixture(scope="session")
def namespaces():
    """Page -> (the names that its snippets made, how many of them ran)."""
    return {}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.name)
def test_the_snippet_runs(snippet, namespaces, folder_of, monkeypatch):
    """After the snippets above it, in one namespace a page."""
    monkeypatch.chdir(folder_of(snippet.page))
    names, ran = namespaces.get(snippet.page, (PREPARED.get(snippet.page, dict)(), 0))
    own = [other for other in SNIPPETS if other.page == snippet.page]
    for other in own[ran : own.index(snippet) + 1]:
        text = other.text
        for given, instead in SMALLER.get(snippet.page, ()):
            text = re.sub(given, instead, text)
        exec(compile("\n" * (other.line - 1) + text, str(ROOT / other.page), "exec"), names)
        namespaces[snippet.page] = names, own.index(other) + 1
    for check in CHECKS.get(snippet.page, ()):
        if snippet is own[-1]:
            check(names)


def names_of_diffusers():
    """A tiny Wan 2.2 of 16 channels, and a way to call it without a text encoder."""
    from tiny_pipelines import PIPELINES
    from tiny_pipelines import run as run_tiny
    from tiny_pipelines.video import make_wan

    tiny_wan = next(tiny for tiny in PIPELINES if tiny.name == "wan-2.2")
    pipe = make_wan(experts=2, scheduler="UniPCMultistepScheduler", channels=16, boundary_ratio=0.875)
    return {"pipe": pipe, "call": lambda guidance_scale, **more: run_tiny(tiny_wan, pipe, guidance_scale, **more)}


def names_of_dit():
    """A class of pipelines whose pretrained one is tiny."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    import guidon

    class Tiny(DiTPipeline):
        @classmethod
        def from_pretrained(cls, name, **settings):
            network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8)  # fmt: skip
            vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
            return cls(network, vae, DDIMScheduler(), id2label={207: "golden retriever"})

        def to(self, device):
            return super().to("cpu")

    return {"DiTPipeline": Tiny, "guidon": guidon, "torch": torch}


PREPARED = {"docs/diffusers.md": names_of_diffusers, "docs/dit.md": names_of_dit}
"""The names that a page's snippets find."""
SMALLER = {
    "README.md": [(r"seed=0\)", "seed=0, steps=2)"), (r"steps=20", "steps=2"), (r"num_samples=4", "num_samples=2")],
    "docs/python.md": [(r"seed=0\)", "seed=0, steps=2)"), (r"steps=20", "steps=2")],
    "docs/diffusers.md": [(r"pipe\(prompt, ", "call(")],
    "docs/dit.md": [(r"seed=0\)", "seed=0, steps=2)")],
}
"""What takes the place of what in a page's snippets."""


def check_diffusers(names):
    assert names["trace"].as_arrays()["difference"].shape[-1] == 16
    assert len(names["images"]) == 1


def check_python(names):
    import numpy as np

    assert names["frames"].shape == (16, 64, 64, 3)
    assert np.abs(names["again"].frames.astype(int) - names["second"].frames).max() <= 1
    assert names["latents"].ndim == 5
    assert names["faded"].manifest["generation"]["callback"]


CHECKS = {
    "docs/python.md": [check_python],
    "README.md": [lambda names: Path("circle.mp4").stat().st_size > 0],
    "docs/diffusers.md": [check_diffusers],
}
"""What holds after the last snippet of a page."""


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.name)
def test_the_settings_are_valid(block):
    from guidon.core.settings import validated
    from guidon.studies.plan import Study

    settings = yaml.safe_load(block.text)
    settings.setdefault("settings", [{"cfg_scale": 1}, {"cfg_scale": 2}])
    settings.setdefault("primary", {"metric": "saturation", "baseline": "no guidance", "against": "scale 2"})
    validated(Study, settings, block.page)


def test_the_page_of_rules_has_them_all_with_their_settings():
    from guidon.guidance import RULES

    page = (ROOT / "docs" / "rules.md").read_text()
    for name, rule in RULES.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        for setting in fields(rule):
            assert f"`{setting.name}` {setting.default:g}" in row


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


def test_the_example_makes_its_picture(tmp_path):
    runpy.run_path(str(ROOT / "examples" / "compare_channels.py"))["main"](str(tmp_path / "guidance.webp"), steps=1)
    assert (tmp_path / "guidance.webp").stat().st_size > 10_000
