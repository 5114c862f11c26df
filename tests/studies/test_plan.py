"""From a study file to a frozen plan: what it holds, what it refuses, and that nothing is sampled."""

import dataclasses
import io
import json
import sys
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import guidon
from guidon.cli import main
from guidon.core.errors import InputError
from guidon.core.hashing import hash_settings
from guidon.metrics.bench import find_bench
from guidon.metrics.metric import EVALUATION_SEED, TUNING_SEED
from guidon.models.family import Facts, as_they_are
from guidon.models.stdit3 import CLIP, OPEN_SORA_1_2, latent_frames, read_with_score
from guidon.pipeline.planner import Planner
from guidon.studies.outline import outline
from guidon.studies.plan import FIRST_FORMAT, Plan
from guidon.studies.planning import check_study, make_plan
from guidon.studies.study import Study, load_study
from studies.small import MATCHED, STUDY, study, write

ROOT = Path(__file__).parents[2]
FIRST = json.loads((Path(__file__).parent / "plan-format-1.json").read_text())  # guidon 0.1.0 wrote it


@pytest.fixture
def unsampled(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "generate", lambda *_, **__: pytest.fail("sampled"))
    return pipe


def test_a_plan_says_everything_and_is_the_same_every_time(plan, unsampled, tmp_path, tiny_model):
    assert list(plan.settings) == ["no guidance", "scale 3, channels 3", "scale 3, channels all"]
    assert plan.captions == find_bench("world").captions("L0", EVALUATION_SEED, 3)
    chosen = plan.settings["scale 3, channels all"]
    assert (chosen["steps"], chosen["sampler"], chosen["cfg_channels"], chosen["guidance"]) == (2, "ddpm", "all", "cfg")
    assert make_plan(study(tmp_path, tiny_model), unsampled, threads=1).hash == plan.hash
    assert make_plan(study(tmp_path, tiny_model, seeds=3), unsampled, threads=1).hash != plan.hash
    throughout = make_plan(study(tmp_path, tiny_model, timing="constant"), unsampled)
    assert {own["timing"] for own in throughout.settings.values()} == {"constant"}


def test_a_plan_is_its_json_again(plan, unsampled, tmp_path, tiny_model):
    for made in (plan, make_plan(study(tmp_path, tiny_model, **MATCHED), unsampled)):
        stored = json.loads(json.dumps(made.content))
        again = Plan.model_validate(stored)
        assert again.hash == made.hash == hash_settings(stored)
        assert again.differences(made) == []


def test_a_model_that_adds_to_prompts_adds_to_those_of_a_study(tmp_path):
    facts = Facts(
        latent_shape=(4, 15, 30, 53), patch=(1, 1, 1), downsampling=8, timesteps=1000, bench="video",
        read_prompts=read_with_score, rewrites=True, path="flow", clip=CLIP, latent_frames=latent_frames,
        latents_together=5, knows_given_frames=True,
    )  # fmt: skip
    planner = Planner(OPEN_SORA_1_2, facts)
    settings = [{"name": "two", "cfg_scale": 2}, {"name": "seven", "energy_of": "two", "cfg_channels": 1}]
    made = Study.model_validate(
        {"model": "open-sora-1.2", "prompts": ["a cat", "a lighthouse aesthetic score: 5.0."], "tuning_prompts": 1,
         "settings": settings, "primary": {"metric": "dynamics", "baseline": "two", "against": "seven"}}
    )  # fmt: skip
    pipe = SimpleNamespace(
        planner=planner, device=torch.device("cpu"), hashes={"vae": "0"}, distilled_hashes={}, compiles=False
    )
    plan = make_plan(made, pipe).with_scales({"seven": 4.0})
    for name in plan.settings:
        request = plan.request(name, slice(0, 2))
        for prompt in plan.captions:
            assert request.text_of(prompt) == planner.complete((prompt,)).text_of(prompt)
    assert request.text_of("a cat") == "a cat aesthetic score: 6.5."
    assert request.alone(1, 0).read_as == {}
    assert Plan.model_validate(json.loads(json.dumps(plan.content))).hash == plan.hash


