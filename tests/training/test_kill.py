"""SIGKILL at random moments: nothing half-written stays under a final name, and the run goes on."""

import os
import random
import signal
import subprocess
import sys
import time

import torch
from safetensors import safe_open

from recipes import vae_recipe


def test_a_killed_run_keeps_whole_checkpoints_and_resumes(tmp_path):
    values = {"batch_size": 2, "checkpoint_every": 1, "log_every": 1}
    recipe = vae_recipe(tmp_path, **values, steps=400)
    checkpoint, steps = tmp_path / "vae" / "checkpoint.pt", []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "guidon", "train", str(recipe)]
    for seed in range(2):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == seen):
            time.sleep(0.05)
        time.sleep(random.Random(seed).uniform(0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        steps.append(torch.load(checkpoint, weights_only=True)["step"])
        assert not (tmp_path / "vae" / "vae.safetensors").exists()
    assert 0 < steps[0] < steps[1]
    vae_recipe(tmp_path, **values, steps=steps[1] + 3)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with safe_open(done.stdout.strip(), "pt") as file:
        assert file.metadata()["kind"] == "vae"
