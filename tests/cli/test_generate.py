import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults.harness import Child
from guidon.cli import main
from guidon.media import load_video
from mp4 import assert_alike

PROMPT = "a red circle moves left on a white background"


@pytest.fixture
def generate(run, tiny_model):
    """Runs ``guidon generate`` on a tiny model; the paths that it prints, by name."""

    def generate(*words):
        model = () if "--from" in words else ("--model", tiny_model)
        code, out, err = run("generate", *words, *model, "--device", "cpu")
        assert code == 0, err
        return {name: path.strip() for name, path in (line.split(":", 1) for line in out.splitlines())}

    return generate


def test_it_writes_video_manifest_and_sheet_and_the_manifest_reproduces(generate, tmp_path):
    found = generate(
        PROMPT, "--steps", 2, "--seed", 7, "--out", tmp_path / "a", "--format", "webp", "--cfg-channels", "0,2"
    )
    assert set(found) == {"video", "manifest", "contact sheet"}
    frames, fps = load_video(found["video"])
    assert frames.shape == (16, 64, 64, 3)
    assert fps == 8
    manifest = json.loads(Path(found["manifest"]).read_text())
    assert manifest["generation"]["cfg_channels"] == "0,2"
    assert manifest["generation"]["seed"] == 7
    assert manifest["command"]
    again = generate("--from", found["manifest"], "--out", tmp_path / "b", "--format", "webp")
    assert np.array_equal(load_video(again["video"])[0], frames)
    assert Path(again["video"]).name == Path(found["video"]).name


def test_a_trace_of_a_manifests_clip_leaves_the_clip_as_it_is(generate, run, tmp_path):
    generate(PROMPT, "--steps", 2, "--num-samples", 3, "--out", tmp_path / "a", "--format", "webp", "--interval", "0,1")
    manifest = sorted((tmp_path / "a").glob("*.json"))[1]
    code, _, err = run(
        "generate", "--from", manifest, "--trace", "--out", tmp_path / "b", "--format", "webp", "--device", "cpu"
    )
    assert (code, "differ" in err) == (0, False)
    again = tmp_path / "b" / manifest.name
    computed = [json.loads(path.read_text())["computed"] for path in (manifest, again)]
    assert computed[0]["batch"] == 3
    assert computed[1] == computed[0]
    clips = [load_video(path.with_suffix(""))[0] for path in (manifest, again)]
    assert np.array_equal(*clips)
    assert np.load(next((tmp_path / "b").glob("*-trace.npz")))["difference"].shape == (1, 2, 4)


@pytest.mark.parametrize("format", ["mp4", "frames"])
def test_a_manifest_says_how_its_file_was_written_and_evaluate_shrinks_it(generate, run, tmp_path, format):
    words = (PROMPT, "--steps", 2, "--upscale", 3, "--fps", 12, "--format", format, "--interval", "0,1")
    found = {name: Path(path) for name, path in generate(*words, "--out", tmp_path / "a").items()}
    assert load_video(found["video"])[0].shape == (16, 192, 192, 3)
    assert "-x3-12fps" in found["video"].name
    # the video beside the manifest means the manifest
    again = Path(generate("--from", found["video"], "--out", tmp_path / "b")["video"])
    assert again.name == found["video"].name
    if format == "mp4":
        assert_alike(again, found["video"])
    for path in () if format == "mp4" else again.iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.relative_to(tmp_path / "b")).read_bytes()
    plain = Path(generate("--from", found["manifest"], "--out", tmp_path / "c", "--upscale", 1)["video"])
    assert load_video(plain)[0].shape == (16, 64, 64, 3)
    # the world's metrics need clips of its own size
    code, out, _ = run("evaluate", found["video"])
    assert code == 0
    assert "| colour |" in out
    if format == "frames":  # without loss, the numbers are those of the clip as the model made it
        assert out.splitlines()[2:] == run("evaluate", plain)[1].splitlines()[2:]