def test_negative_prompts_are_read_as_those_of_a_call(unsampled, tmp_path, tiny_model):
    settings = [
        {"name": "plain", "cfg_scale": 3}, {"name": "squares", "cfg_scale": 3, "negative_prompt": "squares"},
        {"name": "circles", "cfg_scale": 3, "negative_prompt": "circles"},
    ]  # fmt: skip
    primary = {"metric": "joint", "baseline": "squares", "against": "circles"}
    plan = make_plan(study(tmp_path, tiny_model, settings=settings, primary=primary), unsampled)
    for name, negative, read in (("squares", "squares", "square"), ("circles", "circles", "circle")):
        request = plan.request(name, slice(1, 2))
        assert (request.negative_prompt, request.text_of(negative)) == (negative, read)
        assert request.read_as == unsampled.plan(request.prompts, negative_prompt=negative).read_as
    assert plan.request("plain", slice(0, 1)).read_as == {}


def test_own_prompts_are_read_as_those_of_a_call_and_refused_as_they_are(unsampled, tmp_path, tiny_model):
    prompts = ["red squares on white", "a red circle moves left on a white background"]
    plan = make_plan(study(tmp_path, tiny_model, prompts=prompts), unsampled)
    for name in plan.settings:
        for number, prompt in enumerate(prompts):
            request = plan.request(name, slice(number, number + 1))
            assert request.text_of(prompt) == unsampled.plan((prompt,)).text_of(prompt)
    assert plan.request("no guidance", slice(0, 1)).text_of(prompts[0]) == "a red square on a white background"
    unknown = study(tmp_path, tiny_model, prompts=["a red elephant moves left", prompts[1]])
    with pytest.raises(InputError, match=r"unknown word 'elephant'.*lists all words$"):  # no option samples it anyway
        make_plan(unknown, unsampled)


def test_prompts_do_not_share_their_noise(plan):
    first, second = (plan.request("no guidance", slice(k, k + 1)) for k in (0, 1))
    assert (first.seed, second.seed) == (0, 1)
    assert plan.request("no guidance", slice(1, 3)).seed_per_prompt
    assert plan.request("no guidance", slice(1, 3)).samples == (0, 1)


def test_a_plan_keeps_energy_of_and_its_tuning_prompts(plan, unsampled, tmp_path, tiny_model):
    made = make_plan(study(tmp_path, tiny_model, **MATCHED), unsampled)
    assert made.settings["all"]["energy_of"] == "three"
    assert "cfg_scale" not in made.settings["all"]
    assert made.tuning == find_bench("world").captions("L0", TUNING_SEED, 3)
    assert made.unsolved == ["all"]
    with pytest.raises(InputError, match="scale of 'all' is not solved yet"):
        made.request("all", slice(1))
    solved = made.with_scales({"all": 2.5})
    assert solved.request("all", slice(1)).guidance.scale == 2.5
    assert solved.hash == made.hash
    assert solved.unsolved == []
    assert plan.tuning == ()  # nothing is solved there
    texts = ["a red ball", "a cyan box", "a cross", "a triangle"]
    own = make_plan(study(tmp_path, tiny_model, **MATCHED, prompts=texts), unsampled)
    assert own.tuning == own.captions[:3]


def test_scales_are_solved_after_those_that_they_match(unsampled, tmp_path, tiny_model):
    settings = [
        {"name": "last", "energy_of": "middle", "cfg_channels": "all"},
        {"name": "middle", "energy_of": "first", "cfg_channels": 2},
        {"name": "first", "cfg_scale": 3},
    ]
    primary = {"metric": "joint", "baseline": "first", "against": "last"}
    made = make_plan(study(tmp_path, tiny_model, settings=settings, primary=primary), unsampled)
    assert made.unsolved == ["middle", "last"]


def test_a_plan_of_the_first_format_keeps_its_hash_and_scale():
    stored = {key: value for key, value in FIRST.items() if key != "hash"}
    plan = Plan.model_validate(stored)
    assert plan.hash == FIRST["hash"]
    assert plan.bench == "world-1"  # its metrics mean what they meant
    assert plan.content == stored
    assert plan.unsolved == []
    assert plan.request("matched", slice(1)).guidance.scale == 1.972
    assert Plan.model_validate(stored | {"of_the_world": False}).bench == "video"


