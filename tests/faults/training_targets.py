"""What a training writes: the targets of its tests of I/O faults. They are forked from a process that has trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

from faults.shim import Target
from faults.training_work import parts, train

with tempfile.TemporaryDirectory() as once:  # imports what a training needs, so that no child must
    train("vae", Path(once, "vae"), steps=1)
    train("denoiser", Path(once, "denoiser"), steps=1)

train_vae = Target("guidon train", lambda folder: train("vae", folder, steps=2, checkpoint_every=1), parts=parts)
train_further = Target(
    "guidon train, further than before",
    lambda folder: train("denoiser", folder, steps=4, evaluate_every=0),
    lambda folder: train("denoiser", folder, steps=2, evaluate_every=0),
    parts=parts,
)
