"""How a model computes: its precisions, and the choice of them by a check on this machine.

``dtype="auto"`` asks two things of a machine: that it multiplies in bf16 by a unit of its own, and that a guided step
of this model in bf16 is close to the same step in fp32. The answer is kept in the user's cache folder for each model
and machine. A manifest holds the precision that was taken, never "auto".
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.atomic import write_json
from ..core.devices import autocast, bf16_unit, torch_dtype
from ..core.errors import InputError, setting
from ..core.hashing import hash_settings
from ..core.reading import read_object
from ..core.settings import Settings
from ..core.version import VERSION
from ..core.warn import note
from ..models.family import Preset

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..models.model import Model

STEP_TOLERANCE = 0.05
"""The largest error of a guided step in bf16: root mean square of the difference, over that of the step in fp32."""
DECODE_TOLERANCE = 1.0
"""The largest error of decoded pixels: root mean square, in levels of 255."""
LEVELS = 10  # of a run from which the check takes the middle one


class Arithmetic(Settings):
    """How a model computes where a call does not say it. None is the model's own."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """Precision of the network; "auto" lets this machine choose fp32 or bf16."""
    decode_dtype: Literal["auto", "fp32", "bf16"] | None = None
    """Precision in which the autoencoder decodes; "auto" as for ``dtype``."""
    compile: bool = False
    """Whether the blocks of the network are compiled."""

    def of(self, preset: Preset[Any]) -> Preset[Any]:
        """The preset with what is said here in the place of its own; it keeps what a machine chooses."""
        said = {
            name: value for name, value in self.model_dump(exclude={"compile"}).items() if value not in (None, "auto")
        }
        return preset.computed_in(**said) if said else preset