def test_what_cannot_be_written_is_refused_before_it_is_made(refused, tiny_model, tmp_path):
    words = ("generate", PROMPT, "--model", tiny_model, "--out", tmp_path / "new")
    assert "--upscale 100 makes 16 frames of 6400x6400 pixels" in refused(*words, "--upscale", 100)
    assert "--fps 5000.0 is not a rate: give a number from 0.1 to 1000" in refused(*words, "--fps", 5000)
    (tmp_path / "clip.mp4").write_bytes(b"")
    message = refused("generate", "--from", tmp_path / "clip.mp4")
    assert "is a video without its manifest, clip.mp4.json: give the JSON file that was written beside" in message
    message = refused("generate", "--from", ".")
    assert f". is a folder without its manifest, {Path.cwd().name}.json: give the JSON file that was written" in message
    for name in ("b.mp4", "b.mp4.json", "a.json"):
        (tmp_path / name).write_bytes(b"")
    message = refused("generate", "--from", tmp_path)
    assert message.endswith(f"or the clip itself, such as {tmp_path / 'b.mp4.json'}")
    assert "--class is for a class-conditional model" in refused("generate", "--class", 3, "--model", tiny_model)
    assert not (tmp_path / "new").exists()


def test_files_that_hold_no_frames_are_refused_before_a_model_is_loaded(refused, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("guidon.pipeline.load", None)
    Path("text.png").write_text("no picture")
    Path("empty.mp4").write_bytes(b"")
    Path("folder").mkdir()
    Image.new("RGB", (8, 8)).save("a.png")
    words = ("generate", PROMPT, "--model", tiny_model, "--out", "new")
    assert "--first-frame 'none.png' is not there" in refused(*words, "--first-frame", "none.png")
    assert "text.png cannot be read as a frame" in refused(*words, "--last-frame", "text.png")
    assert "empty.mp4 cannot be read as video" in refused(*words, "--continue", "empty.mp4")
    assert "the folder folder holds no PNG frames" in refused(*words, "--edit", "folder")
    assert "--continue has 1 frame, and 4 are taken of it" in refused(*words, "--continue", "a.png")
    strategy = (*words, "--reference", "a.png", "--mask-strategy")
    assert "--mask-strategy '0,0,-2,0,1,0' begins at frame -2 of a reference of 1" in refused(*strategy, "0,0,-2")
    assert "--mask-strategy 'x' holds 'x': give whole numbers" in refused(*strategy, "x")
    assert not Path("new").exists()


def test_a_given_picture_is_the_first_frame_and_the_manifest_finds_it(generate, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 60), (200, 40, 40)).save("a.png")
    found = generate(PROMPT, "--first-frame", "a.png", "--steps", 2, "--loop", 2, "--format", "webp", "--out", "one")
    frames, _ = load_video(found["video"])
    assert frames.shape == (28, 64, 64, 3)
    again = generate("--from", found["manifest"], "--out", "two")
    assert np.array_equal(load_video(again["video"])[0], frames)
    Image.new("RGB", (80, 60)).save("a.png")
    message = refused("generate", "--from", found["manifest"], "--out", "three")
    assert "a.png is not the file that the clip was made with" in message
    assert not Path("three").exists()


def test_a_fault_in_a_file_of_prompts_names_its_line(refused, tiny_model, tmp_path):
    file, good = tmp_path / "prompts.txt", b"a red circle moves left on a white background"
    words = ("--prompts-file", file, "--model", "guidon-small", "--out", tmp_path / "out")
    for command, bad in (("generate", b"a red heart moves left on a white background"), ("evaluate", b"zzz")):
        file.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\n" + bad + b"\n")
        assert f"{file}, line 3: " in refused(command, *words)
        file.write_bytes(good + b"\r" + good + b"\n\n\xff\xfe\n")
        assert f"{file} cannot be read as --prompts-file, a prompt a line: line 4 is not text" in refused(
            command, *words
        )
    file.write_bytes(good)
    assert "line" not in refused("generate", *words, "--steps", 5000)  # what is wrong is no prompt


