"""From a recipe to weights that the package loads."""

from collections.abc import Callable
from pathlib import Path

from .recipe import DenoiserRecipe, VAERecipe, load_recipe

__all__ = ["DenoiserRecipe", "VAERecipe", "load_recipe", "run_recipe"]


def run_recipe(
    path: Path, *, export_only: bool = False, look: Callable[[Path, int], dict[str, float]] | None = None
) -> Path | None:
    """Train what a recipe says, resuming where it stopped; the exported weights, or None when interrupted.

    ``export_only`` exports the last checkpoint's averaged weights instead of training on. ``look`` is given a model
    folder every ``evaluate_every`` steps, and returns what to log of it.
    """
    recipe = load_recipe(path)
    from ..core.devices import pick_device
    from .loop import train

    device = pick_device(recipe.device)
    recipe.out.mkdir(parents=True, exist_ok=True)
    if isinstance(recipe, VAERecipe):
        from .tasks.vae import VAETask

        return train(recipe, VAETask(recipe, device), device, export_only=export_only)
    from .tasks.denoiser import DenoiserTask

    return train(recipe, DenoiserTask(recipe, device), device, export_only=export_only, look=look)
