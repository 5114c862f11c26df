"""How each family of diffusers pipelines guides: all that ``apply`` must know of someone else's loop, in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
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
from .source import Order, only_calls_its_parent, read_loop

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
    above: float = 1.0
    """The pipeline runs an unconditional branch where its argument is above this number."""
    sign: int = 1
    """-1 where the pipeline negates the network's output before its scheduler takes it."""
    guided: ChannelChoice = ALL
    """Channels that the pipeline itself guides."""
    solved: Callable[[PipelineCall], bool] = lambda call: False
    """Whether cond must stay as it is: the pipeline has changed it before its second call, or adds another guidance to
    the formula that reads it. Then uncond is solved for, so that the formula gives what is wanted."""
    known: bool = True
    """False for one that was read off a pipeline's source code. It takes no rule."""
    denoised: Callable[[PipelineCall], Any] = lambda call: slice(None)
    """Which latent frames the scheduler steps, as an index of dimension 2; packed tokens on an unknown grid. An image
    gives the others, the pipeline drops their predictions, and no rule sees them."""
    mixes: Callable[[PipelineCall], str | None] = lambda call: None
    """Names what mixes channels after guidance in a call, beside ``guidance_rescale``; None where nothing does."""
    refuses: Callable[[PipelineCall], str | None] = lambda call: None
    """Says why a call cannot take a guidance of ours."""

    def argument_value(self, call: PipelineCall, network: int = 0) -> float | None:
        """The number that a call was given as its scale, as it stands; None where it is not known.

        Args:
            call: the call.
            network: 1 for the second denoiser, which may have a scale of its own.
        """
        second = call.variable(f"{self.argument}_2") if network else None
        found = call.attribute(self.argument) if "." in self.argument else call.variable(self.argument)
        return _number(found if second is None else second)

    def scale(self, call: PipelineCall) -> float | None:
        """The s of the formula at the present step: 1 is no guidance. None where it is not known."""
        if call.variable("use_dynamic_cfg"):  # CogVideoX computes a step's scale after the network has run
            return None
        found = _number(call.variable("current_guidance_scale"))  # Wan, Z-Image
        if found is None and self.argument == "guidance_scale":
            found = _number(call.attribute("_guidance_scale"))  # a callback may have changed it
        found = self.argument_value(call) if found is None else found
        # the formula of a guider may be cond + s (cond - uncond), too
        offset = self.offset + bool(call.attribute("guider.use_original_formulation"))
        return None if found is None else found + offset

    def guides(self, call: PipelineCall) -> bool | None:
        """Whether a call runs an unconditional branch; None where it does not say."""
        if call.guides is not None:
            return call.guides
        scale = self.argument_value(call)
        return None if scale is None or not self.known else scale > self.above


def _number(value: Any) -> float | None:
    if hasattr(value, "numel") and value.numel() == 1:  # a tensor; the table is read without torch
        return float(value)
    return float(value) if isinstance(value, Real) else None


_ALL_FRAMES, _AFTER_FIRST = slice(None), slice(1, None)


def _wan(call: PipelineCall) -> slice:
    return _ALL_FRAMES if call.variable("first_frame_mask") is None else _AFTER_FIRST


def _hunyuan_video(call: PipelineCall) -> slice:
    return _AFTER_FIRST if call.variable("image_condition_type") == "token_replace" else _ALL_FRAMES


def _kandinsky5(call: PipelineCall) -> slice:
    return _ALL_FRAMES if call.variable("image") is None else _AFTER_FIRST


def _cosmos2(call: PipelineCall) -> Any:
    given = call.variable("cond_indicator")  # (1 or B, 1, T, 1, 1), 1 where a frame is given
    return _ALL_FRAMES if given is None else given[0].flatten() == 0


def _ltx(call: PipelineCall) -> Any:
    mask = call.variable("conditioning_mask")  # (B or 2B, tokens): how strongly each is given
    if mask is None:
        return _ALL_FRAMES
    return mask[0] == 0 if call.variable("is_conditioning_image_or_video") else _AFTER_FIRST


def _half_given(call: PipelineCall) -> str | None:
    mask = call.variable("conditioning_mask") if call.variable("is_conditioning_image_or_video") else None
    if mask is None or bool(((mask == 0) | (mask == 1)).all()):
        return None
    return "a condition of a strength below 1 has a noise level of its own: give strength 1, or channels alone"


def _ltx2_adds(call: PipelineCall) -> bool:
    modality = _number(call.attribute("_modality_scale"))
    return bool(call.attribute("_stg_scale")) or modality not in (None, 1.0)


