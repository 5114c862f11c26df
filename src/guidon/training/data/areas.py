"""How an object's area in decoded frames answers to the latents, to first order.

A squared error spreads over all directions of the latents. An area is one of a thousand in a frame, what is left of the
error lies along it more than along any other, and eyes are on it: an object pulses where that error changes. With its
gradient at a training clip, kept beside the latents, a step can weigh that direction for a product, where decoding (as
for losses on decoded features, Berrada et al. 2411.04873) would cost more than the network itself.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ... import world
from ...models.vae.frames import FrameVAE

MARGIN = 2  # px around an object that count to it, as where areas are measured


def area_gradient(vae: FrameVAE, latents: Tensor, scene: world.Scene) -> Tensor:
    """The gradient of the relative area in each frame by that frame's latents (C, T, h, w), which show ``scene``.

    The area is the sum of coverage: a pixel covers as much as its difference from the background goes towards the
    object's colour. Both are the true ones here, where evaluation reads them off the frame, so that an object which
    fades counts as one that shrinks.
    """
    images = latents.transpose(0, 1).float().clone().requires_grad_()
    with torch.enable_grad(), torch.autocast(images.device.type, torch.bfloat16):
        frames = vae.reconstruct(images / vae.config.scaling_factor)
        relative = (frames.float() * _reading(scene).to(frames.device)).sum()
    return torch.autograd.grad(relative, images)[0].transpose(0, 1)


def _reading(scene: world.Scene) -> Tensor:
    """What frames in [-1, 1], (T, 3, H, W), are multiplied by and summed for the object's area over its true one."""
    background = np.asarray(world.BACKGROUNDS[scene.background])
    (thing,) = scene.things
    coverage = torch.from_numpy(world.coverage(thing.shape, world.AREAS[thing.size], thing.centroids()))[:, None]
    near = F.max_pool2d((coverage > 0).float(), 2 * MARGIN + 1, stride=1, padding=MARGIN)
    contrast = np.asarray(world.COLOURS[thing.colour]) - background
    axis = torch.from_numpy(contrast / contrast.dot(contrast) / 2).float()  # 2: from -1 to 1
    return near * axis[:, None, None] / coverage.sum((1, 2, 3), keepdim=True)
