"""Every command and snippet of the README and of docs/ runs, each in a test of its own, in the process of pytest.

Steps, prompts and evaluations are made few. Commands that measure many clips run on a tiny model in place of
``guidon-small``, and so does all that makes clips, but for the README. The released models' pages run on tiny files of the
released names.
"""

import pkgutil
import re
import runpy
import shlex
import shutil
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml
from PIL import Image

from docs_pages import PAGES, ROOT, anchors, blocks, commands, links, tables
from guidon import cli
from mp4 import assert_alike
from panned_clips import write_clips
from released import make_checkpoints, make_sized_checkpoints, make_t5, make_vae, make_video_vae
from tiny_pipelines.whole import write_pipeline

COMMANDS, SNIPPETS, FILES = commands(), blocks("python"), blocks("yaml")

FEWER = {
    "--steps": 2,
    "--prompts": 2,
    "--captions": 2,
    "--held-out": 2,
    "--evaluations": 6,
    "--seeds": 1,
    "--rounds": 1,
    "--looks": 1,
    "--frames": 2,
    "--size": "48x80",
}
"""What takes the place of an option's value."""
SAMPLING = ("generate", "evaluate", "spectrum", "match", "tune")
"""Commands that get ``--steps 2``, except where they read videos or a manifest, or take fast settings."""
MEASURING = ("calibrate-fast", "evaluate", "spectrum", "match", "tune", "study")
"""Commands that sample the tiny model on every page. On all pages but the README, ``generate`` does so too."""
RELEASED = {
    "OpenSora-v1-HQ-16x256x256.pth": "video.pth",
    "DiT-XL-2-256x256.pt": "class.pt",
    "PixArt-XL-2-512x512.pth": "image.pth",
    "PixArt-XL-2-1024-MS.pth": "sizes.pth",
}
"""The stand-ins for released checkpoints."""
CONFIG = """
num_frames = 16
image_size = (256, 256)
model = dict(type="STDiT-XL/2", enable_flashattn=True, from_pretrained="OpenSora-v1-HQ-16x256x256.pth")
scheduler = dict(type="iddpm", num_sampling_steps=100, cfg_scale=7.0)
prompt_path = "prompts.txt"
"""
"""A configuration of Open-Sora 1.0."""
AUDITED = "def forward_with_cfg(out, scale):\n    eps, rest = out[:, :3], out[:, 3:]\n    cond, uncond = eps.chunk(2)\n"
AUDITED += "    return cat([uncond + scale * (cond - uncond), rest[: len(cond)]], 1)\n"


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """A folder of tiny files with the names of the released ones."""
    folder = tmp_path_factory.mktemp("released")
    make_t5(folder / "t5-v1_1-xxl"), make_checkpoints(folder), make_sized_checkpoints(folder)
    make_video_vae(folder / "OpenSora-VAE-v1.2")
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
                (folder / "studies" / path.name).write_text(smaller_study(path.read_text()))
            for block in FILES:
                if block.page == page and block.file:
                    (folder / block.file).write_text(smaller_study(block.text))
            if page == "docs/which-channels.md":
                write_pipeline("wan", folder / "Wan2.1-T2V-1.3B-Diffusers")
            if page == "docs/given-frames.md":
                write_given_frames(folder)
            if page == "docs/training.md":
                write_clips(folder / "clips", 6)
                for path in folder.glob("*.yaml"):
                    path.write_text(smaller_training(path.read_text()))
            if page == "docs/open-sora.md":
                (folder / "16x256x256.py").write_text(CONFIG)
                Image.new("RGB", (60, 40), (90, 90, 160)).save(folder / "lighthouse.png")
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
    """Puts the tiny model in the place of guidon-small."""
    from guidon.models.small import SmallFamily

    find = SmallFamily.find_model

    def put():
        monkeypatch.setattr(SmallFamily, "find_model", lambda self, preset, *more: find(self, replace(preset, weights=tiny_model), *more))  # fmt: skip

    return put


def smaller_study(text):
    text = re.sub(r"^(prompts|steps): \d+", r"\1: 2", text, flags=re.MULTILINE)
    return smaller_call(text.replace(", dtype: bf16", ""))


