"""Guidance by channel as a diffusers guider, in classic and in modular pipelines."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ClassifierFreeGuidance, HunyuanVideo15Pipeline
from torch import Tensor

from forks import in_fork
from guidon.bridges.diffusers.guider import ChannelGuidance
from guidon.core.errors import InputError
from guidon.diffusion import NoiseLevel
from guidon.guidance import START, Guidance
from tiny_pipelines import PIPELINES

FAMILIES = {tiny.name: tiny for tiny in PIPELINES}
LATENTS = {"latents": torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))}
SDXL: dict[str, Any] = {"parameterization": "eps", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
# the family, its module and core blocks, the guider's settings, and inputs that a tiny pipeline does not state
MODULAR: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "wan-2.1": ("wan.modular_blocks_wan", "WanCoreDenoiseStep", {}, LATENTS),
    "ltx": ("ltx.modular_blocks_ltx", "LTXCoreDenoiseStep", {"axis": -1}, {}),
    "sd3": ("stable_diffusion_3.modular_blocks_stable_diffusion_3", "StableDiffusion3T2ICoreDenoiseStep", {}, {}),
    "sdxl": (
        "stable_diffusion_xl.modular_blocks_stable_diffusion_xl", "StableDiffusionXLCoreDenoiseStep", SDXL, {}
    ),
    "qwen-image": (
        "qwenimage.modular_blocks_qwenimage", "QwenImageCoreDenoiseStep", {"axis": -1, "patch": 2}, {}
    ),
    "flux-2-klein": (
        "flux2.modular_blocks_flux2_klein_base", "Flux2KleinBaseCoreDenoiseStep", {"axis": -1, "patch": 2}, {}
    ),
    "z-image": ("z_image.modular_blocks_z_image", "ZImageCoreDenoiseStep", {}, {}),
    "hunyuan-video-1.5": (
        "hunyuan_video1_5.modular_blocks_hunyuan_video1_5", "HunyuanVideo15CoreDenoiseStep", {},
        {"latents": torch.randn(1, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0))},
    ),
}  # fmt: skip


class Watched(ChannelGuidance):
    """Keeps what it was given and what it gave at every step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[float, Tensor, Tensor | None, Tensor]] = []

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> Any:
        output = super().forward(pred_cond, pred_uncond)
        self.seen.append((float(self._timestep), pred_cond, pred_uncond, output.pred))
        return output


def blocks_of(name: str) -> Any:
    module, blocks, _, _ = MODULAR[name]
    return getattr(import_module(f"diffusers.modular_pipelines.{module}"), blocks)()


def inputs_of(name: str, blocks: Any, steps: int = 2) -> dict[str, Any]:
    """The inputs that a tiny pipeline and ``MODULAR`` state, of those that the blocks take."""
    names = {parameter.name for parameter in blocks.inputs}
    stated = FAMILIES[name].arguments(steps=steps) | MODULAR[name][3]
    return {key: value for key, value in stated.items() if key in names}


