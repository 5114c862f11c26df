"""``guidon models``: the presets."""

from __future__ import annotations

EXAMPLE = "guidon models"


def models() -> None:
    """List the models that have a name, with their recommended settings."""
    from ..models.catalogue import presets

    for preset in presets().values():
        print(f"{preset.name}: {preset.summary}")
        when = "" if preset.timing == "constant" else f", {preset.timing}"
        guided = f"scale {preset.cfg_scale:g}, channels {preset.cfg_channels}{when}"
        print(f"  {preset.sampler}, {preset.steps} steps, {guided}")
        print(f"  made by {preset.source}")
        if preset.measured:
            print(f"  measured: {preset.measured}")