def smaller_training(text):
    """A recipe of few steps, small batches and small networks."""
    text = re.sub(r"\b(steps): \d+", r"\1: 2", text)
    text = re.sub(r"\bhidden_size: \d+, depth: \d+", "hidden_size: 32, depth: 1", text)
    text = re.sub(r"^( *)task: \w+$", r"\g<0>\n\1batch_size: 4", text, flags=re.MULTILINE)
    model = "model: {block_out_channels: [8, 8], norm_num_groups: 4, pixel_unshuffle: 4}"
    return re.sub(r"^( *)task: vae$", rf"\g<0>\n\1{model}", text, flags=re.MULTILINE)


def smaller_call(text):
    """The arguments of a diffusers pipeline's call that a tiny one takes."""
    text = re.sub(r"\b(height|width)(\"?[:=] ?)\d+", r"\g<1>\g<2>32", text)
    return re.sub(r"\b(num_frames\"?[:=] ?)\d+", r"\g<1>5", text)


def few(words):
    """The words of a command that does little."""
    words = [str(FEWER.get(before, smaller_call(word))) for before, word in zip(["", *words], words, strict=False)]
    if "--engine" in words:  # tests/studies/test_ray.py runs it on a cluster
        del words[words.index("--engine") : words.index("--engine") + 2]
    reads_files = "--from" in words or any(re.search(r"\.(mp4|gif|webp)$|\*", word) for word in words[2:])
    if words[1] in SAMPLING and not {"--steps", "--fast"} & set(words) and not reads_files:
        words += ["--steps", "2"]
    if words[1] == "spectrum" and "--looks" not in words:
        words += ["--looks", "1"]
    if words[1] == "calibrate-fast":
        words += ["--candidate", "steps=2", "--coarse"]
    if words[1] == "bench":
        own = {
            "--rounds": "1",
            "--threads": "1",
            "--steps": "2",
            "--parts": "step",
        }  # tests/cli/test_bench.py has all parts
        words += [word for name in own if name not in words for word in (name, own[name])]
    return words


def expanded(words):
    """The words with every pattern replaced by the files that it matches."""
    return [str(w) for word in words for w in (sorted(Path().glob(word)) if "*" in word else [word])]


@pytest.fixture
def run(request, folder_of, done, tiny, monkeypatch):
    """Runs a command, after those of its page that write what it reads."""

    def run(command):
        monkeypatch.chdir(folder_of(command.page))
        monkeypatch.setattr("os.cpu_count", lambda: 1)  # threads of tiny networks wait more than they compute
        monkeypatch.setattr("guidon.analysis.matching.STEPS_OF_GRID", (1,))
        monkeypatch.setattr("guidon.analysis.speed.rounds.SHORTEST", 1e-6)  # tests/analysis/speed times longer ones
        if command in done:
            return
        for earlier in COMMANDS[: COMMANDS.index(command)]:
            if earlier.page == command.page and command.reads(earlier):
                run(earlier)
        if "--model" in command.words or "--checkpoint" in command.words or command.words[1] in ("inspect", "encode"):
            for path in request.getfixturevalue("released").iterdir():
                if not Path(path.name).exists():
                    Path(path.name).symlink_to(path)
        words = list(command.words)
        while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        if "train" in words:  # tests/training/test_log.py draws curves
            monkeypatch.setattr("guidon.training.loop.draw_curves", lambda rows, picture: picture)
        if command.page != "README.md" and not {"--model", "--fast"} & set(words) and words[0] == "guidon":
            tiny()
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


def write_given_frames(folder):
    """The pictures and videos that the page on given frames names."""
    from guidon.media import save_video

    frames = np.stack([np.full((64, 64, 3), 10 * step, np.uint8) for step in range(16)])
    for name, count in (("picture.png", 1), ("end.png", 1), ("clip.mp4", 16), ("other.mp4", 16)):
        save_video(frames[:count], folder / name)


def clip():
    """A video file."""
    from guidon.media import Video

    return Video(np.zeros((4, 32, 32, 3), np.uint8), 8, {}).save("clip.mp4")