def modular(name: str, guider: Any, tiny_pipe: Any = None) -> tuple[Any, Tensor, list[Tensor]]:
    """A modular pipeline of a family, its final latents, and what its scheduler was given at every step."""
    made, blocks = tiny_pipe or FAMILIES[name].make(), blocks_of(name)
    pipe = blocks.init_pipeline()
    given = {c.name: getattr(made, c.name) for c in blocks.expected_components if hasattr(made, c.name)}
    pipe.update_components(**given | {"guider": guider})
    received: list[Tensor] = []
    step = type(made.scheduler).step

    def watched(self: Any, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        received.append(model_output.clone())
        return step(self, model_output, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(made.scheduler), "step", watched)
        return pipe, pipe(**inputs_of(name, blocks), output="latents"), received


def classic(pipe: Any, guider: Any, steps: int = 3) -> Tensor:
    tiny = FAMILIES["hunyuan-video-1.5"]
    pipe.guider = guider
    return tiny.latents(pipe, pipe(**tiny.arguments(steps=steps), return_dict=False))


# in pipelines


TRIED = ("wan-2.1", "ltx", "sdxl", "qwen-image")
"""Channels on the second axis and on the last, a guider that is enabled, packed channels and a normalisation."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in TRIED else pytest.mark.long) for name in MODULAR]
)
def test_a_modular_pipeline_guides_the_chosen_channels(name: str) -> None:
    _, _, settings, _ = MODULAR[name]
    axis, features = settings.get("axis", 1), settings.get("patch", 1) ** 2
    _, own, _ = modular(name, ClassifierFreeGuidance(guidance_scale=3.0))
    _, every, _ = modular(name, ChannelGuidance(3.0, "all", **settings))
    assert torch.equal(every, own)
    _, unguided, _ = modular(name, ClassifierFreeGuidance(guidance_scale=1.0))  # SDXL enables its guider
    assert torch.equal(modular(name, ChannelGuidance(3.0, "none", **settings))[1], unguided)
    assert not torch.allclose(own, unguided)

    watched = Watched(3.0, "only:1", **settings)
    _, _, received = modular(name, watched)
    assert len(watched.seen) == len(received) == 2
    for (_, cond, uncond, pred), got in zip(watched.seen, received, strict=True):
        assert uncond is not None
        full = ClassifierFreeGuidance(guidance_scale=3.0).forward(cond, uncond).pred
        guided = slice(features, 2 * features)
        assert torch.equal(pred.movedim(axis, 0)[guided], full.movedim(axis, 0)[guided])
        for rest in (slice(0, features), slice(2 * features, None)):
            assert torch.equal(pred.movedim(axis, 0)[rest], cond.movedim(axis, 0)[rest])
        assert torch.equal(got, pred)  # Qwen-Image's normalisation too leaves it alone


def test_two_experts_have_a_guider_each() -> None:
    made = FAMILIES["wan-2.2"].make()
    blocks = import_module("diffusers.modular_pipelines.wan.modular_blocks_wan22").Wan22CoreDenoiseStep()

    def run(first: Any, second: Any) -> Tensor:
        pipe = blocks.init_pipeline()
        networks = {"transformer": made.transformer, "transformer_2": made.transformer_2}
        pipe.update_components(scheduler=made.scheduler, guider=first, guider_2=second, **networks)
        names = {parameter.name for parameter in blocks.inputs}
        stated = FAMILIES["wan-2.2"].arguments(steps=4) | LATENTS
        return pipe(**{key: value for key, value in stated.items() if key in names}, output="latents")

    own = run(ClassifierFreeGuidance(guidance_scale=3.0), ClassifierFreeGuidance(guidance_scale=2.0))
    assert torch.equal(run(ChannelGuidance(3.0, "all"), ChannelGuidance(2.0, "all")), own)
    first, second = Watched(3.0, 2), Watched(2.0, "only:3")
    run(first, second)
    assert len(first.seen) + len(second.seen) == 4
    for guider, guided in ((first, [0, 1]), (second, [3])):
        assert guider.seen
        for _, cond, _, pred in guider.seen:
            changed = [channel for channel in range(4) if not torch.equal(pred[:, channel], cond[:, channel])]
            assert changed == guided


def test_ltx_2_guides_video_and_audio_by_a_guider_each() -> None:
    tiny = FAMILIES["ltx-2"]
    made, stated = tiny.make(), tiny.arguments(steps=3)
    blocks = import_module("diffusers.modular_pipelines.ltx2.modular_blocks_ltx2").LTX2CoreDenoiseStep()
    inputs: dict[str, Any] = {
        "height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 3, "batch_size": 1, "dtype": torch.float32,
        "latents": torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0)),
        "audio_latents": torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(1)),
    }  # fmt: skip
    for prefix in ("", "negative_"):
        mask = stated[f"{prefix}prompt_attention_mask"]
        video, audio, kept = made.connectors(stated[f"{prefix}prompt_embeds"], mask, padding_side="left")
        inputs[f"{prefix}connector_prompt_embeds"] = video
        inputs[f"{prefix}connector_audio_prompt_embeds"] = audio
        inputs[f"{prefix}connector_attention_mask"] = kept

    def run(guider: Any, audio_guider: Any) -> Tensor:
        pipe = blocks.init_pipeline()
        given = {name: getattr(made, name) for name in ("scheduler", "transformer", "audio_vae")}
        pipe.update_components(**given, guider=guider, audio_guider=audio_guider)
        return pipe(**inputs, output="latents")

    def ours(channels: Any, rule: str = "cfg") -> Watched:
        return Watched(3.0, channels, rule, axis=-1, parameterization="x0")

    def theirs() -> Any:  # without its two further branches
        from diffusers.guiders import LTX2Guidance  # diffusers 0.41 and later

        return LTX2Guidance(guidance_scale=3.0, stg_scale=0.0, modality_scale=1.0, guidance_rescale=0.0)

    own = run(theirs(), theirs())
    torch.testing.assert_close(run(ours("all"), ours("all")), own, rtol=1e-5, atol=1e-5)
    video, audio = ours("only:1"), ours([2, 5], "apg")  # x_0 is what APG works in: it needs no latents
    run(video, audio)
    for guider, guided in ((video, [1]), (audio, [2, 5])):
        assert len(guider.seen) == 3
        for _, cond, _, pred in guider.seen:
            different = (pred != cond).any(dim=(0, 1))
            assert different.nonzero().flatten().tolist() == guided


@pytest.mark.parametrize("name", ["wan-2.1", "sdxl", "qwen-image", "hunyuan-video-1.5"])
@pytest.mark.parametrize("rule", ["apg:norm_limit=1", "cfg-zero"])
def test_a_rule_that_looks_at_the_latents_is_that_of_guidance(name: str, rule: str) -> None:
    _, _, settings, _ = MODULAR[name]
    tiny = FAMILIES[name]
    pipe = tiny.make()
    network = getattr(pipe, tiny.networks[0])
    given: list[Tensor] = []

    def watch(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((args[0] if args else kwargs["hidden_states"]).clone())

    handle = network.register_forward_pre_hook(watch, with_kwargs=True)
    guider = Watched([2.0] * 2 + [3.0] + [1.0] * (tiny.channels - 3), rule=rule, **settings)
    _, _, received = modular(name, guider, tiny_pipe=pipe)
    handle.remove()
    assert not network._forward_pre_hooks
    guidance, memory = Guidance([2.0] * 2 + [3.0] + [1.0] * (tiny.channels - 3), rule=rule), START
    for k, (timestep, cond, uncond, pred) in enumerate(guider.seen):
        assert uncond is not None
        if name == "sdxl":
            table = torch.as_tensor(1 - np.linspace(1e-4, 0.02, 1000)).cumprod(0)
            level = NoiseLevel(
                timestep,
                float(table[int(timestep)] ** 0.5),
                float((1 - table[int(timestep)]) ** 0.5),
                1 - timestep / 999,
            )
        else:
            level = NoiseLevel(timestep, 1 - timestep / 1000, timestep / 1000, 1 - timestep / 1000)

        def channels_first(tensor: Tensor) -> Tensor:
            return tensor if name != "qwen-image" else tensor.unflatten(2, (-1, 4)).permute(0, 2, 1, 3).flatten(2)

        x = given[2 * k][:, : cond.shape[1]]
        expected, memory = guidance.combine(
            channels_first(cond), channels_first(uncond), channels_first(x), level, memory,
            parameterization=settings.get("parameterization", "flow"),
        )  # fmt: skip
        torch.testing.assert_close(channels_first(pred), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(received[k], pred)
        assert torch.equal(channels_first(pred)[:, 3:], channels_first(cond)[:, 3:])


def test_a_classic_pipeline_takes_it() -> None:
    pipe = FAMILIES["hunyuan-video-1.5"].make()
    own = classic(pipe, ClassifierFreeGuidance(guidance_scale=3.0))
    assert torch.equal(classic(pipe, ChannelGuidance(3.0, "all")), own)
    some = classic(pipe, ChannelGuidance(3.0, 2))
    assert not torch.allclose(some, own)
    assert torch.equal(classic(pipe, ChannelGuidance([3.0, 3.0, 1.0, 1.0])), some)


def test_a_compiled_network_gives_the_same() -> None:
    """One that torch traces whole. The second guider puts a hook on it."""
    made = FAMILIES["wan-2.1"].make()
    guiders = [ChannelGuidance(3.0, 2), ChannelGuidance(3.0, 2, "apg")]
    plain = [modular("wan-2.1", guider, made)[1] for guider in guiders]
    made.transformer.compile(backend="eager")
    for guider, latents in zip(guiders, plain, strict=True):
        assert torch.equal(modular("wan-2.1", guider, made)[1], latents)


def test_a_second_run_forgets_the_first() -> None:
    pipe = FAMILIES["hunyuan-video-1.5"].make()
    guider = ChannelGuidance(3.0, 2, "apg:momentum=0.9,norm_limit=0")
    first = classic(pipe, guider)
    assert torch.equal(classic(pipe, guider), first)
    # a guider whose last step does not guide must still ask for the negative prompt of the next run
    early = ChannelGuidance(3.0, 2, stop=0.5)
    assert torch.equal(classic(pipe, early), classic(pipe, early))
    assert early.num_conditions == 2


# in a process that has just imported the guider. Weights that were read from a file lie differently in memory, which
# changes the rounding of matrix products: the run that is compared is one of the file's weights too, with the guider that
# was never in a file


def loaded_classic(folder: str) -> Any:
    missing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = HunyuanVideo15Pipeline.from_pretrained(folder, **missing)
    pipe.vision_num_semantic_tokens = 2  # as in the tiny pipeline; no file holds it
    return pipe


def run_classic(pipe: Any) -> Tensor:
    return classic(pipe, pipe.guider)


def loaded_modular(folder: str) -> Any:
    pipe = blocks_of("sd3").init_pipeline(folder)
    pipe.load_components()
    return pipe


def run_modular(pipe: Any) -> Tensor:
    return pipe(**inputs_of("sd3", pipe.blocks), output="latents")


def test_it_is_saved_with_the_pipeline(tmp_path: Path) -> None:
    """With a classic pipeline and with a modular one."""
    folders = {kind: str(tmp_path / kind) for kind in ("classic", "modular")}
    for kind, folder in folders.items():
        guider = ChannelGuidance([2.0, 1.0, 3.0] + [1.0] * (1 if kind == "classic" else 13), rule="apg", start=0.1)
        if kind == "classic":
            pipe = FAMILIES["hunyuan-video-1.5"].make()
            pipe.guider = guider
            pipe.save_pretrained(folder)
            again = loaded_classic(folder)
            again.guider = guider
            latents = run_classic(again)
        else:
            pipe, _, _ = modular("sd3", guider)
            pipe.save_pretrained(folder, overwrite_modular_index=True)
            again = loaded_modular(folder)
            again.update_components(guider=guider)
            latents = run_modular(again)
        torch.save(latents, f"{folder}/latents.pt")

    def load() -> None:
        guider = import_module("guidon.bridges.diffusers.guider")  # diffusers imports no module of others on its own
        for kind, load, run in (("classic", loaded_classic, run_classic), ("modular", loaded_modular, run_modular)):
            pipe = load(folders[kind])
            assert type(pipe.guider) is guider.ChannelGuidance, kind
            assert guider.ChannelGuidance is not ChannelGuidance
            assert torch.equal(run(pipe), torch.load(f"{folders[kind]}/latents.pt")), kind

    in_fork(load, without=("guidon",))


# alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_channels_are_classifier_free_guidance_in_every_dtype(dtype: torch.dtype) -> None:
    cond, uncond = torch.randn(2, 2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    theirs = ClassifierFreeGuidance(guidance_scale=5.3).forward(cond, uncond)
    ours = ChannelGuidance(5.3, "all").forward(cond, uncond)
    assert torch.equal(ours.pred, theirs.pred)
    assert ours.pred.dtype == dtype
    assert torch.equal(ours.pred_cond, theirs.pred_cond)
    some = ChannelGuidance([5.3, 1.0, 5.3, 2.0]).forward(cond, uncond).pred
    assert torch.equal(some[:, [0, 2]], theirs.pred[:, [0, 2]])
    assert torch.equal(some[:, 1], cond[:, 1])
    assert torch.equal(some[:, 3], ClassifierFreeGuidance(guidance_scale=2.0).forward(cond, uncond).pred[:, 3])


def test_it_runs_one_branch_where_it_does_not_act() -> None:
    def conditions(guider: Any, timesteps: list[float]) -> list[int]:
        found = []
        for step, timestep in enumerate(timesteps):
            guider.set_state(step, len(timesteps), torch.tensor(timestep))
            found.append(len(guider.prepare_inputs({})))
            guider.forward(*torch.ones(found[-1], 1, 4, 2, 2).unbind())
        return found

    course = [1000.0, 750.0, 500.0, 250.0]
    assert conditions(ChannelGuidance(3.0, 2), course) == [2, 2, 2, 2]
    assert conditions(ChannelGuidance(3.0, 2, enabled=False), course) == [1, 1, 1, 1]
    assert conditions(ChannelGuidance(1.0, 2), course) == [1, 1, 1, 1]
    assert conditions(ChannelGuidance(3.0, "none"), course) == [1, 1, 1, 1]
    assert conditions(ChannelGuidance(3.0, 2, timing="interval:0.2,0.6"), course) == [1, 2, 2, 1]
    assert conditions(ChannelGuidance(3.0, 2, timing="oscillation:1"), course) == [2, 1, 2, 1]
    ours, theirs = ChannelGuidance(3.0, 2, start=0.4, stop=0.9), ClassifierFreeGuidance(3.0, start=0.4, stop=0.9)
    assert conditions(ours, course) == conditions(theirs, course) == [1, 2, 2, 1]


def test_a_ramp_weights_the_scale() -> None:
    cond, uncond = torch.randn(2, 1, 4, 2, 2)
    for settings, quarter in (({}, 750.0), (SDXL, 749.25)):  # timesteps of pure noise: 1000, and 999
        guider = ChannelGuidance(3.0, 2, timing="linear", **settings)
        guider.set_state(0, 2, torch.tensor(quarter))
        assert torch.equal(guider.forward(cond, uncond).pred[:, :2], (uncond + 2.0 * (cond - uncond))[:, :2])


def test_the_second_guider_of_two_begins_a_run_in_the_middle() -> None:
    guider = ChannelGuidance(3.0, 2, "apg:momentum=0.5,norm_limit=0")
    cond, uncond = torch.randn(2, 1, 4, 2, 2)

    def run(steps: tuple[int, ...] = (5, 6, 7), of: int = 8, begin: float = 500.0) -> list[Tensor]:
        found = []
        for step in steps:
            guider.set_state(step, of, torch.tensor(begin - step))
            guider._noisy = torch.ones(1, 4, 2, 2)
            found.append(guider.forward(cond, uncond).pred)
        return found

    first = run()
    assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(run((5,))[0], run((5,))[0])  # runs of one step
    long, late = ([run(*of_run) for _ in range(2)][1][0] for of_run in (((10, 11), 20), ((6, 7),)))
    run((2, 3), of=4)
    assert torch.equal(run((10, 11), of=20)[0], long)  # more steps than in the run before
    run((2, 3), begin=480.0)
    assert torch.equal(run((6, 7))[0], late)  # more noise than in the step before


def test_settings_survive_a_file(tmp_path: Path) -> None:
    guider = ChannelGuidance(
        (2.0, 1.0), "only:0", "rescale:phi=0.5", "interval:0,0.5", axis=-1, patch=2, start=0.1, stop=0.9, **SDXL
    )
    guider.save_pretrained(tmp_path)
    again = ChannelGuidance.from_pretrained(tmp_path)
    assert dict(again.config) == dict(guider.config)
    assert again.guidance == guider.guidance
    assert guider.new(scale=4.0, channels=1).guidance == Guidance(4.0, 1, "rescale:phi=0.5", "interval:0,0.5")
    assert "channels" not in ChannelGuidance(2.0).config
    assert ChannelGuidance().guidance == Guidance(7.5)
    assert ChannelGuidance.of(guider.guidance, axis=-1).guidance == guider.guidance
    assert "scale" in repr(guider)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": -1}, "at least 0"),
        ({"channels": "x"}, "cannot be read"),
        ({"rule": "apgg"}, "did you mean 'apg'"),
        ({"rule": "perp-neg"}, "perp-neg needs another branch"),
        ({"rule": "three-way"}, "three-way needs another branch"),
        ({"rule": "stg"}, "stg needs another branch"),
        ({"rule": "autoguidance"}, "autoguidance needs another branch"),
        ({"rule": "cfg++", "scale": 0.6}, "level of the next step"),
        ({"parameterization": "noise"}, "parameterization 'noise' does not exist; valid: eps"),
        ({"parameterization": "velocity"}, "valid: v .alpha eps"),
        ({"parameterization": "epsilon"}, "predicts eps has a noise schedule"),
        ({"parameterization": "eps"}, "give beta_schedule"),
        ({"timing": "interval:1,0"}, "backwards"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChannelGuidance(**arguments)


def test_tensors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="axis=-1"):
        ChannelGuidance(3.0, 2).forward(*torch.ones(2, 1, 24, 64))
    with pytest.raises(InputError, match="patches of 2x2"):
        ChannelGuidance(3.0, 2, axis=-1, patch=2).forward(*torch.ones(2, 1, 24, 66))
    with pytest.raises(InputError, match="patches of 2x2"):
        ChannelGuidance(3.0, 2, patch=2).forward(*torch.ones(2, 1, 16, 2, 2))
    with pytest.raises(InputError, match="more channels than the model has"):
        ChannelGuidance(3.0, 5).forward(*torch.ones(2, 1, 4, 2, 2))
    with pytest.raises(InputError, match="set_state"):
        ChannelGuidance(3.0, 2, "apg").forward(*torch.ones(2, 1, 4, 2, 2))
    guider = ChannelGuidance(3.0, 2, "apg")
    guider.set_state(0, 2, torch.tensor(500.0))
    with pytest.raises(InputError, match=r"needs the noisy latents.*guidon\.apply"):
        guider.forward(*torch.ones(2, 1, 4, 2, 2))
    guider.set_state(1, 2, torch.tensor(1500.0))
    with pytest.raises(InputError, match="timestep 1500 is beyond num_train_timesteps 1000"):
        guider.forward(*torch.ones(2, 1, 4, 2, 2))
    with pytest.raises(InputError, match="have no height and width"):
        ChannelGuidance(3.0, 2, "fdg", axis=-1).forward(*torch.ones(2, 1, 24, 8))


def test_a_network_that_predicts_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="UNet2DConditionModel predicts eps or v"):
        modular("sdxl", ChannelGuidance(3.0, 2, "cfg-zero"))


def test_an_error_of_the_network_leaves_no_hook() -> None:
    network, guider = torch.nn.Identity(), ChannelGuidance(3.0, 2, "apg")
    for step in (0, 0):  # the first run fails before cleanup_models
        guider.set_state(step, 2, torch.tensor(500.0))
        guider.prepare_models(network)
    assert len(network._forward_pre_hooks) == 1
    network([torch.ones(4, 1, 2, 2)])  # as Z-Image is given its latents, a list of samples
    guider.cleanup_models(network)
    assert not network._forward_pre_hooks
    assert guider.is_conditional
    guider.prepare_models(network)
    assert not guider.is_conditional
    assert guider.forward(*torch.ones(2, 1, 4, 2, 2)).pred.shape == (1, 4, 2, 2)


def test_an_error_in_a_step_without_guidance_does_not_spoil_the_next_run() -> None:
    pipe = FAMILIES["hunyuan-video-1.5"].make()
    guider = ChannelGuidance(3.0, 2, start=0.4)
    wanted = classic(pipe, guider)
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        classic(pipe, guider)
    handle.remove()
    assert guider.num_conditions == 2  # by which the next run knows whether to encode the negative prompt
    assert torch.equal(classic(pipe, guider), wanted)


def test_an_embedded_scale_is_refused() -> None:
    with pytest.raises(InputError, match="channels cannot be chosen"):
        _ = ChannelGuidance(3.0).guidance_scale
