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
# # What guidance does in your diffusers pipeline
#
# Open this file as a notebook in VS Code, or make one: `jupytext --to ipynb examples/guidance_in_diffusers.py`. It
# needs `pip install '.[diffusers]' matplotlib` in the checkout.
#
# The questions: in which latent channels do the prompt's two branches differ, when, and what changes if some of them
# are not guided? As it stands, the notebook runs a tiny Wan with random weights, in seconds, with nothing to download.
# Its pictures show how to look, and nothing about a real model. To ask your own model, change the next cell.

# %%
import diffusers
import matplotlib.pyplot as plt
import torch

import guidon


def tiny_wan() -> diffusers.WanPipeline:
    """Wan with one layer and random weights."""
    torch.manual_seed(0)
    network = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=1,
    )  # fmt: skip
    for parameter in network.parameters():  # some layers begin as zeros
        parameter.data += 0.1 * torch.randn_like(parameter)
    return diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=network,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


# your own: model = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
#           pipe = diffusers.WanPipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
#           pipe.enable_model_cpu_offload()
#           SETTINGS = {"prompt": "a cat plays the piano", "height": 480, "width": 832, "num_frames": 33}
pipe = tiny_wan()
SETTINGS = {
    "prompt_embeds": torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(1)),
    "negative_prompt_embeds": torch.zeros(1, 8, 16),
    "height": 64, "width": 64, "num_frames": 5,
}  # fmt: skip
SCALE, STEPS = 5.0, 12
pipe.set_progress_bar_config(disable=True)


def sample(seed: int = 0) -> torch.Tensor:
    """The final latents (1, channels, time, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        **SETTINGS, guidance_scale=SCALE, num_inference_steps=STEPS, generator=generator, output_type="latent"
    ).frames


# %% [markdown]
# ## Where guidance acts
#
# A trace notes the norm of cond - uncond, per step and channel. Guidance adds (scale - 1) times that difference. A
# bright row is a channel that guidance changes much; where along the row tells when.

# %%
trace = guidon.GuidanceTrace()
guidon.apply(pipe, guidon.Guidance(SCALE, "all"), observe=trace)
everywhere = sample()
guidon.remove(pipe)

difference = trace.as_arrays()["difference"][0]  # (steps, channels)
figure, axes = plt.subplots(figsize=(7, 4))
image = axes.imshow(difference.T, aspect="auto", cmap="viridis")
axes.set(xlabel="step", ylabel="latent channel", title="norm of cond - uncond")
figure.colorbar(image)
share = (difference**2).sum(0) / (difference**2).sum()
print("share of the energy in the first three channels:", f"{share[:3].sum():.0%}")

# %% [markdown]
# ## What three channels change
#
# The same noise, with guidance on the first three channels alone. `channels` without a scale keeps the pipeline's own
# guidance. The guided channels still change the others: the next step's network sees all of them.

# %%
guidon.apply(pipe, channels=3)
three = sample()
guidon.apply(pipe, channels="none")
nowhere = sample()
guidon.remove(pipe)

axes_shown = (0, 2, 3, 4)
moved = {
    "all channels": (everywhere - nowhere).square().mean(axes_shown).sqrt(),
    "first three": (three - nowhere).square().mean(axes_shown).sqrt(),
}
figure, axes = plt.subplots(figsize=(7, 3))
for number, (name, distance) in enumerate(moved.items()):
    axes.bar(torch.arange(16) + 0.4 * number, distance.float(), width=0.4, label=name)
axes.set(xlabel="latent channel", ylabel="RMS change of the final latent")
axes.legend()

# %% [markdown]
# ## A scale for each channel
#
# Any guidance can take the place of the pipeline's: here half the strength on the four channels of most energy, by APG,
# in the first 80% of sampling. Whether it is better is a question for your prompts and your eyes, on many seeds.

# %%
strongest = torch.tensor(share).argsort(descending=True)[:4].tolist()
scales = [1 + (SCALE - 1) / 2 if channel in strongest else SCALE for channel in range(16)]
guidon.apply(pipe, guidon.Guidance(scales, rule="apg", timing="interval:0,0.8"))
balanced = sample()
guidon.remove(pipe)
print("the pipeline is as it was:", torch.equal(sample(), everywhere))