def test_a_plan_of_the_second_format_keeps_its_hash_and_its_metrics(plan):
    stored = plan.content | {"format": "guidon study 2"}
    second = Plan.model_validate(stored)
    assert (second.bench, second.content, second.hash) == ("world-1", stored, hash_settings(stored))
    assert "outline_error" not in second.metrics
    assert "size" not in second.metrics["joint"].meaning
    assert second.differences(plan) == plan.differences(second) == []  # its folder is gone on with, by its metrics
    assert plan.model_copy(update={"bench": "video"}).differences(second) == ["bench"]
    assert Plan.model_validate(stored | {"bench": "video"}).bench == "video"


def test_a_plan_of_the_first_format_is_the_same_study_as_one_of_this(tmp_path):
    """Written by guidon 0.1.0 of this very study, with the shipped model."""
    settings = [
        {"name": "first three", "cfg_scale": 2, "cfg_channels": 3},
        {"name": "matched", "energy_of": "first three", "cfg_channels": "all"},
        {"name": "rotated", "cfg_scale": 2, "cfg_channels": 3, "rotation": 1},
    ]
    primary = {"metric": "colour_drift", "baseline": "first three", "against": "matched"}
    same = {"title": "With energy_of", "prompts": 3, "seeds": 2, "steps": 4, "timing": "constant", "block": 4}
    first = Plan.model_validate({key: value for key, value in FIRST.items() if key != "hash"})
    small = guidon.load("guidon-small", device="cpu")
    made = make_plan(study(tmp_path, "guidon-small", settings=settings, primary=primary, **same), small, threads=2)
    made = made.model_copy(update={"torch": first.torch, "weights": first.weights})  # of that day
    assert made.differences(first) == first.differences(made) == []
    settings[1]["cfg_channels"] = 2
    other = make_plan(study(tmp_path, "guidon-small", settings=settings, primary=primary, **same), small, threads=2)
    assert "settings" in other.differences(first)


def test_plans_differ_where_they_ask_for_something_else(plan, unsampled, tmp_path, tiny_model):
    def differences(**changes):
        return make_plan(study(tmp_path, tiny_model, **changes), unsampled, threads=1).differences(plan)

    assert differences() == []
    assert differences(seeds=3, title="other") == ["title", "seeds"]
    assert differences(seed=1) == ["settings"]
    assert differences(settings=[*STUDY["settings"][::-1]]) == ["settings"]  # their order numbers the folders
    assert plan.model_copy(update={"threads": 2, "torch": "1.0"}).differences(plan) == ["threads", "torch"]
    assert plan.model_copy(update={"format": FIRST_FORMAT}).differences(plan) == []
    matched = make_plan(study(tmp_path, tiny_model, **MATCHED), unsampled, threads=1)
    given = matched.with_scales({"all": 2.0})
    given = given.model_copy(update={"settings": {name: given.choices(name) for name in given.settings}})
    assert (
        matched.differences(given) == given.differences(matched) == ["settings"]
    )  # a scale that was given, not solved
    assert matched.differences(given.model_copy(update={"format": FIRST_FORMAT})) == []


def test_a_model_of_another_bench_brings_its_own_prompts(pipe, tmp_path, tiny_model):
    facts = dataclasses.replace(pipe.model.facts, bench="video", read_prompts=as_they_are)  # it takes any text
    model = dataclasses.replace(pipe.model, facts=facts)
    other = type(pipe)(pipe.preset, model, pipe.device)
    with pytest.raises(InputError, match="'video' has no captions with exact truth: give prompts"):
        make_plan(study(tmp_path, tiny_model), other)
    primary = STUDY["primary"] | {"metric": "sharpness"}
    made = make_plan(study(tmp_path, tiny_model, prompts=["a lighthouse", "a corgi"], primary=primary), other)
    assert (made.bench, "sharpness" in made.metrics, "joint" in made.metrics) == ("video", True, False)
    assert make_plan(study(tmp_path, tiny_model, split="L1"), pipe).captions == pipe_captions("L1", 3)


def pipe_captions(split, count):
    return find_bench("world").captions(split, EVALUATION_SEED, count)


def test_classes_are_prompts(tmp_path):
    assert study(tmp_path, "dit-xl-2-256", prompts=[207, 360]).prompts == ("207", "360")