def divided(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of ``guidon.load``: the fields of ``Arithmetic``, and the others."""
    own = {name: value for name, value in options.items() if name in Arithmetic.model_fields}
    return own, {name: value for name, value in options.items() if name not in own}


@dataclass(frozen=True)
class Choice:
    """A precision that a machine chose."""

    dtype: Literal["fp32", "bf16"]
    reason: str
    """Why, in a few words."""


def choose(asked: Arithmetic, preset: Preset[Any], model: Model, device: torch.device) -> Preset[Any]:
    """The preset with all precisions known. What a machine chooses is said on a line of stderr, with the reason.

    Args:
        asked: what the caller asked for.
        preset: the model's.
        model: its stages. The network is loaded in both precisions where the answer is not known yet.
        device: where it runs.
    """
    preset = asked.of(preset)
    for name, check in (("dtype", step_error), ("decode_dtype", decode_error)):
        if getattr(asked, name) == "auto":
            choice = _choice(name, check, preset, model, device)
            note(f"{name} auto is {choice.dtype}: {choice.reason}")
            preset = preset.computed_in(**{name: choice.dtype})
    return preset


def _choice(
    name: str,
    check: Callable[[Preset[Any], Model, torch.device], float],
    preset: Preset[Any],
    model: Model,
    device: torch.device,
) -> Choice:
    """What this machine chooses for a setting."""
    unit = bf16_unit(device)
    if unit is None:
        return Choice("fp32", f"this {device.type} has no unit for bf16")
    error = _kept(name, model, unit, lambda: check(preset, model, device))
    if name == "dtype":
        limit, said = STEP_TOLERANCE, f"the error of a guided step in it is {error:.1%}"
        allowed = f"{STEP_TOLERANCE:.0%}"
    else:
        limit, said = DECODE_TOLERANCE, f"the error of decoded pixels in it is {error:.2f} levels of 255"
        allowed = f"{DECODE_TOLERANCE:g}"
    if error <= limit:  # an error that is no number is not
        return Choice("bf16", f"this machine has {unit}, and {said}, at most {allowed} is allowed")
    return Choice("fp32", f"this machine has {unit}, but {said}, at most {allowed} is allowed")


def step_error(preset: Preset[Any], model: Model, device: torch.device) -> float:
    """The error of one guided step of a model in bf16, at its own size, relative to the step in fp32.

    The step is from noise, at the middle of a run, with the model's own scale on its channels. Of a model that is given
    captions of the world, the caption is one of them; of another it is random features of full length, so that no large
    text encoder is needed.
    """
    import torch

    from ..guidance import Guidance, GuidedDenoiser

    guidance = Guidance.from_settings({"cfg_scale": preset.cfg_scale, "cfg_channels": preset.cfg_channels})
    levels = model.schedule.respaced(LEVELS).levels
    found: list[Tensor] = []
    with torch.no_grad():
        for dtype in ("fp32", "bf16"):
            with model.network.in_use(torch_dtype(dtype)) as network:
                x = torch.randn(network.latent_shape, generator=torch.Generator().manual_seed(0))[None].to(device)
                cond = network.prepare(*_caption(model, network, device))
                denoiser = GuidedDenoiser(
                    network, guidance.resolved(model.facts.channels), cond, _null(network, device),
                    parameterization=model.process.parameterization, steps=LEVELS,
                )  # fmt: skip
                found.append(denoiser(x, levels[LEVELS // 2])[0].double())
                del network, denoiser
    exact, rounded = found
    return float((rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _caption(model: Model, network: Any, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The features of a caption and their mask; or a class, of a network that knows classes."""
    import torch

    from ..models.text.stand_in import RandomCaptions

    if model.facts.bench.startswith("world"):
        from .. import world

        with model.text.in_use() as text:
            features, mask = text.encode((world.clip("L0", 0, 0).caption,))
        return features.to(device), None if mask is None else mask.to(device)
    null = _null_features(network)
    if null is None:
        return torch.zeros(1, dtype=torch.long, device=device), None
    features, mask = RandomCaptions(*null.shape).encode(("",))
    return features.to(device), mask.to(device)


def _null(network: Any, device: torch.device) -> Any:
    """The null condition. Of a checkpoint without a null caption it is another caption, as a negative prompt is."""
    from ..models.text.stand_in import RandomCaptions

    null = _null_features(network)
    if null is None or not bool(null.isnan().any()):
        return network.null(1)
    features, mask = RandomCaptions(*null.shape).encode(("", ""))
    return network.prepare(features[1:].to(device), mask[1:].to(device))


def _null_features(network: Any) -> Tensor | None:
    """The null caption (L, F) of a network, not a number where its checkpoint has none; None of one for classes."""
    first = getattr(network, "networks", (network,))[0]
    first = getattr(first, "network", first)  # a rectified flow holds one
    return getattr(first.y_embedder, "y_embedding", None)


def decode_error(preset: Preset[Any], model: Model, device: torch.device) -> float:
    """The error of pixels that are decoded in bf16, in levels of 255: of noise as latents, of the model's own size."""
    import torch

    shape = model.facts.latent_shape
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))[None].to(device)
    found: list[Tensor] = []
    with torch.inference_mode(), model.vae.in_use() as vae:
        for dtype in ("fp32", "bf16"):
            with autocast(dtype, device):
                found.append(vae.decode(z).double())
    return float((found[0] - found[1]).square().mean().sqrt()) * 127.5


def cache_folder() -> Path:
    """Where answers are kept: "guidon" in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guidon"


def read_error(path: Path) -> float:
    """A measured error from its file.

    Raises:
        InputError: it is not there, or holds something else.
    """
    error = read_object(path, "a measured error").get("error")
    if not isinstance(error, float):
        raise InputError(f"{path} holds no measured error: delete it")
    return error


def _kept(name: str, model: Model, unit: str, measure: Callable[[], float]) -> float:
    """An error that was measured before for this model on this machine; else it is measured, and kept."""
    import torch

    of = {
        "check": name, "weights": model.all_hashes, "unit": unit, "machine": platform.machine(),
        "processor": str(getattr(torch.cpu, "get_capabilities", dict[str, Any])().get("cpu_name")),
        "torch": torch.__version__, "guidon": VERSION,
    }  # fmt: skip
    if unit == "bf16 in CUDA":
        of["processor"] = torch.cuda.get_device_name()
    path = cache_folder() / "precision" / f"{hash_settings(of)[:24]}.json"
    with suppress(InputError):  # it is not there, or damaged: it is measured again
        return read_error(path)
    error = measure()
    with suppress(OSError):  # a folder that cannot be written costs the next run a measurement
        write_json(path, {"error": error, "of": of})
    return error


def refuse_auto(asked: Mapping[str, Any], why: str) -> None:
    """Refuse "auto" where no single machine can choose.

    Raises:
        InputError: a precision is "auto".
    """
    for name in Arithmetic.model_fields:
        if asked.get(name) == "auto":
            raise InputError(f"{setting(name)} auto {why}: give fp32 or bf16")