def check_make(words, tiny):
    """``make TARGET``: the target exists, and the help names it."""
    makefile = (ROOT / "Makefile").read_text()
    targets = [word for word in words[1:] if "=" not in word]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:.*  ## ", makefile, re.M), target


def check_pip(words, tiny):
    """``pip install '.[EXTRA]'``, in a checkout: the extra exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words[1] == "install"
    named = re.fullmatch(r"\.(?:\[(.*)\])?", words[-1])
    assert set(filter(None, (named[1] or "").split(","))) <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_sentence_says_to_install_can_be_installed_from_a_checkout(page):
    for named in re.findall(r"pip install '([^']+)'", page.read_text()):
        check_pip(["pip", "install", named], None)


def test_the_readme_names_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name for name in extras if f"`[{name}]`" not in (ROOT / "README.md").read_text()] == []


def check_copy(words, tiny):
    """``cp -r FOLDER ELSEWHERE``: the folder exists in the repository."""
    assert (ROOT / words[-2]).exists()


def check_script(words, tiny):
    """``python -m pip ...``, or ``python SCRIPT``, whose script exists and is run by a test of its own."""
    if words[1:3] == ["-m", "pip"]:
        check_pip(words[2:], tiny)
    else:
        assert (ROOT / words[1]).is_file()


def run_torchrun(words, tiny):
    """``torchrun --nproc-per-node N -m guidon ...``, by this process alone; tests/cli/test_together.py starts several."""
    assert words[1] == "--nproc-per-node"
    assert int(words[2]) > 1
    assert words[3:5] == ["-m", "guidon"]
    tiny()
    run_guidon(words[4:], tiny)


HANDLERS = {
    "guidon": run_guidon,
    "torchrun": run_torchrun,
    "make": check_make,
    "pip": check_pip,
    "cp": check_copy,
    "python": check_script,
}
"""What a test does with a command, by its first word."""


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
def test_the_snippet_runs(snippet, namespaces, folder_of, run, tiny, monkeypatch):
    """After the snippets above it, in one namespace a page, and after the commands that write the folders that it names."""
    if snippet.page != "README.md":
        tiny()
    for command in COMMANDS:
        if command.page == snippet.page and command.line < snippet.line and f'"{command.writes}"' in snippet.text:
            run(command)
    monkeypatch.chdir(folder_of(snippet.page))
    if snippet.page not in namespaces:
        namespaces[snippet.page] = PREPARED.get(snippet.page, lambda monkeypatch: {})(monkeypatch), 0
    names, ran = namespaces[snippet.page]
    own = [other for other in SNIPPETS if other.page == snippet.page]
    for number, other in enumerate(own[ran : own.index(snippet) + 1], ran + 1):
        text = other.text
        for given, instead in SMALLER.get(snippet.page, ()):
            text = re.sub(given, instead, text)
        exec(compile("\n" * (other.line - 1) + text, str(ROOT / other.page), "exec"), names)
        namespaces[snippet.page] = names, number
    if snippet is own[-1] and snippet.page in CHECKS:
        CHECKS[snippet.page](names)


def names_of_diffusers(monkeypatch):
    """A tiny Wan 2.2 of 16 channels, another as an earlier one, and a way to call it without a text encoder."""
    from tiny_pipelines import PIPELINES
    from tiny_pipelines import run as run_tiny
    from tiny_pipelines.video import make_wan

    tiny_wan = next(tiny for tiny in PIPELINES if tiny.name == "wan-2.2")
    wan = {"experts": 2, "scheduler": "UniPCMultistepScheduler", "channels": 16, "boundary_ratio": 0.875}
    pipe, earlier = make_wan(**wan), make_wan(**wan)
    return {
        "pipe": pipe,
        "earlier": earlier,
        "call": lambda guidance_scale, **more: run_tiny(tiny_wan, pipe, guidance_scale, **more),
    }


def names_of_dit(monkeypatch):
    """Puts a tiny pipeline in the place of the pretrained one."""
    import diffusers

    class Tiny(diffusers.DiTPipeline):
        @classmethod
        def from_pretrained(cls, name, **settings):
            network = diffusers.DiTTransformer2DModel(
                num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8
            )
            vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
            return cls(network, vae, diffusers.DDIMScheduler(), id2label={207: "golden retriever"})

        def to(self, device):
            return super().to("cpu")

    monkeypatch.setattr(diffusers, "DiTPipeline", Tiny)
    return {}


def names_of_readme(monkeypatch):
    """A pipeline of diffusers as ``wan``, and a way to call it without a text encoder."""
    names = names_of_diffusers(monkeypatch)
    return {"wan": names["pipe"], "call": names["call"]}


PREPARED = {"README.md": names_of_readme, "docs/diffusers.md": names_of_diffusers, "docs/dit.md": names_of_dit}
"""The names that a page's snippets find."""
FEW_STEPS = (r"(seed=\d+)", r"\1, steps=2")
SMALLER = {
    "README.md": [FEW_STEPS, (r"wan\(prompt, ", "call(")],
    "docs/tutorial.md": [FEW_STEPS],
    "docs/python.md": [FEW_STEPS, (r"steps=20", "steps=2")],
    "docs/generate.md": [(r"steps=20", "steps=2"), (r"num_samples=4", "num_samples=2")],
    "docs/diffusers.md": [(r"pipe\(prompt, ", "call(")],
    "docs/dit.md": [FEW_STEPS],
    "docs/which-channels.md": [
        (r"\b(height|width)(.: )\d+", r"\1\g<2>32"),
        (r"(num_frames.: )\d+", r"\g<1>5"),
        (r"steps=30", "steps=2"),
    ],
}
"""What takes the place of what in a page's snippets."""


