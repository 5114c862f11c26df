"""A small network under guidance, shared by the tests of guidance. Its prediction depends on all that it is given."""

from dataclasses import dataclass

import torch

from guidon.diffusion import NoiseLevel, NoiseSchedule, convert
from guidon.guidance import Branches, Guidance, GuidedDenoiser, WeakModel

SCHEDULE = NoiseSchedule.named().respaced("20")
SHAPE = (2, 4, 2, 4, 4)


@dataclass(frozen=True)
class Caption:
    """A condition: one value and one token mask a row."""

    value: torch.Tensor
    mask: torch.Tensor

    def cat(self, other):
        return Caption(torch.cat([self.value, other.value]), torch.cat([self.mask, other.mask]))


def caption(*values, tokens=3):
    mask = torch.zeros(len(values), 8)
    mask[:, :tokens] = 1
    return Caption(torch.tensor(values), mask)


GENTLE = {"mambo-g": "mambo-g:alpha=0.5"}
"""Settings under which a rule guides the toy network, whose branches are far apart."""
COND, UNCOND, NEGATIVE = caption(1.0, 0.5), caption(-1.0, -1.0), caption(0.2, -0.3)


class Network:
    """Mixes the channels, looks at the level and the condition, and notes what it was given and what it gave."""

    def __init__(self, predicts="eps", channels=4, learned=True, seed=3):
        self.predicts, self.learned = predicts, learned
        self.weight = torch.randn(channels, channels, generator=torch.Generator().manual_seed(seed)) / 2
        self.rows = []
        self.seen = []
        self.given = []

    def __call__(self, x, level, cond):
        self.rows.append(len(x))
        self.seen.append((level.timesteps(x), cond.mask))
        strength, time = (
            values.view(-1, *[1] * (x.ndim - 1))
            for values in (cond.value * cond.mask.sum(1) / 3, 1 + level.timesteps(x) / 1000)
        )
        eps = torch.tanh(torch.einsum("oc,bc...->bo...", self.weight, x) * time + strength * x.roll(1, 1))
        out = convert(eps, x, level, "eps", self.predicts)
        self.given.append(torch.cat([out, out.sigmoid()], 1) if self.learned else out)
        return self.given[-1].clone()


class Near(Network):
    """A network whose branches differ little."""

    def __call__(self, x, level, cond):
        return super().__call__(x, level, Caption(0.02 * cond.value, cond.mask))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents(seed=9):
    return normal(*SHAPE, seed=seed)


def level_at(step):
    """The level of a step of ``SCHEDULE``; step 0 is next to the data."""
    return SCHEDULE.levels[len(SCHEDULE) - 1 - step]


def flow_level(s, after=None):
    """A level of rectified flow, x_t = (1 - s) x_0 + s eps, made by hand; ``after`` is the s that is visited next."""
    following = None if after is None else flow_level(after)
    return NoiseLevel(timestep=1000 * s, alpha=1 - s, sigma=s, progress=1 - s, next=following)


def predicted(condition, step, predicts="eps", x=None):
    """What a fresh network says of one condition alone."""
    return Network(predicts)(latents() if x is None else x, level_at(step), condition)


def denoiser(guidance, network=None, *, cond=COND, uncond=UNCOND, **options):
    """A network under guidance, the negative condition and the weak network given where the rule needs them."""
    network = network or Network()
    negative = NEGATIVE if guidance.needs_negative else None
    parameterization = getattr(network, "predicts", "eps")
    imageless = NEGATIVE if guidance.needs_imageless else None
    weak = WeakModel(Network(parameterization, seed=4), cond) if guidance.needs_weak else None
    return GuidedDenoiser(
        network, guidance, cond, uncond, **{"negative": negative, "weak": weak, "imageless": imageless} | options,
        parameterization=parameterization,
    )  # fmt: skip


def draw(*seeds, shape=(2, 3, 2, 4, 4)):
    """What branches predict of the guided channels."""
    return [normal(*shape, seed=seed) for seed in seeds]


def branches(progress=0.5, **changes):
    """What a rule sees of a step of rectified flow."""
    cond, uncond, negative, weak, imageless = draw(0, 1, 2, 3, 4)
    level = flow_level(1 - progress, after=(1 - progress) / 2)
    given = {"cond": cond, "uncond": uncond, "negative": negative, "level": level, "weak": weak, "imageless": imageless}
    return Branches(**given | changes)


def of_images(cond, uncond):
    return Branches(cond, uncond, None, flow_level(0.5))


def plain(b, scale):
    return b.uncond + scale * (b.cond - b.uncond)


def guided(rule, scale=3.0, channels="all", predicts="eps", network=None, **options):
    return denoiser(Guidance(scale, channels, rule), network or Network(predicts), **options)
