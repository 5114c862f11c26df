"""How each family of diffusers pipelines guides: all that ``apply`` must know of someone else's loop, in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...core.errors import InputError
from ...guidance import ChannelChoice
from .calls import PipelineCall
from .layouts import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    CHANNELS_THIRD,
    Layout,
    grid_of_ids,
    grid_of_shapes,
    grid_of_sizes,
)
from .source import Order, read_loop

ALL = ChannelChoice()


@dataclass(frozen=True)
class Family:
    """One family: pipelines that run their branches and combine them in the same way.

    The formula is uncond + s (cond - uncond), where s is what the pipeline's own argument says, plus ``offset``.
    """

    name: str
    pipelines: tuple[str, ...]
    """Class names."""
    order: Order
    """Both branches in one doubled batch, in this order; or two calls on the same latents, cond first."""
    networks: tuple[str, ...] = ("transformer",)
    """Components that denoise."""
    layout: Layout = CHANNELS_FIRST
    """Of the network's input and output."""
    argument: str = "guidance_scale"
    """The argument of a call that holds its scale."""
    offset: float = 0.0
    """1 for pipelines whose formula is cond + s (cond - uncond)."""
    sign: int = 1
    """-1 where the pipeline negates the network's output before its scheduler takes it."""
    guided: ChannelChoice = ALL
    """Channels that the pipeline itself guides."""
    solved: bool = False
    """Of two calls: the pipeline changes the conditional prediction before it makes the second. Then the unconditional
    one is solved for, so that the pipeline's formula gives what is wanted."""
    known: bool = True
    """False for one that was read off a pipeline's source code. It takes no rule."""
    denoised: Callable[[PipelineCall], Any] = lambda call: slice(None)
    """Which latent frames the scheduler steps, as an index of dimension 2; packed tokens on an unknown grid. An image
    gives the others, the pipeline drops their predictions, and no rule sees them."""
    mixes: Callable[[PipelineCall], str | None] = lambda call: None
    """Names what mixes channels after guidance in a call, beside ``guidance_rescale``; None where nothing does."""
    refuses: Callable[[PipelineCall], str | None] = lambda call: None
    """Says why a call cannot take a guidance of ours."""

    def given_scale(self, call: PipelineCall) -> float | None:
        """The scale that a call was given, in the pipeline's own form; None where it is not known."""
        return _number(call.get(self.argument))

    def present_scale(self, call: PipelineCall) -> float | None:
        """The scale s in use at the present step, in the form above: 1 is no guidance. None where it is not known."""
        if call.get("use_dynamic_cfg"):  # CogVideoX computes a step's scale after the network has run
            return None
        found = call.get("current_guidance_scale")  # Wan, Z-Image
        if found is None and self.argument == "guidance_scale":
            found = call.get("_guidance_scale")  # a callback may have changed it
        found = _number(call.get(self.argument) if found is None else found)
        return None if found is None else found + self.offset


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


_ALL_FRAMES, _AFTER_FIRST = slice(None), slice(1, None)


def _wan(call: PipelineCall) -> slice:
    return _ALL_FRAMES if call.get("first_frame_mask") is None else _AFTER_FIRST


def _hunyuan_video(call: PipelineCall) -> slice:
    return _AFTER_FIRST if call.get("image_condition_type") == "token_replace" else _ALL_FRAMES


def _kandinsky5(call: PipelineCall) -> slice:
    return _ALL_FRAMES if call.get("image") is None else _AFTER_FIRST


def _cosmos2(call: PipelineCall) -> Any:
    given = call.get("cond_indicator")  # (1 or B, 1, T, 1, 1), 1 where a frame is given
    return _ALL_FRAMES if given is None else given[0].flatten() == 0


def _ltx(call: PipelineCall) -> Any:
    mask, timestep = call.get("conditioning_mask"), call.get("t")
    if mask is None:
        return _ALL_FRAMES
    if call.get("is_conditioning_image_or_video"):  # a token is stepped once the step's noise is below its own
        return timestep / 1000 - 1e-6 < 1 - mask[0]
    return _AFTER_FIRST


def _qwen(call: PipelineCall) -> str | None:
    return "its own normalisation of every token"


def _lumina2(call: PipelineCall) -> str | None:
    return "cfg_normalization" if call.get("cfg_normalization") else None


def _z_image(call: PipelineCall) -> str | None:
    return "cfg_normalization" if call.get("_cfg_normalization") else None


def _other_guider(call: PipelineCall) -> str | None:
    name = type(call.pipeline.guider).__name__
    if name == "ClassifierFreeGuidance":
        return None
    return f"the pipeline's guider {name} guides in its own way: give it diffusers' ClassifierFreeGuidance"


def _guider_mixes(call: PipelineCall) -> str | None:
    if _other_guider(call):
        return f"its guider {type(call.pipeline.guider).__name__}"
    return "guidance_rescale of its guider" if call.pipeline.guider.guidance_rescale else None


_FLUX = Layout(axis=-1, patch=2, grid=grid_of_ids)
_LTX = Layout(axis=-1, grid=grid_of_sizes)
_QWEN = Layout(axis=-1, patch=2, grid=grid_of_shapes)