def check_diffusers(names):
    assert names["trace"].as_arrays()["difference"].shape[-1] == 16
    assert len(names["images"]) == 1


def check_python(names):
    assert names["frames"].shape == (16, 64, 64, 3)
    assert np.abs(names["again"].frames.astype(int) - names["second"].frames).max() <= 1
    assert names["latents"].ndim == 5
    assert names["faded"].manifest["generation"]["callback"]


def check_tutorial(names):
    """The file that Python wrote of the clip made again shows what the one of the command line shows."""
    [first] = Path("mine").glob("*.mp4")
    assert_alike("again.mp4", first)


CHECKS = {
    "README.md": lambda names: Path("circle.mp4").stat().st_size > 0,
    "docs/diffusers.md": check_diffusers,
    "docs/tutorial.md": check_tutorial,
    "docs/python.md": check_python,
    "docs/which-channels.md": lambda names: names["video"].frames.shape == (5, 32, 32, 3),
}
"""What holds after the last snippet of a page."""


@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/generate.md"])
def test_a_clip_is_made_again_from_its_manifest(page, run):
    """The commands with ``--from`` write the same frames as the commands before them."""
    command = next(command for command in COMMANDS if command.page == page and "--from" in command.words)
    run(command)
    folder = Path(command.words[command.words.index("--from") + 1]).parent
    [first], [again] = (list(place.glob("*.mp4")) for place in (folder, Path("again")))
    assert_alike(first, again)


