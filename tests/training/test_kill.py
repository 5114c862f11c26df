"""SIGKILL at random moments: nothing half-written stays under a final name, and the run goes on."""

import os
import random
import signal
import subprocess
import sys
import time

import torch
import yaml
from safetensors import safe_open


def test_a_killed_run_keeps_whole_checkpoints_and_resumes(tmp_path):
    recipe = tmp_path / "vae.yaml"
    shape = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}
    values = {"task": "vae", "out": str(tmp_path / "run"), "steps": 400, "batch_size": 2, "device": "cpu", "checkpoint_every": 1, "log_every": 1, "model": shape}  # fmt: skip
    recipe.write_text(yaml.safe_dump(values))
    checkpoint, steps = tmp_path / "run" / "checkpoint.pt", []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for seed in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "guidon", "train", str(recipe)], env=environment, stderr=subprocess.DEVNULL
        )
        seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == seen):
            time.sleep(0.05)
        time.sleep(random.Random(seed).uniform(0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        steps.append(torch.load(checkpoint, weights_only=True)["step"])
        assert not (tmp_path / "run" / "vae.safetensors").exists()
    assert 0 < steps[0] < steps[1]
    values["steps"] = steps[1] + 3
    recipe.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-m", "guidon", "train", str(recipe)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with safe_open(done.stdout.strip(), "pt") as file:
        assert file.metadata()["kind"] == "vae"
