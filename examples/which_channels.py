# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which channels of my model carry guidance?
#
# Open this file as a notebook in VS Code, or make one: `jupytext --to ipynb examples/which_channels.py`. It needs
# `pip install '.[diffusers,study]'` in the checkout.
#
# It measures a pipeline of diffusers in three steps: where guidance acts (the spectrum), what a choice of channels
# changes (clips from the same noise), and whether that matters (a study with a report). As it stands, it runs a tiny
# DiT with random weights, in seconds, with nothing to download. Its numbers show how to look, and nothing about a real
# model. To ask your own model, change the next cell.

# %%
from pathlib import Path

import diffusers
import matplotlib.pyplot as plt
import torch

import guidon
from guidon.analysis.spectrum import spectrum
from guidon.studies.answer import answer
from guidon.studies.planning import make_plan
from guidon.studies.report import write_report
from guidon.studies.results import results
from guidon.studies.run import run_study
from guidon.studies.study import Study


def tiny_dit() -> diffusers.DiTPipeline:
    """DiT with one layer and random weights; its prompts are the numbers of classes."""
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    for parameter in [*network.parameters(), *vae.parameters()]:  # some layers begin as zeros
        parameter.data += 0.2 * torch.randn_like(parameter)
    return diffusers.DiTPipeline(transformer=network, vae=vae, scheduler=diffusers.DDIMScheduler(clip_sample=False))


# your own: model = guidon.load("diffusers:Wan2.1-T2V-1.3B-Diffusers", dtype="bf16", call={"num_frames": 33})
#           PROMPTS, SCALE, STEPS, LOOKS = ["a cat walks on the grass", "waves break on a rocky shore"], 5, 30, 3
model = guidon.wrap(tiny_dit())
PROMPTS, SCALE, STEPS, LOOKS = ["207", "360"], 4, 6, 2
print(model, "with", model.channels, "latent channels")

# %% [markdown]
# ## 1. Where guidance acts
#
# `energy` is a channel's share of what guidance adds; the last columns are what the decoder makes of it. Channel k is
# channel k of the autoencoder, also where a pipeline packs its latents.

# %%
found = spectrum(model, PROMPTS, steps=STEPS, looks=LOOKS, cfg_scale=SCALE)
print(found.table())
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].bar(range(model.channels), 100 * found.energy_share)
axes[0].set(xlabel="latent channel", title="share of energy, %", xticks=range(model.channels))
axes[1].imshow(found.difference.mean((0, 3)).T, aspect="auto")
_ = axes[1].set(xlabel="step", ylabel="latent channel", title="norm of cond - uncond")

# %% [markdown]
# ## 2. What a choice of channels changes
#
# All clips start from the same noise. The strongest channel alone, and all channels but that one, come beside the usual
# choices. `none` is the conditional prediction.

# %%
strongest = int(found.energy_share.argmax())
others = [channel for channel in range(model.channels) if channel != strongest]
CHOICES = {"none": "none", "first three": 3, "strongest": [strongest], "all others": others, "all": "all"}
figure, axes = plt.subplots(len(PROMPTS), len(CHOICES), figsize=(9, 4), layout="constrained")
for row, prompt in zip(axes, PROMPTS, strict=True):
    for axis, (name, channels) in zip(row, CHOICES.items(), strict=True):
        clip = model(prompt, cfg_scale=SCALE, cfg_channels=channels, steps=STEPS, seed=0)
        axis.imshow(clip.frames[len(clip.frames) // 2])
        axis.set_title(name, fontsize=8)
        axis.axis("off")

# %% [markdown]
# ## 3. Does it matter?
#
# A study compares settings on the same prompts and noise. It names one primary contrast before it starts. It can be
# stopped, and goes on in its folder. Two prompts cannot show anything: give twelve or more of your own task.

# %%
study = Study(
    title="Which channels?",
    prompts=tuple(PROMPTS),
    steps=STEPS,
    settings=[
        {"name": "none", "cfg_scale": 1},
        {"name": "all", "cfg_scale": SCALE, "cfg_channels": "all"},
        {"name": "three", "cfg_scale": SCALE, "cfg_channels": 3},
        {"name": "all, weaker", "energy_of": "three", "cfg_channels": "all"},
    ],
    primary={"metric": "saturation", "baseline": "all", "against": "three"},
)
plan = make_plan(study, model, threads=torch.get_num_threads())
run_study(plan, model, Path("which-channels"))
print(answer(plan, results(plan, Path("which-channels"))))

# %% [markdown]
# `which-channels/report.html` shows all clips side by side, every metric with its interval, and a blind vote. On the
# command line the same is `guidon study run` and `guidon study report` (docs/which-channels.md).

# %%
page, *_ = write_report(Path("which-channels"), videos=False)
print("report:", page, f"{page.stat().st_size / 1e6:.1f} MB")