@pytest.mark.parametrize("block", FILES, ids=lambda block: block.name)
def test_the_settings_are_valid(block, tmp_path):
    from guidon.core.settings import validated
    from guidon.studies.study import Study
    from guidon.training import load_recipe

    settings = yaml.safe_load(block.text)
    if {"stages", "task"} & settings.keys():
        (tmp_path / "recipe.yaml").write_text(block.text)
        load_recipe(tmp_path / "recipe.yaml")
        return
    settings.setdefault("settings", [{"cfg_scale": 1}, {"cfg_scale": 2}])
    settings.setdefault("primary", {"metric": "saturation", "baseline": "no guidance", "against": "scale 2"})
    validated(Study, settings, block.page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(page):
    for head, *rows in tables(page):
        assert [line for line, cells in rows if cells != head[1]] == []


def test_the_site_has_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = re.findall(r"[\w-]+\.md", str(nav))
    assert sorted(named) == sorted(page.name for page in PAGES if page.parent == ROOT / "docs")


def test_the_reference_has_every_public_name():
    import guidon

    page = (ROOT / "docs" / "reference.md").read_text()
    assert sorted(re.findall(r"^::: guidon\.(\w+)$", page, re.M)) == sorted(guidon.__all__)
    for path in re.findall(r"^::: (guidon\.models\.\S+)$", page, re.M):
        assert pkgutil.resolve_name(path).__doc__


def test_the_reference_has_the_names_of_every_package():
    import guidon

    page = (ROOT / "docs" / "reference.md").read_text()
    found = pkgutil.walk_packages(guidon.__path__, "guidon.")
    for name in (each.name for each in found if each.ispkg):
        if names := getattr(pkgutil.resolve_name(name), "__all__", None):
            row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
            assert re.findall(r"`([^`]+)`", row.split("|")[3]) == list(names), name


def test_the_reference_has_every_value_that_is_chosen_by_name():
    from guidon.cli import options
    from guidon.core.devices import DecodeDtype, DtypeName
    from guidon.diffusion import spacing
    from guidon.guidance import RULES, timing
    from guidon.media import FORMATS
    from guidon.models.registry import replays
    from guidon.models.sources import Sources
    from guidon.pipeline.calls import OutputType
    from guidon.request import KEYWORDS
    from guidon.samplers import SamplerName

    page = (ROOT / "docs" / "reference.md").read_text()
    section = page.partition("## Values of settings")[2].partition("\n## ")[0]
    rows = {row.split("|")[1].strip(" `"): row.split("|")[2] for row in section.splitlines() if row.startswith("| ")}
    offload = get_args(get_args(Sources.model_fields["offload"].annotation)[0])
    values = {
        "sampler": get_args(SamplerName), "spacing": spacing.VALID, "timing": timing.VALID, "guidance": RULES,
        "cfg_channels": options.CHOICES_OF_CHANNELS, "dtype": (*get_args(DtypeName), "auto"),
        "decode_dtype": (*get_args(DecodeDtype), "auto"), "exact": replays(), "device": (*options.DEVICES, "cuda:N"),
        "text_dtype": get_args(Sources.model_fields["text_dtype"].annotation), "offload": (*offload, *options.OFFLOADS),
        "output_type": get_args(OutputType), "the format of a file": FORMATS, "bench": options.BENCHES,
    }  # fmt: skip
    assert rows.keys() - {"setting"} == values.keys()
    for name, valid in values.items():
        assert set(re.findall(r"`([^`]+)`", rows[name])) == set(valid), name
    calls = (ROOT / "docs" / "python.md").read_text()
    assert [name for name in KEYWORDS if f"`{name}`" not in calls] == []


def test_the_page_of_rules_has_them_all_with_their_settings():
    from guidon.guidance import RULES

    page = (ROOT / "docs" / "rules.md").read_text()
    for name, rule in RULES.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        for setting in fields(rule):
            value = setting.default if isinstance(setting.default, str) else f"{setting.default:.3g}"
            assert f"`{setting.name}` {value}" in row


def test_the_page_of_metrics_has_every_metric_as_the_code_says_it():
    from guidon.metrics import learned
    from guidon.metrics.video import VIDEO_METRICS
    from guidon.metrics.world import METRICS

    page = (ROOT / "docs" / "metrics.md").read_text()
    parts = (metric for part in learned.METRICS.values() for metric in part.values())
    for metric in (*METRICS.values(), *VIDEO_METRICS.values(), *parts):
        name = f"| `{metric.name}` | {metric.label} | {metric.unit} | {metric.better or '-'} | "
        assert f"{name}{metric.meaning} | {metric.undefined} |" in page, metric.name


@pytest.mark.parametrize("picture", ["channels", "guidance"])
def test_the_example_makes_its_pictures(picture, tmp_path, tiny):
    """Of the first prompt alone, and as a GIF, which is written faster than a lossless WebP."""
    tiny()
    names = runpy.run_path(str(ROOT / "examples" / "compare_channels.py"))
    del names["PICTURES"][picture].prompts[1:]
    names["main"](picture, str(tmp_path / "it.gif"), steps=2)
    assert (tmp_path / "it.gif").stat().st_size > 1_000
