"""Guidon's nodes for ComfyUI (v3 schema): which latent channels guidance acts on, how strongly, when, by which rule.

The nodes translate; what they do is in ``guidon.bridges.comfyui``, in the package guidon-diffusion.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io

try:
    from guidon.bridges import comfyui as bridge
except ImportError as error:
    raise ImportError(
        f"Guidon's nodes need the package of Guidon ({error}): pip install it from its checkout, with ComfyUI's Python"
    ) from error

CATEGORY = "advanced/guidance"
CHANNELS = "3: the first three. Or all, none, 0,2, 0-2, only:3. Channels are numbered from 0."


class ChannelGuidance(io.ComfyNode):
    """Which latent channels the sampler's guidance acts on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidonChannelGuidance",
            display_name="Channel guidance",
            category=CATEGORY,
            description="Chooses the latent channels that classifier-free guidance acts on. The sampler's cfg stays in "
            "charge. The other channels are the conditional prediction.",
            inputs=[
                io.Model.Input("model"),
                io.String.Input("channels", default="3", tooltip=CHANNELS),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Guidance begins at this share of sampling; before it, no channel is guided.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Guidance ends at this share of sampling; after it, no channel is guided.",
                ),
                io.String.Input(
                    "scales", default="", optional=True,
                    tooltip="Empty: the sampler's cfg. One number: the scale of the guided channels. Or one scale per "
                    "latent channel, such as 7,7,7,1 (1 is unguided).",
                ),
            ],
            outputs=[io.Model.Output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, channels: str, start_percent: float = 0.0, end_percent: float = 1.0, scales: str = ""
    ) -> io.NodeOutput:
        guide = bridge.channel_guide(model, channels, scales, start_percent, end_percent)
        return io.NodeOutput(bridge.patched(model, guide))


class GuidanceRule(io.ComfyNode):
    """Guidance by one of Guidon's rules in the place of the sampler's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidonGuidanceRule",
            display_name="Guidance rule",
            category=CATEGORY,
            description="Guides by a rule (APG, CFG-Zero*, ...) with a scale of its own, on chosen channels. The "
            "sampler's cfg then has no effect.",
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("rule", options=bridge.offered_rules(), default="cfg", tooltip="How predictions join."),
                io.Float.Input(
                    "scale", default=5.0, min=0.0, max=100.0, step=0.1, tooltip="The guidance scale; 1 is no guidance."
                ),
                io.String.Input("channels", default="all", tooltip=CHANNELS),
                io.String.Input(
                    "timing", default="constant",
                    tooltip="constant, linear, cosine, exponential:0.7, interval:0.1,0.8 or oscillation:10.",
                ),
                io.String.Input(
                    "settings", default="", optional=True,
                    tooltip="The rule's settings where they are not its defaults, such as momentum=0,norm_limit=10.",
                ),
                io.String.Input(
                    "scales", default="", optional=True,
                    tooltip="One scale per latent channel in the place of scale, such as 7,7,7,1 (1 is unguided).",
                ),
            ],
            outputs=[io.Model.Output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        rule: str,
        scale: float,
        channels: str = "all",
        timing: str = "constant",
        settings: str = "",
        scales: str = "",
    ) -> io.NodeOutput:
        guide = bridge.rule_guide(model, rule, scale, channels, timing, settings, scales)
        return io.NodeOutput(bridge.patched(model, guide))


class GuidanceTrace(io.ComfyNode):
    """How far apart both predictions were, per channel and call of the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidonGuidanceTrace",
            display_name="Guidance trace",
            category=CATEGORY,
            description="Shows how far the positive and the negative prediction were apart in the run that made a "
            "latent: a row a channel, a column a call of the model.",
            inputs=[
                io.Model.Input("model", tooltip="The model that Channel guidance or Guidance rule patched."),
                io.Latent.Input("latent", tooltip="The sampler's output."),
            ],
            outputs=[io.Image.Output(display_name="picture"), io.String.Output(display_name="table")],
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any]) -> io.NodeOutput:
        run = bridge.run_of(bridge.guide_of(model).runs, latent["samples"])
        return io.NodeOutput(bridge.trace_picture(run), bridge.trace_table(run))


class GuidonExtension(ComfyExtension):
    """The nodes that ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ChannelGuidance, GuidanceRule, GuidanceTrace]


async def comfy_entrypoint() -> GuidonExtension:
    """ComfyUI's entry point of a folder of nodes."""
    return GuidonExtension()
