"""A Gaussian mixture whose score is known in closed form: exact truth for samplers."""

import torch

MEANS = torch.tensor([-1.5, 0.5, 2.0])
STDS = torch.tensor([0.3, 0.5, 0.2])
WEIGHTS = torch.tensor([0.3, 0.5, 0.2])


class MixtureDenoiser:
    """The perfect prediction for data drawn from the mixture, every element independent: eps, x0, v or flow."""

    def __init__(self, predicts="eps"):
        self.predicts = predicts

    def __call__(self, x, level):
        z = x.double()[..., None]
        alpha, sigma = level.alpha, level.sigma
        variance = alpha**2 * STDS.double() ** 2 + sigma**2
        centred = z - alpha * MEANS
        logits = WEIGHTS.double().log() - 0.5 * variance.log() - 0.5 * centred**2 / variance
        score = (logits.softmax(-1) * (-centred / variance)).sum(-1)
        eps = -sigma * score
        x_0 = (x.double() - sigma * eps) / alpha
        found = {"eps": eps, "x0": x_0, "v": alpha * eps - sigma * x_0, "flow": eps - x_0}
        return found[self.predicts].float()


def mean_and_variance():
    mean = (WEIGHTS * MEANS).sum()
    return mean.item(), ((WEIGHTS * (STDS**2 + MEANS**2)).sum() - mean**2).item()