def _sd3_adds(call: PipelineCall) -> bool:
    return call.variable("skip_guidance_layers") is not None


def _qwen(call: PipelineCall) -> str | None:
    return "its own normalisation of every token"


def _lumina2(call: PipelineCall) -> str | None:
    return "cfg_normalization" if call.variable("cfg_normalization") else None


def _z_image(call: PipelineCall) -> str | None:
    return "cfg_normalization" if call.attribute("_cfg_normalization") else None


def _z_image_shrinks(call: PipelineCall) -> str | None:
    norm = _number(call.attribute("_cfg_normalization")) or 1.0
    if not 0 < norm < 1:
        return None
    return f"cfg_normalization={norm:g} would shrink the guided prediction: give False"


def _why_not_its_guider(call: PipelineCall) -> str | None:
    name = type(call.pipeline.guider).__name__
    if name == "ClassifierFreeGuidance":
        return None
    return f"the pipeline's guider {name} guides in its own way: give it diffusers' ClassifierFreeGuidance"


def _guider_mixes(call: PipelineCall) -> str | None:
    if _why_not_its_guider(call):
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
    Family("Stable Diffusion 3", ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"), "uncond, cond",
           solved=_sd3_adds),
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
           layout=_LTX, denoised=_ltx, refuses=_half_given),
    Family("LTX-2", ("LTX2Pipeline",), "uncond, cond", layout=_LTX, solved=_ltx2_adds),
    Family(
        "Wan", ("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline"), "two calls",
        ("transformer", "transformer_2"), denoised=_wan,
    ),
    Family("SkyReels-V2", ("SkyReelsV2Pipeline",), "two calls"),
    Family("HunyuanVideo", ("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"), "two calls",
           argument="true_cfg_scale", denoised=_hunyuan_video),
    Family("HunyuanVideo 1.5", ("HunyuanVideo15Pipeline",), "two calls", argument="guider.guidance_scale",
           mixes=_guider_mixes, refuses=_why_not_its_guider),
    Family("Flux", ("FluxPipeline", "FluxImg2ImgPipeline", "FluxKontextPipeline"), "two calls", layout=_FLUX,
           argument="true_cfg_scale"),
    Family("Flux 2 Klein", ("Flux2KleinPipeline",), "two calls", layout=_FLUX),
    Family("Chroma", ("ChromaPipeline", "ChromaImg2ImgPipeline"), "two calls", layout=_FLUX),
    Family("Qwen-Image", ("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageEditPipeline"), "two calls",
           layout=_QWEN, mixes=_qwen, argument="true_cfg_scale"),
    Family("Z-Image", ("ZImagePipeline", "ZImageImg2ImgPipeline"), "cond, uncond", offset=1, above=0, sign=-1,
           mixes=_z_image, refuses=_z_image_shrinks),
    Family("Lumina", ("LuminaPipeline",), "cond, uncond", sign=-1, guided=ChannelChoice(count=3)),
    Family("Lumina 2", ("Lumina2Pipeline",), "two calls", sign=-1, mixes=_lumina2),
    Family("Kandinsky 5", ("Kandinsky5T2VPipeline", "Kandinsky5T2IPipeline", "Kandinsky5I2VPipeline"), "two calls",
           layout=CHANNELS_LAST, denoised=_kandinsky5),
    Family("Cosmos 1", ("CosmosTextToWorldPipeline",), "two calls", offset=1),
    Family("Cosmos 2", ("Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline"), "two calls", offset=1,
           solved=lambda call: True, denoised=_cosmos2),
    Family("Cosmos 2.5", ("Cosmos2_5_PredictBasePipeline",), "two calls", offset=1, solved=lambda call: True,
           denoised=_cosmos2),
)  # fmt: skip

_BY_PIPELINE = {pipeline: family for family in FAMILIES for pipeline in family.pipelines}


@lru_cache(maxsize=64)
def family_of(pipeline: type[Any]) -> Family:
    """The family of a pipeline class: from the table or, for a class that is not in it, from its source code.

    A subclass counts as its parent where it inherits ``__call__`` or only hands the call on.

    Raises:
        InputError: the source code does not show how the pipeline guides.
    """
    for parent in pipeline.__mro__:
        if "__call__" in vars(parent):
            if parent.__name__ in _BY_PIPELINE:
                return _BY_PIPELINE[parent.__name__]
            if only_calls_its_parent(vars(parent)["__call__"]):
                continue
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
