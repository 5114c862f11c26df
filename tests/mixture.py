"""A Gaussian mixture whose score is known in closed form: exact truth for samplers."""

import torch

MEANS = torch.tensor([-1.5, 0.5, 2.0])
STDS = torch.tensor([0.3, 0.5, 0.2])
WEIGHTS = torch.tensor([0.3, 0.5, 0.2])


class MixtureDenoiser:
    """The perfect prediction for data drawn from the mixture, independently in every element: eps, x0 or v."""

    def __init__(self, schedule, full=None, predicts="eps"):
        self.schedule, self.full, self.predicts = schedule, full or schedule, predicts

    def __call__(self, x, step):
        return self._predict(x, torch.tensor(self.schedule.alphas_cumprod[step]))

    def at(self, x, timestep):
        import numpy as np

        log = np.interp(timestep, np.arange(len(self.full)), np.log(self.full.alphas_cumprod))
        return self._predict(x, torch.tensor(np.exp(log)))

    def _predict(self, x, signal):
        z = x.double()[..., None]
        variance = signal * STDS.double() ** 2 + 1 - signal
        centred = z - signal.sqrt() * MEANS
        logits = WEIGHTS.double().log() - 0.5 * variance.log() - 0.5 * centred**2 / variance
        score = (logits.softmax(-1) * (-centred / variance)).sum(-1)
        eps = -(1 - signal).sqrt() * score
        x_0 = (x.double() - (1 - signal).sqrt() * eps) / signal.sqrt()
        v = signal.sqrt() * eps - (1 - signal).sqrt() * x_0
        return {"eps": eps, "x0": x_0, "v": v}[self.predicts].float()


def mean_and_variance():
    mean = (WEIGHTS * MEANS).sum()
    return mean.item(), ((WEIGHTS * (STDS**2 + MEANS**2)).sum() - mean**2).item()