def test_prompts_and_samples_come_together_in_one_sheet(run, tiny_model, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfa blue square moves up on a black background\r\n\n")
    code, out, _ = run(
        "generate", PROMPT, "--prompts-file", tmp_path / "prompts.txt", "--num-samples", 2, "--steps", 2,
        "--out", tmp_path, "--format", "gif", "--interval", "0,1", "--trace", "--model", tiny_model, "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    assert out.count("video:") == 4
    assert len(list(tmp_path.glob("a-blue-square-*.gif"))) == 2
    assert out.count("contact sheet:") == 1
    trace = np.load(next(tmp_path.glob("*-trace.npz")))
    assert trace["difference"].shape == (4, 2, 4)


def test_other_settings_do_not_overwrite(generate, tmp_path):
    for scale in ("2", "3", "2"):
        generate(PROMPT, "--steps", 2, "--out", tmp_path, "--format", "gif", "--cfg-scale", scale)
    assert len(list(tmp_path.glob("*.gif"))) == 2


def test_weights_other_than_the_manifests_are_named(run, generate, tmp_path):
    manifest = generate(PROMPT, "--steps", 1, "--out", tmp_path, "--format", "webp")["manifest"]
    content = json.loads(Path(manifest).read_text())
    content["weights"]["vae"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(content))
    _, _, err = run("generate", "--from", tmp_path / "other.json", "--out", tmp_path, "--format", "webp")
    assert "made with other vae weights: frames will differ" in err


def test_what_is_left_out_is_the_models(asked, tmp_path):
    find, plan = asked("generate", PROMPT, "--out", tmp_path)
    assert find == {"model": "guidon-small"}
    assert plan == {"prompts": (PROMPT,), "samples": (0,), "batch_size": 8, "device": None, "force": False}


def test_every_option_reaches_the_model(asked, tmp_path):
    find, plan = asked(
        "generate", "--class", 207, PROMPT, "--force", "--negative-prompt", "a square", "--cfg-scale", "4,4,4,1", "--cfg-channel",
        "all", "--guidance", "apg", "--ramp", "linear", "--seed", 7, "--num-samples", 2, "--steps", 3, "--sampler",
        "ddim", "--eta", 0.5, "--size", "48x80", "--frames", 9, "--exact", "dit", "--exact-noise", "cuda", "--dtype",
        "bf16", "--batch-size", 3, "--model", "m", "--checkpoint", "c", "--text-encoder", "t", "--vae", "v",
        "--features", "f", "--text-dtype", "int8", "--offload", "none", "--download", "--device", "cpu", "--out",
        tmp_path, "--first-frame", "a.png", "--last-image", "b.png", "--continue", "c.mp4", "--connect-to", "d.mp4",
        "--video", "e.mp4", "--strength", 0.3, "--loop", 2, "--condition-frames", 3, "--condition-edit", 0.1,
        "--reference", "f.png", "--reference", "g.png", "--mask-strategy", "0;0,1",
    )  # fmt: skip
    assert find == {
        "model": "m", "checkpoint": Path("c"), "text_encoder": Path("t"), "vae": Path("v"), "features": Path("f"),
        "text_dtype": "int8", "offload": "none", "download": True,
    }  # fmt: skip
    assert plan == {
        "prompts": (PROMPT, "207"), "samples": (0, 1), "negative_prompt": "a square", "cfg_scale": (4, 4, 4, 1),
        "cfg_channels": "all", "guidance": "apg", "timing": "linear", "seed": 7, "steps": 3, "sampler": "ddim",
        "eta": 0.5, "size": (48, 80), "frames": 9, "exact": "dit", "exact_noise": "cuda", "dtype": "bf16",
        "batch_size": 3, "device": "cpu", "force": True, "first_frame": Path("a.png"), "last_frame": Path("b.png"),
        "continue_from": Path("c.mp4"), "connect_to": Path("d.mp4"), "edit": Path("e.mp4"), "edit_strength": 0.3,
        "loop": 2, "condition_frames": 3, "condition_edit": 0.1, "reference": [Path("f.png"), Path("g.png")],
        "mask_strategy": "0;0,1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["--guidance-scale", "7.5"], ["--cfg-scale", "7.5"]),
        (["--num-inference-steps", "20"], ["--steps", "20"]),
        (["--num-frames", "9"], ["--frames", "9"]),
        (["--height", "48", "--width", "80"], ["--size", "48x80"]),
        (["--resolution", "240p"], ["--size", "240x426"]),
        (["--resolution", "144p", "--aspect-ratio", "1:1"], ["--size", "192x192"]),
        (["--cfg-channel", "3"], ["--cfg-channels", "3"]),
    ],
)
def test_other_programs_spellings_mean_the_same(asked, tmp_path, theirs, ours):
    plain = asked("generate", PROMPT, "--out", tmp_path)
    assert asked("generate", PROMPT, "--out", tmp_path, *theirs) == asked("generate", PROMPT, "--out", tmp_path, *ours)
    assert asked("generate", PROMPT, "--out", tmp_path, *theirs) != plain


BAD = {
    "unknown words only": (
        ["xyzzy"],
        "unknown word 'xyzzy'. It knows shapes: circle, square, triangle, cross; colours: red,",
    ),
    "empty prompt": ([""], "is empty"),
    "no quotes": (PROMPT.split(), f'9 prompts of one word each: write a prompt in quotes, guidon generate "{PROMPT}"'),
    "force in vain": (["ein roter Kreis", "--force"], "--force cannot help"),
    "channel 0": ([PROMPT, "--cfg-channels", "0"], "channel 0 alone is 'only:0'"),
    "no prompt": ([], "no prompt was given"),
    "channels 5": ([PROMPT, "--cfg-channels", "5"], "4 latent channels"),
    "channels twice": ([PROMPT, "--cfg-channels", "0,0"], "twice"),
    "channels backwards": ([PROMPT, "--cfg-channels", "4-2"], "backwards"),
    "channels x": ([PROMPT, "--cfg-channels", "x"], "cannot be read"),
    "scale nan": ([PROMPT, "--cfg-scale", "nan"], "finite"),
    "scale negative": ([PROMPT, "--cfg-scale", "-1"], "at least 0"),
    "scale infinite": ([PROMPT, "--cfg-scale", "inf"], "finite"),
    "scale word": ([PROMPT, "--cfg-scale", "big"], "is not a number"),
    "scales of wrong length": ([PROMPT, "--cfg-scale", "1,2,3"], "4 latent channels"),
    "steps 0": ([PROMPT, "--steps", "0"], "steps"),
    "steps above T": ([PROMPT, "--steps", "1001"], "at most 1000"),
    "interval outside": ([PROMPT, "--interval", "0.5,1.5"], "leaves [0, 1]"),
    "interval reversed": ([PROMPT, "--interval", "0.8,0.2"], "backwards"),
    "interval and ramp": ([PROMPT, "--interval", "0,1", "--ramp", "linear"], "choose one"),
    "format": ([PROMPT, "--format", "mp5"], "did you mean 'mp4'"),
    "sampler": ([PROMPT, "--sampler", "euler"], "sampler"),
    "device": ([PROMPT, "--device", "quantum"], "not a device"),
    "option": ([PROMPT, "--sead", "1"], "--sead"),
    "manifest and prompt": ([PROMPT, "--from", "a.json"], "--from takes every setting"),
    "height alone": ([PROMPT, "--height", "64"], "--height and --width belong together, and --width was not given"),
    "width and size": ([PROMPT, "--width", "64", "--size", "64x64"], "--size says the same as --height and --width"),
    "size": ([PROMPT, "--size", "64"], "--size '64' is not a size"),
    "size between patches": ([PROMPT, "--size", "50x64"], "50 is no"),
    "width between patches": ([PROMPT, "--height", "64", "--width", "50"], "50 is no"),
    "resolution": ([PROMPT, "--resolution", "241p"], "--resolution '241p' does not exist (did you mean '240p'?)"),
    "resolution and size": ([PROMPT, "--resolution", "240p", "--width", "64"], "says the same as --width"),
    "aspect ratio": ([PROMPT, "--resolution", "240p", "--aspect-ratio", "9:15"], "--aspect-ratio '9:15', height to"),
    "aspect ratio alone": ([PROMPT, "--aspect-ratio", "9:16"], "--aspect-ratio needs --resolution"),
    "eta of another sampler": ([PROMPT, "--eta", "0.5"], "--eta 0.5"),
    "rule": ([PROMPT, "--guidance", "apgg"], "did you mean 'apg'"),
    "png of a video": ([PROMPT, "--format", "png"], "--format png holds one image"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(refused, tiny_model, tmp_path, case):
    arguments, message = BAD[case]
    model = () if "--from" in arguments else ("--model", tiny_model)
    device = () if "--device" in arguments else ("--device", "cpu")
    assert message in refused("generate", *arguments, *model, *device, "--out", tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_bad_models_manifests_and_folders(refused, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "not.json").write_text("{}")
    (tmp_path / "weights.json").write_text('{"generation": {}, "weights": 3}')
    (tmp_path / "key.json").write_text('{"generation": {"prompts": ["x"], "stepz": 3}}')
    for words, message in (
        ((PROMPT, "--model", "guidon-smal", "--out", tmp_path), "did you mean 'guidon-small'"),
        ((PROMPT, "--out", tmp_path / "file" / "sub"), "cannot be written"),
        (("--from", tmp_path / "not.json", "--out", tmp_path), "not a manifest"),
        (
            ("--from", tmp_path / "none.json", "--out", tmp_path),
            "none.json cannot be read as a manifest: it is not there",
        ),
        (("--from", tmp_path / "weights.json", "--out", tmp_path), "weights is 3, expected hashes by name"),
        (("--from", tmp_path / "key.json", "--out", tmp_path), "key.json: unknown key 'stepz' (did you mean 'steps'?)"),
        (
            ("--prompts-file", tmp_path / "none.txt", "--out", tmp_path),
            "none.txt cannot be read as --prompts-file, a prompt a line: it is not there",
        ),
        (("\udcff", "--out", tmp_path), "is not UTF-8 text"),
    ):
        assert message in refused("generate", *words)


def test_without_av_mp4_is_refused_before_anything_is_made(refused, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    message = refused("generate", PROMPT, "--model", tiny_model, "--device", "cpu", "--out", tmp_path / "out")
    assert message == "writing mp4 needs av, which is not installed: pip install 'guidon-diffusion[video]'"
    assert not list(tmp_path.glob("out/*"))


def test_killed_at_any_moment_it_leaves_no_half_written_output(tiny_model, tmp_path):
    """A kill while it samples, and one once the first video is written and the rest is under way."""
    words = ["generate", PROMPT, "--steps", "2", "--num-samples", "2", "--model", tiny_model, "--out", tmp_path]
    finished = False
    for videos in (0, 1):
        running = Child(main, [*map(str, words), "--device", "cpu"])
        while len(list(tmp_path.glob("[!.]*.mp4"))) < videos and not running.has_ended():
            time.sleep(0.001)
        time.sleep(0.02)
        running.kill()
        running.wait()
        for path in tmp_path.iterdir():
            if path.name.startswith("."):
                continue
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".mp4":
                assert load_video(path)[0].shape == (16, 64, 64, 3)
                finished = True
    assert finished


def test_words_that_are_no_utf_8_are_escaped_in_a_manifest(run, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["guidon", "\udcff"])
    words = ("generate", "a red circle moves left on a white background", "--steps", "4", "--model", str(tiny_model))
    assert run(*words, "--out", str(tmp_path / "x"))[0] == 0
    manifest = next((tmp_path / "x").glob("*.mp4.json"))
    assert json.loads(manifest.read_text())["command"] == "guidon '\\udcff'"


def test_a_random_prompt_is_drawn_by_the_seed_and_printed(generate, tmp_path):
    drawn = [
        generate(
            "--random-prompt", "--steps", 1, "--seed", seed, "--format", "webp", "--interval", "0,1", "--out", tmp_path
        )
        for seed in (1, 2, 1)
    ]
    prompts = [found["prompt"] for found in drawn]
    assert prompts[0] == prompts[2] != prompts[1]
    assert json.loads(Path(drawn[0]["manifest"]).read_text())["generation"]["prompts"] == [prompts[0]]


def test_a_drawn_prompt_is_not_printed_where_another_option_is_refused(refused, tmp_path):
    assert "--steps" in refused("generate", "--random-prompt", "--steps", 0)
    (tmp_path / "file").touch()
    assert "cannot be written" in refused("generate", "--random-prompt", "--out", tmp_path / "file")


def test_a_trace_in_smaller_batches_than_it_can_hold_is_refused(refused):
    words = ("generate", PROMPT, PROMPT, "--num-samples", 2, "--batch-size", 3, "--trace")
    assert "--trace needs its 4 clips in one batch, and --batch-size is 3: give at least 4" in refused(*words)


def test_a_forced_prompt_is_sampled_and_reproduced_without_a_word(run, tiny_model, tmp_path):
    words = ("generate", "two circles", "--steps", 3, "--model", tiny_model, "--device", "cpu", "--format", "webp")
    code, _, err = run(*words, "--out", tmp_path / "refused")
    assert code == 2
    assert "--force samples it anyway" in err
    assert not (tmp_path / "refused").exists()
    code, _, err = run(*words, "--force", "--out", tmp_path / "a")
    assert code == 0
    assert "'two circles' asks for another number of objects" in err
    assert err.count("\n") == 1
    (manifest,) = (tmp_path / "a").glob("*.json")
    code, _, err = run("generate", "--from", manifest, "--out", tmp_path / "b", "--format", "webp", "--device", "cpu")
    assert (code, err) == (0, "")
    first, second = (next((tmp_path / name).glob("*.webp")).read_bytes() for name in "ab")
    assert first == second


def test_a_prompt_that_cannot_be_followed_is_refused_before_torch_is_imported(refused, monkeypatch, tmp_path):
    monkeypatch.setattr("guidon.pipeline.load", lambda *_, **__: pytest.fail("the model was loaded"))
    message = refused("generate", "a cat playing piano", "--out", tmp_path / "out")
    assert "unknown words 'cat', 'playing', 'piano'. It knows shapes: circle, square" in message
    assert not (tmp_path / "out").exists()
