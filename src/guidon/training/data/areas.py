"""How an object's area in decoded frames depends on the latents, to first order.

The latents of a frame have about a thousand dimensions. Along one direction among them the object's area changes. A
trained network leaves more error along this direction than along any other, and viewers see it: the object pulses. A
squared error over all dimensions gives this direction no special weight.

The gradient of the area by the latents is this direction. It is computed once and stored beside the latents, so a
training step can weight the error along it at the cost of one product. Decoding in every step (as for losses on decoded
features, Berrada et al. 2411.04873) would cost more than the network itself.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ... import world
from ...models.vae.frames import FrameVAE

MARGIN = 2  # pixels around an object that count as part of it; metrics.reading uses the same margin


def area_gradient(vae: FrameVAE, latents: Tensor, scene: world.Scene) -> Tensor:
    """The gradient of each frame's relative area by that frame's latents.

    The area is the sum over pixels of coverage: 0 where a pixel has the background's colour, 1 where it has the
    object's colour, and linear between them. Both colours are the true ones of the scene, so an object that fades
    counts as one that shrinks. (The metrics estimate both colours from the frame instead.)

    Args:
        vae: the autoencoder that decodes.
        latents: scaled latents (C, T, h, w) of a clip.
        scene: what the clip shows; it has one object.

    Returns:
        The gradient (C, T, h, w). Areas are relative to the true area, so 1 is correct.
    """
    images = latents.transpose(0, 1).float().clone().requires_grad_()
    with torch.enable_grad(), torch.autocast(images.device.type, torch.bfloat16):
        frames = vae.reconstruct(images / vae.config.scaling_factor)
        relative = (frames.float() * _area_weights(scene).to(frames.device)).sum()
    return torch.autograd.grad(relative, images)[0].transpose(0, 1)


def _area_weights(scene: world.Scene) -> Tensor:
    """Weights (T, 3, H, W) of frames in [-1, 1] whose weighted sum is the object's area relative to the true one."""
    background = np.asarray(world.BACKGROUNDS[scene.background])
    (thing,) = scene.things
    coverage = torch.from_numpy(world.coverage(thing.shape, world.AREAS[thing.size], thing.centroids()))[:, None]
    near = F.max_pool2d((coverage > 0).float(), 2 * MARGIN + 1, stride=1, padding=MARGIN)
    contrast = np.asarray(world.COLOURS[thing.colour]) - background
    axis = torch.from_numpy(contrast / contrast.dot(contrast) / 2).float()  # 2: frames span [-1, 1]
    return near * axis[:, None, None] / coverage.sum((1, 2, 3), keepdim=True)