FAMILIES: tuple[Family, ...] = (
    Family("DiT", ("DiTPipeline",), "cond, uncond"),
    Family("PixArt", ("PixArtAlphaPipeline", "PixArtSigmaPipeline"), "uncond, cond"),
    Family("Latte", ("LattePipeline",), "uncond, cond"),
    Family("Allegro", ("AllegroPipeline",), "uncond, cond"),
    Family("Stable Diffusion", (
        "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline"), "uncond, cond", ("unet",)),
    Family("Stable Diffusion XL", (
        "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline"), "uncond, cond", ("unet",)),
    Family("Stable Diffusion 3", ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"), "uncond, cond"),
    Family("Kolors", ("KolorsPipeline",), "uncond, cond", ("unet",)),
    Family("AnimateDiff", ("AnimateDiffPipeline",), "uncond, cond", ("unet",)),
    Family("AuraFlow", ("AuraFlowPipeline",), "uncond, cond"),
    Family("HunyuanDiT", ("HunyuanDiTPipeline",), "uncond, cond"),
    Family("CogView 4", ("CogView4Pipeline",), "two calls"),
    Family("Sana", ("SanaPipeline", "SanaVideoPipeline"), "uncond, cond"),
    Family("CogVideoX", ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "ConsisIDPipeline"), "uncond, cond",
           layout=CHANNELS_THIRD),
    Family("Mochi", ("MochiPipeline",), "uncond, cond"),
    Family("LTX-Video", ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"), "uncond, cond",
           layout=_LTX, denoised=_ltx),
    Family("LTX-2", ("LTX2Pipeline",), "uncond, cond", layout=_LTX),
    Family(
        "Wan", ("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline"), "two calls",
        ("transformer", "transformer_2"), denoised=_wan,
    ),
    Family("SkyReels-V2", ("SkyReelsV2Pipeline",), "two calls"),
    Family("HunyuanVideo", ("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"), "two calls",
           argument="true_cfg_scale", denoised=_hunyuan_video),
    Family("HunyuanVideo 1.5", ("HunyuanVideo15Pipeline",), "two calls", argument="guider.guidance_scale",
           mixes=_guider_mixes, refuses=_other_guider),
    Family("Flux", ("FluxPipeline", "FluxImg2ImgPipeline", "FluxKontextPipeline"), "two calls", layout=_FLUX,
           argument="true_cfg_scale"),
    Family("Flux 2 Klein", ("Flux2KleinPipeline",), "two calls", layout=_FLUX),
    Family("Chroma", ("ChromaPipeline", "ChromaImg2ImgPipeline"), "two calls", layout=_FLUX),
    Family("Qwen-Image", ("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageEditPipeline"), "two calls",
           layout=_QWEN, mixes=_qwen, argument="true_cfg_scale"),
    Family("Z-Image", ("ZImagePipeline", "ZImageImg2ImgPipeline"), "cond, uncond", offset=1, sign=-1, mixes=_z_image),
    Family("Lumina", ("LuminaPipeline",), "cond, uncond", sign=-1, guided=ChannelChoice(count=3)),
    Family("Lumina 2", ("Lumina2Pipeline",), "two calls", sign=-1, mixes=_lumina2),
    Family("Kandinsky 5", ("Kandinsky5T2VPipeline", "Kandinsky5T2IPipeline", "Kandinsky5I2VPipeline"), "two calls",
           layout=CHANNELS_LAST, denoised=_kandinsky5),
    Family("Cosmos 1", ("CosmosTextToWorldPipeline",), "two calls", offset=1),
    Family("Cosmos 2", ("Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline"), "two calls", offset=1,
           solved=True, denoised=_cosmos2),
    Family("Cosmos 2.5", ("Cosmos2_5_PredictBasePipeline",), "two calls", offset=1, solved=True, denoised=_cosmos2),
)  # fmt: skip

_BY_PIPELINE = {pipeline: family for family in FAMILIES for pipeline in family.pipelines}


@lru_cache(maxsize=64)
def family_of(pipeline: type[Any]) -> Family:
    """The family of a pipeline class: from the table or, for a class that is not in it, from its source code.

    A subclass counts as its parent only where it inherits ``__call__``.

    Raises:
        InputError: the source code does not show how the pipeline guides.
    """
    for parent in pipeline.__mro__:
        if "__call__" in vars(parent):
            if parent.__name__ in _BY_PIPELINE:
                return _BY_PIPELINE[parent.__name__]
            loop = read_loop(vars(parent)["__call__"])
            if isinstance(loop, str):
                raise _unreadable(pipeline.__name__, loop)
            name = pipeline.__name__
            return Family(name, (name,), loop.order, loop.networks, argument=loop.argument, known=False)
    raise InputError(f"{pipeline.__name__} is not a pipeline: give one of diffusers, such as WanPipeline")


def _unreadable(name: str, why: str) -> InputError:
    return InputError(
        f"{name} is not among the pipelines whose guidance is known, and {why}: give family=Family(...) of "
        "guidon.bridges.diffusers.families, or put ChannelGuidance where the pipeline takes a guider"
    )