def test_an_outline_tells_cells_cost_and_what_can_be_detected(unsampled, tmp_path, tiny_model):
    made = make_plan(study(tmp_path, tiny_model, **MATCHED), unsampled)
    text = outline(made, 30.0)
    assert "2 settings x 3 prompts x 2 seeds = 12 cells, about 6 minutes here" in text
    assert "about 1 minute here" in outline(made, 7.0)
    assert "all: the scale that adds the energy of 'three'; it is solved at the start of the run" in text
    assert "with 3 prompts no effect can reach p = 0.05 (an effect of d_z = 0.3 needs 90 prompts)" in text
    many = made.model_copy(update={"captions": tuple(map(str, range(96)))})
    assert "with 96 prompts, effects of d_z = 0.29 or more are detected with 80% power" in outline(many, 0.001)
    assert "in points" not in text + outline(many, 0.001)  # the primary metric is no share
    primary = made.primary.model_copy(update={"metric": "joint"})
    few = made.model_copy(update={"captions": many.captions[:12], "seeds": 1, "primary": primary})
    assert outline(few, 0.001).endswith(
        "in points: a difference in all as asked (joint) must be at least about 60 points to be detected with 80% power"
    )


ENERGY = {"name": "m", "energy_of": "scale 3, channels 3"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": []}, "settings"), ({"seeds": 0}, "seeds"), ({"prompts": 0}, "prompts"), ({"promts": 3}, "did you mean 'prompts'"),
        ({"settings": [{"cfg_scal": 2}]}, "did you mean 'cfg_scale'"), ({"settings": [{"grid": {}}]}, "a grid is empty"),
        ({"settings": [{"grid": {"cfg_scale": []}}]}, "the grid's cfg_scale is empty"),
        ({"settings": [{"grid": {"cfg_scael": [1]}}]}, "did you mean 'cfg_scale'"),
        ({"settings": [{"cfg_scale": 1}, {"cfg_scale": 1}]}, "two settings are called 'no guidance'"),
        ({"settings": [{"cfg_scale": 2, "guidance": "apgg"}], "primary": None}, "primary"),
        ({"primary": STUDY["primary"] | {"metric": "jont"}}, "did you mean 'joint'"),
        ({"primary": STUDY["primary"] | {"against": "scale 4"}}, "no setting is called 'scale 4'"),
        ({"primary": STUDY["primary"] | {"against": "scale 3, all channels"}}, "in reports: give 'scale 3, channels all'"),
        ({"primary": STUDY["primary"] | {"baseline": "scale 3, first 3 channels"}}, "give 'scale 3, channels 3'"),
        ({"primary": STUDY["primary"] | {"against": "scale 3, channels 3"}}, "compared with itself"),
        ({"prompts": ["a red circle", "a red circle"]}, "given twice"),
        ({"prompts": ["a lighthouse"]}, "asks for nothing that the world has"),
        ({"split": "L9"}, "split 'L9' does not exist; valid: train, L0"),
        ({"settings": [*STUDY["settings"], {"name": "m", "energy_of": "no guidance"}]}, "guides nothing"),
        ({"settings": [*STUDY["settings"], {"name": "m", "energy_of": "k"}]}, "which is no setting"),
        ({"settings": [*STUDY["settings"], ENERGY | {"energy_of": "scale 3, all channels"}]}, "give 'scale 3, channels all'"),
        ({"settings": [*STUDY["settings"], ENERGY | {"energy_of": "m"}]}, "'m' matches its own energy"),
        ({"settings": [*STUDY["settings"], ENERGY | {"cfg_scale": 2}]}, "gives cfg_scale and energy_of: choose one"),
        ({"settings": [*STUDY["settings"], ENERGY | {"guidance": "apg"}]}, "which only the rule cfg has, not apg"),
        ({"settings": [*STUDY["settings"], {"cfg_channels": 9}]}, "cfg_channels '9'"),
        ({"settings": [*STUDY["settings"], {"guidance": "apgg"}]}, "did you mean 'apg'"),
        ({"sources": {"vea": "x"}}, "did you mean 'vae'"),
    ],
)  # fmt: skip
def test_bad_studies_are_refused_in_one_line_on_the_command_line(tmp_path, tiny_model, monkeypatch, changes, message):
    path = write(tmp_path / "study.yaml", model=str(tiny_model), **changes)
    words = ["guidon", "study", "run", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    error = io.StringIO()
    monkeypatch.setattr(sys, "argv", words)
    with redirect_stderr(error), pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in error.getvalue()
    assert error.getvalue().count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_weak_model_that_no_setting_asks_is_refused(tmp_path, tiny_model, monkeypatch):
    test_bad_studies_are_refused_in_one_line_on_the_command_line(
        tmp_path,
        tiny_model,
        monkeypatch,
        {"sources": {"weak": str(tiny_model)}},
        "no setting has guidance: autoguidance",
    )


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "studies").glob("*.yaml")))
def test_the_ready_studies_are_valid(name, unsampled):
    plan = make_plan(load_study(ROOT / "studies" / name), unsampled)
    assert len(plan.settings) >= 3
    assert len(plan.captions) >= 12


