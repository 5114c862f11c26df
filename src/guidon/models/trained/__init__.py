"""Models that a run on a user's clips wrote, with any of the released networks: folders in the Hub's form.

``config`` reads their config.json, ``folder`` their weights, ``writing`` writes them. A folder of an STDiT with the
small caption encoder is one of ``models.small``, which reads its sampling settings here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..family import Facts, Family, Preset, Reader

if TYPE_CHECKING:
    import torch

    from ..model import Model
    from ..sources import Sources

NAME = "Trained"


class TrainedFamily(Family):
    """See ``Family``."""

    name = NAME
    reads = ()
    folder = "config.json of a trained model"

    def reader(self) -> Reader:
        from .folder import NoReader

        return NoReader()

    def facts(self, preset: Preset[Path], sources: Sources) -> Facts:
        from .facts import facts_of

        return facts_of(preset, sources)

    def find_model(self, preset: Preset[Path], sources: Sources, device: torch.device) -> Model:
        from .facts import config_of, facts_of
        from .folder import find_model

        facts = facts_of(preset, sources)
        return find_model(preset.weights, config_of(preset.weights), facts, sources, device)

    def files(self, folder: Path) -> list[Path]:
        from .config import CHECKPOINT, read_model_config

        found = read_model_config(folder)
        if found is None or found.layout != "released":
            return []
        names = (CHECKPOINT, "text.safetensors", "vae.safetensors")
        return [folder / name for name in names if (folder / name).is_file()]

    def adopt(self, folder: Path) -> Preset[Path] | None:
        from .config import read_model_config, read_network_config
        from .facts import preset_of

        found = read_model_config(folder)
        if found is None or found.layout != "released":
            return None
        return preset_of(folder, found, read_network_config(folder, found.network))

    def reads_captions(self, preset: Preset[Path]) -> bool:
        from .facts import config_of

        return config_of(preset.weights).reads_captions

    def describe_words(self, preset: Preset[Path]) -> dict[str, str]:
        from .facts import config_of, words_of

        found = config_of(preset.weights)
        if found.text.kind == "classes":
            return {"classes": ", ".join(found.text.classes)}
        if found.text.kind != "words":
            return {}
        words = words_of(preset.weights)
        return {} if words is None else words.describe()


FAMILY = TrainedFamily()
