"""A Gaussian mixture whose score is known in closed form: exact truth for samplers."""

import torch

MEANS = torch.tensor([-1.5, 0.5, 2.0], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)


class MixtureDenoiser:
    """The perfect prediction for data drawn from the mixture, every element independent: eps, x0, v or flow."""

    def __init__(self, predicts="eps"):
        self.predicts = predicts

    def __call__(self, x, level):
        # the components are the first axis, which is the fastest to sum over
        means, stds, weights = (values.view(3, *[1] * x.ndim) for values in (MEANS, STDS, WEIGHTS))
        alpha, sigma = level.alpha, level.sigma
        variance = alpha**2 * stds**2 + sigma**2
        pull = (alpha * means - x.double()) / variance
        logits = weights.log() - 0.5 * variance.log() - 0.5 * pull**2 * variance
        score = (logits.softmax(0) * pull).sum(0)
        eps = -sigma * score
        if self.predicts == "eps":
            return eps.float()
        x_0 = (x.double() - sigma * eps) / alpha
        return {"x0": x_0, "v": alpha * eps - sigma * x_0, "flow": eps - x_0}[self.predicts].float()


def mean_and_variance():
    mean = (WEIGHTS * MEANS).sum()
    return mean.item(), ((WEIGHTS * (STDS**2 + MEANS**2)).sum() - mean**2).item()