def test_texts_that_no_file_can_hold_are_refused(tmp_path, tiny_model, pipe):
    with pytest.raises(InputError, match=r"a text holds '\\ud800', which is no character"):
        make_plan(study(tmp_path, tiny_model).model_copy(update={"title": "a\ud800b"}), pipe)


def test_a_study_is_counted_before_it_is_expanded(tmp_path, tiny_model, monkeypatch):
    grid = {"cfg_scale": [*range(100)], "steps": [*range(1, 101)], "seed": [0]}
    with pytest.raises(
        InputError, match=r"10,000 settings x 3 prompts x 40 seeds = 1,200,000 cells need at least 29\.5 GB"
    ):
        study(tmp_path, tiny_model, settings=[{"grid": grid}], seeds=40)
    with pytest.raises(InputError, match=r"the limit is 10,000 settings: .* GUIDON_MAX_SETTINGS"):
        study(tmp_path, tiny_model, settings=[{"cfg_scale": 1}, {"grid": grid}])
    monkeypatch.setenv("GUIDON_MAX_CELLS", "17")
    with pytest.raises(InputError, match=r"18 cells .* the limit is 17 cells"):
        study(tmp_path, tiny_model)
    monkeypatch.setenv("GUIDON_MAX_CELLS", "18")
    assert study(tmp_path, tiny_model).seeds == 2


def test_a_chain_of_energies_has_a_limit(tmp_path, tiny_model, pipe):
    chain = [{"name": "0", "cfg_scale": 3}, *({"name": str(k), "energy_of": str(k - 1)} for k in range(1, 200))]
    primary = {"metric": "law_residual", "baseline": "0", "against": "1"}
    with pytest.raises(InputError, match="through more than 100 settings"):
        make_plan(study(tmp_path, tiny_model, settings=chain, primary=primary), pipe)


@pytest.mark.parametrize("key", ["prompts", "settings", "primary"])
def test_a_key_that_is_missing_is_shown_by_an_example_that_can_be_copied(tmp_path, key):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in STUDY.items() if name != key}))
    with pytest.raises(InputError, match=f"the key '{key}' is missing, as in {key}: ") as error:
        load_study(path)
    shown = str(error.value).partition(" is missing, as in ")[2].partition(", or a list")[0]
    path.write_text(yaml.safe_dump(STUDY | yaml.safe_load(shown)))
    load_study(path)


def test_a_setting_may_be_the_fast_one_of_the_model():
    planner = Planner.find("guidon-small")
    values = {
        "prompts": 2, "sampler": "ddim", "steps": 7, "timing": "constant", "decode_dtype": "bf16",
        "settings": [{"name": "own"}, {"name": "fast", "fast": True}, {"name": "spared", "reuse": 2, "spacing": "karras"}],
        "primary": {"metric": "joint", "baseline": "own", "against": "fast"},
    }  # fmt: skip
    found = check_study(Study(**values), planner).settings
    fast = planner.preset.fast
    assert (found["fast"]["sampler"], found["fast"]["steps"]) == (fast.sampler, fast.steps)
    assert found["fast"]["timing"] == fast.timing
    assert found["fast"]["decode_dtype"] == found["own"]["decode_dtype"] == "bf16"
    assert (found["spared"]["reuse"], found["spared"]["spacing"], found["spared"]["steps"]) == (2, "karras", 7)
    assert not {"reuse", "spacing"} & found["own"].keys()
    values["settings"][1]["steps"] = 3
    with pytest.raises(InputError, match="the setting 'fast': fast decides steps itself"):
        check_study(Study(**values), planner)
