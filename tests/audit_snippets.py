"""Guidance in the style of the known repositories, written for these tests; and code that only looks like it."""

FOUND = {
    # DiT, SiT, PixArt, Lumina, Large-DiT, Open-Sora 1.0, fast-DiT, TinyFusion, LightningDiT
    "dit": ("3", 1, """
def forward_with_cfg(self, x, t, y, cfg_scale):
    half = x[: len(x) // 2]
    out = self.forward(torch.cat([half, half], dim=0), t, y)
    eps, rest = out[:, :3], out[:, 3:]
    cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)
    half_eps = uncond_eps + cfg_scale * (cond_eps - uncond_eps)
    eps = torch.cat([half_eps, half_eps], dim=0)
    return torch.cat([eps, rest], dim=1)
"""),
    # MDT and DiffiT: a scale that depends on the step
    "mdt": ("3", 1, """
def forward_with_cfg(self, x, t, y, cfg_scale=None, steps=1000, power=4.0):
    out = self.forward(x, t, y)
    if cfg_scale is None:
        eps, rest = out[:, :3], out[:, 3:]
        return torch.cat([eps, rest], dim=1)
    eps, rest = out[:, :3], out[:, 3:]
    cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)
    ramp = (1 - torch.cos(((1 - t / steps) ** power) * math.pi)) * 1 / 2
    real_scale = (cfg_scale - 1) * ramp + 1
    real_scale = real_scale[: len(x) // 2].view(-1, 1, 1, 1)
    half_eps = uncond_eps + real_scale * (cond_eps - uncond_eps)
    return torch.cat([torch.cat([half_eps, half_eps], dim=0), rest], dim=1)
"""),
    # FiT: features of patches, on one of two axes
    "fit": ("3", 2, """
def forward_with_cfg(self, x, t, y, cfg_scale):
    out = self.forward(x, t, y)
    guided = 3 * self.patch_size * self.patch_size
    if self.tokens_first:
        eps, rest = out[:, :, :guided], out[:, :, guided:]
    else:
        eps, rest = out[:, :guided], out[:, guided:]
    cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)
    half_eps = uncond_eps + cfg_scale * (cond_eps - uncond_eps)
    eps = torch.cat([half_eps, half_eps], dim=0)
    if self.tokens_first:
        return torch.cat([eps, rest], dim=2)
    return torch.cat([eps, rest], dim=1)
"""),
    # Latte: frames before channels
    "latte": ("4", 2, """
def forward_with_cfg(self, x, t, y, cfg_scale):
    out = self.forward(x, t, y)
    eps, rest = out[:, :, :4, ...], out[:, :, 4:, ...]
    cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)
    half_eps = uncond_eps + cfg_scale * (cond_eps - uncond_eps)
    return torch.cat([torch.cat([half_eps, half_eps], dim=0), rest], dim=2)
"""),
    # Open-Sora 1.1 to 1.3
    "opensora": ("cfg_channel", 1, """
def forward_with_cfg(model, x, timestep, y, cfg_scale, cfg_channel=None, **kwargs):
    out = model.forward(x, timestep, y, **kwargs)
    out = out["x"] if isinstance(out, dict) else out
    if cfg_channel is None:
        cfg_channel = out.shape[1] // 2
    eps, rest = out[:, :cfg_channel], out[:, cfg_channel:]
    cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)
    half_eps = uncond_eps + cfg_scale * (cond_eps - uncond_eps)
    return torch.cat([torch.cat([half_eps, half_eps], dim=0), rest], dim=1)
"""),
    # Lumina in diffusers
    "lumina": ("3", 1, """
class Pipeline:
    def __call__(self, latents, guidance_scale=4.0):
        for t in self.timesteps:
            noise_pred = self.transformer(hidden_states=torch.cat([latents] * 2), timestep=t, return_dict=False)[0]
            noise_pred = noise_pred.chunk(2, dim=1)[0]
            if guidance_scale > 1.0:
                noise_eps, noise_rest = noise_pred[:, :3], noise_pred[:, 3:]
                noise_cond, noise_uncond = torch.split(noise_eps, len(noise_eps) // 2, dim=0)
                noise_half = noise_uncond + guidance_scale * (noise_cond - noise_uncond)
                noise_eps = torch.cat([noise_half, noise_half], dim=0)
                noise_pred = torch.cat([noise_eps, noise_rest], dim=1)
                noise_pred, _ = noise_pred.chunk(2, dim=0)
            latents = self.scheduler.step(noise_pred, t, latents)[0]
"""),
    # GLIDE and its descendants: a function inside another
    "model_fn": ("3", 1, """
def sampler(model, guidance_scale):
    def model_fn(x_t, ts, **kwargs):
        half = x_t[: len(x_t) // 2]
        out = model(th.cat([half, half], dim=0), ts, **kwargs)
        eps, rest = out[:, :3], out[:, 3:]
        cond_eps, uncond_eps = th.split(eps, len(eps) // 2, dim=0)
        half_eps = uncond_eps + guidance_scale * (cond_eps - uncond_eps)
        return th.cat([th.cat([half_eps, half_eps], dim=0), rest], dim=1)
    return model_fn
"""),
    # U-ViT: two calls; the slice comes after the formula
    "two calls": ("3", 1, """
def cfg_nnet(x, timesteps, y, scale):
    cond = nnet(x, timesteps, y=y)
    uncond = nnet(x, timesteps, y=torch.tensor([K] * x.size(0)))
    guided = cond + scale * (cond - uncond)
    return torch.cat([guided[:, :3], cond[:, 3:]], dim=1)
"""),
    "jax, channels last": ("3", -1, """
def guided_velocity(model, variables, x, t, labels, cfg_scale):
    null_labels = jnp.full((x.shape[0],), 1000)
    out = model.apply(variables, jnp.concatenate([x, x]), t, jnp.concatenate([labels, null_labels]))
    cond, uncond = jnp.split(out, 2, axis=0)
    first = uncond[..., :3] + cfg_scale * (cond[..., :3] - uncond[..., :3])
    return jnp.concatenate([first, cond[..., 3:]], axis=-1)
"""),
    "jax, split": ("3", 1, """
def forward_with_cfg(self, x, t, y, w):
    eps, rest = jnp.split(self(x, t, y), [3], axis=1)
    cond, uncond = jnp.split(eps, 2, axis=0)
    half = (1 + w) * cond - w * uncond
    return jnp.concatenate([jnp.concatenate([half, half], axis=0), rest], axis=1)
"""),
    "jax, at": ("3", 1, """
def guide(out, s):
    cond, uncond = jnp.split(out, 2)
    return cond.at[:, :3].set(uncond[:, :3] + s * (cond[:, :3] - uncond[:, :3]))
"""),
    "torch.split": ("3", 1, """
def guide(net, x, t, y, scale):
    out = net(torch.cat([x, x], 0), t, y)
    count = 3
    guided, untouched = torch.split(out, [count, out.shape[1] - count], dim=1)
    pos, neg = guided.chunk(2, dim=0)
    mixed = neg.lerp(pos, scale)
    return torch.cat((mixed.repeat(2, 1, 1, 1), untouched), dim=1)
"""),
    "narrow": ("3", 1, """
def guide(out, s):
    eps, rest = torch.narrow(out, 1, 0, 3), out.narrow(1, 3, out.shape[1] - 3)
    uncond, cond = eps.chunk(2, dim=0)
    half = torch.lerp(uncond, cond, s)
    return torch.cat([torch.cat([half, half]), rest], dim=1)
"""),
    "index_select": ("3", 1, """
def guide(out, s):
    eps = torch.index_select(out, 1, torch.tensor([0, 1, 2]))
    cond, uncond = eps.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), out[:, 3:]], dim=1)
"""),
    "numpy": ("3", 1, """
def guide(out, s):
    eps = np.take(out, [0, 1, 2], axis=1)
    cond, uncond = np.split(eps, 2, axis=0)
    return np.concatenate([uncond + s * (cond - uncond), np.split(out, 2)[0][:, 3:]], axis=1)
"""),
    "tensorflow": ("3", -1, """
def guide(out, s):
    eps, rest = tf.split(out, [3, 5], axis=-1)
    cond, uncond = tf.split(eps, 2, axis=0)
    half = uncond + s * (cond - uncond)
    return tf.concat([tf.concat([half, half], 0), rest], axis=-1)
"""),
    "einops": ("3", 1, """
def guide(out, s):
    cond, uncond = rearrange(out, "(two b) c h w -> two b c h w", two=2)
    first = uncond[:, :3] + s * (cond[:, :3] - uncond[:, :3])
    return torch.cat([first, cond[:, 3:]], dim=1)
"""),
    "view": ("3", 1, """
def guide(out, s):
    out = out.view(2, -1, *out.shape[1:])
    first = out[1, :, :3] + s * (out[0, :, :3] - out[1, :, :3])
    return torch.cat([first, out[0, :, 3:]], dim=1)
"""),
    "batch and channels at once": ("3", 1, """
def guide(out, s):
    n = out.shape[0] // 2
    cond, uncond = out[:n, :3], out[n:, :3]
    return torch.cat([uncond + s * (cond - uncond), out[:n, 3:]], 1)
"""),
    "constant of the module": ("3", 1, """
GUIDED = 3
def guide(out, s):
    eps, rest = out[:, :GUIDED], out[:, GUIDED:]
    cond, uncond = eps.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), rest], dim=1)
"""),
    "attribute": ("self.cfg_channels", 1, """
class Sampler:
    def __init__(self, cfg_channels=3):
        self.cfg_channels = cfg_channels
    def guide(self, out, s):
        eps, rest = out[:, : self.cfg_channels], out[:, self.cfg_channels :]
        cond, uncond = eps.chunk(2)
        half = uncond + s * (cond - uncond)
        return torch.cat([torch.cat([half, half]), rest], dim=1)
"""),
    "slice objects": ("3", 1, """
def guide(out, s):
    where = (slice(None), slice(0, 3))
    cond, uncond = out.chunk(2)
    cond[where] = uncond[where] + s * (cond[where] - uncond[where])
    return cond
"""),
    "in place": ("3", 1, """
def guide(self, x, t, text, null, scale):
    cond = self.net(x, t, text)
    uncond = self.net(x, t, null)
    out = cond.clone()
    out[:, :3] = uncond[:, :3] + scale * (cond[:, :3] - uncond[:, :3])
    return out
"""),
    "in place, added": ("3", 1, """
def guide(self, x, t, text, null, scale):
    cond = self.net(x, t, text)
    uncond = self.net(x, t, null)
    cond[:, :3] += (scale - 1) * (cond[:, :3] - uncond[:, :3])
    return cond
"""),
    "in place, methods": ("3", 1, """
def guide(out, s):
    eps, rest = out[:, :3], out[:, 3:]
    cond, uncond = eps.chunk(2)
    cond.sub_(uncond).mul_(s).add_(uncond)
    return torch.cat([torch.cat([cond, cond]), rest], 1)
"""),
    "the rest is put back": ("3", 1, """
def guide(self, x, t, text, null, scale):
    cond = self.net(x, t, text)
    uncond = self.net(x, t, null)
    out = uncond + scale * (cond - uncond)
    out[:, 3:] = cond[:, 3:]
    return out
"""),
    "the difference is cleared": ("3", 1, """
def guide(out, s):
    cond, uncond = out.chunk(2)
    delta = cond - uncond
    delta[:, 3:] = 0
    return cond + (s - 1) * delta
"""),
    "the branch is overwritten": ("3", 1, """
def guide(out, s):
    cond, uncond = out.chunk(2)
    uncond[:, 3:] = cond[:, 3:]
    return uncond + s * (cond - uncond)
"""),
    "where": ("3", 1, """
def guide(out, s):
    cond, uncond = out.chunk(2)
    mask = torch.zeros(1, out.shape[1], 1, 1, dtype=torch.bool)
    mask[:, :3] = True
    return torch.where(mask, uncond + s * (cond - uncond), cond)
"""),
    "where, arange": ("3", 1, """
def guide(out, s):
    cond, uncond = out.chunk(2)
    mask = (torch.arange(out.shape[1]) < 3).view(1, -1, 1, 1)
    return torch.where(mask, uncond + s * (cond - uncond), cond)
"""),
    "scale per channel": ("3", 1, """
def guide(out, s):
    cond, uncond = out.chunk(2)
    scales = torch.tensor([s, s, s, 1.0]).view(1, 4, 1, 1)
    return uncond + scales * (cond - uncond)
"""),
    "helper": ("3", 1, """
def mix(a, b, w):
    return b + w * (a - b)
def guide(out, s):
    eps, rest = out.split([3, out.shape[1] - 3], dim=1)
    cond, uncond = eps.chunk(2)
    half = mix(cond, uncond, s)
    return torch.cat([torch.cat([half, half]), rest], dim=1)
"""),
    "method that halves": ("3", 1, """
class Model:
    def _mix(self, eps, w):
        a, b = eps.chunk(2)
        half = b + w * (a - b)
        return torch.cat([half, half])
    def guide(self, out, s):
        return torch.cat([self._mix(out[:, :3], s), out[:, 3:]], dim=1)
"""),
    "helper with a count": ("3", 1, """
def guide(out, k, s):
    head, tail = out[:, :k], out[:, k:]
    cond, uncond = head.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), tail], dim=1)
def run(out):
    return guide(out, 3, 4.0)
"""),
    "walrus": ("3", 1, """
def guide(self, x, t, y, k):
    a, b = (eps := (out := self.net(x, t, y))[:, :3]).chunk(2)
    return torch.cat([b + k * (a - b), out[: len(out) // 2, 3:]], 1)
"""),
    "anonymous": ("3", 1, """
def f(self, x, t, y, k):
    o = self.net(torch.cat([x, x]), t, y)
    e, r = o[:, :3], o[:, 3:]
    a, b = e.chunk(2)
    g = (a - b) * k + b
    return torch.cat((torch.cat((g, g)), r), 1)
"""),
    "rescaled": ("3", 1, """
def guide(out, s, phi):
    eps, rest = out[:, :3], out[:, 3:]
    uncond, cond = eps.chunk(2)
    half = uncond + s * (cond - uncond)
    half = phi * half * (cond.std() / half.std()) + (1 - phi) * half
    return torch.cat([torch.cat([half, half]), rest], dim=1)
"""),
    "projected": ("3", 1, """
def guide(out, s):
    eps, rest = out[:, :3], out[:, 3:]
    uncond, cond = eps.chunk(2)
    half = cond + (s - 1) * project(cond - uncond)
    return torch.cat([torch.cat([half, half]), rest], dim=1)
"""),
    "loop over channels": ("3", 1, """
def guide(cond, uncond, s):
    out = cond.clone()
    for c in range(3):
        out[:, c] = uncond[:, c] + s * (cond[:, c] - uncond[:, c])
    return out
"""),
    "one sample": ("3", 0, """
def guide(conds, unconds, s):
    return [torch.cat([u[:3] + s * (c[:3] - u[:3]), c[3:]], dim=0) for c, u in zip(conds, unconds)]
"""),
    "one channel": ('"only:3"', 1, """
def guide(cond, uncond, s):
    out = cond.clone()
    out[:, 3] = uncond[:, 3] + s * (cond[:, 3] - uncond[:, 3])
    return out
"""),
    "listed channels": ("[0, 2]", 1, """
def guide(cond, uncond, s):
    out = cond.clone()
    chosen = [0, 2]
    out[:, chosen] = uncond[:, chosen] + s * (cond[:, chosen] - uncond[:, chosen])
    return out
"""),
    "all but the last": ("channels - 1", 1, """
def guide(cond, uncond, s):
    first = uncond[:, :-1] + s * (cond[:, :-1] - uncond[:, :-1])
    return torch.cat([first, cond[:, -1:]], dim=1)
"""),
    "only RGB by number": ("3", 1, """
def guide(out):
    eps, rest = out[:, :3], out[:, 3:]
    uncond, cond = eps.chunk(2)
    half = uncond + 7.5 * (cond - uncond)
    return torch.cat([torch.cat([half, half]), rest], dim=1)
"""),
    "numpy's index expression": ("3", 1, """
def guide(out, s):
    eps, rest = out[np.s_[:, :3]], out[:, 3:]
    cond, uncond = np.split(eps, 2)
    half = uncond + s * (cond - uncond)
    return np.concatenate([np.concatenate([half, half]), rest], axis=1)
"""),
    "booleans": ("3", 1, """
def guide(out, s):
    cond, uncond = out[:, [True, True, True, False]].chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), out[:, 3:]], dim=1)
"""),
    "another class's method": ("3", 1, """
class Guide:
    @staticmethod
    def combine(eps, s):
        cond, uncond = eps.chunk(2)
        return uncond + s * (cond - uncond)
class Model:
    def run(self, out, s):
        return torch.cat([Guide.combine(out[:, :3], s), out[: len(out) // 2, 3:]], dim=1)
"""),
    "a list that grows": ("3", 1, """
def guide(out, s):
    eps, rest = out[:, :3], out[:, 3:]
    cond, uncond = eps.chunk(2)
    parts = []
    parts.append(uncond + s * (cond - uncond))
    parts.append(rest.chunk(2)[0])
    return torch.cat(parts, dim=1)
"""),
    "a loop over a tuple": ("3", 1, """
def guide(out, s):
    cond, uncond = out.chunk(2)
    for channel in (0, 1, 2):
        cond[:, channel] = uncond[:, channel] + s * (cond[:, channel] - uncond[:, channel])
    return cond
"""),
    "functions of torch": ("3", 1, """
def guide(out, s):
    cond, uncond = out[:, :3].chunk(2)
    half = torch.add(uncond, torch.mul(torch.sub(cond, uncond), s))
    return torch.cat([half, out[: len(out) // 2, 3:]], 1)
"""),
    "two conditions": ("3", 1, """
def guide(out, text_scale, image_scale):
    eps, rest = out[:, :3], out[:, 3:]
    text, image, uncond = eps.chunk(3)
    third = uncond + text_scale * (text - image) + image_scale * (image - uncond)
    return torch.cat([third, rest.chunk(3)[0]], dim=1)
"""),
    "a script": ("3", 1, """
import torch
out = model(torch.cat([x, x]), t, y)
eps, rest = out[:, :3], out[:, 3:]
cond, uncond = eps.chunk(2)
half = uncond + 4.0 * (cond - uncond)
out = torch.cat([torch.cat([half, half]), rest], dim=1)
"""),
    "fewer than the class has": ("4", 1, """
class Model:
    def __init__(self, in_channels=16):
        self.in_channels = in_channels
    def guide(self, x, t, y, s):
        out = self.net(x, t, y)
        eps, rest = out[:, :4], out[:, 4:]
        cond, uncond = eps.chunk(2)
        half = uncond + s * (cond - uncond)
        return torch.cat([torch.cat([half, half]), rest], dim=1)
"""),
}  # fmt: skip
"""name -> (channels of the Guidon call, axis, source)"""

SUSPICIOUS = {
    "tokens, by a comment": """
def denoise(self, hidden, t, s):
    out = self.transformer(hidden, t)  # (2B, S, 64)
    eps, rest = out[:, :3], out[:, 3:]
    cond, uncond = eps.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), rest], dim=1)
""",
    "tokens, by a shape": """
def denoise(self, x, t, y, s):
    out = self.net(x, t, y)
    b, n, d = out.shape
    eps, rest = out[:, :3], out[:, 3:]
    cond, uncond = eps.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), rest], dim=1)
""",
    "tokens, by packing": """
class Pipeline:
    def denoise(self, latents, t, cfg):
        packed_latents = self._pack_latents(latents, 1, 16, 8, 8)
        cond = self.transformer(packed_latents, t, self.pos)[0]
        uncond = self.transformer(packed_latents, t, self.neg)[0]
        cond[:, :3] = uncond[:, :3] + cfg * (cond[:, :3] - uncond[:, :3])
        return cond
""",
    "packed features": """
class Pipeline:
    def denoise(self, latents, t, s):
        latents = self._pack_latents(latents)
        cond = self.transformer(latents, t, self.pos)[0]
        uncond = self.transformer(latents, t, self.neg)[0]
        first = uncond[..., :3] + s * (cond[..., :3] - uncond[..., :3])
        return torch.cat([first, cond[..., 3:]], dim=-1)
""",
    "packed features, by a comment": """
def denoise(self, hidden, t, w):
    noise_pred = self.transformer(hidden, t)[0]  # [2B, S, 128]
    noise_uncond, noise_text = noise_pred.chunk(2)
    first = noise_uncond[..., :3] + w * (noise_text[..., :3] - noise_uncond[..., :3])
    return torch.cat([first, noise_text[..., 3:]], dim=-1)
""",
    "tokens, by a docstring": """
def guide(noise_pred, s):
    '''noise_pred: packed latents of shape (2B, S, 64).'''
    eps, rest = noise_pred[:, :3], noise_pred[:, 3:]
    cond, uncond = eps.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), rest], dim=1)
""",
    "tokens, by an annotation": """
def guide(out: Float[Tensor, "b s d"], s: float):
    eps, rest = out[:, :3], out[:, 3:]
    cond, uncond = eps.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), rest], dim=1)
""",
    "tokens, by flattening": """
def forward(self, x, t, y, s):
    out = self.blocks(x.flatten(2).transpose(1, 2), t, y)
    eps, rest = out[:, :3], out[:, 3:]
    cond, uncond = eps.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), rest], dim=1)
""",
    "packed features, by unpacking": """
class Pipeline:
    def step(self, latents, t, s):
        uncond, cond = self.transformer(latents, t)[0].chunk(2)
        out = torch.cat([uncond[..., :3] + s * (cond[..., :3] - uncond[..., :3]), cond[..., 3:]], dim=-1)
        return self._unpack_latents(self.scheduler.step(out, t, latents)[0], 64, 64, 8)
""",
    "frames": """
def denoise(self, x, t, w):
    noise_pred = self.transformer(x, t)[0]  # [2B, T, C, H, W]
    uncond, cond = noise_pred.chunk(2)
    first = uncond[:, :3] + w * (cond[:, :3] - uncond[:, :3])
    return torch.cat([first, cond[:, 3:]], dim=1)
""",
    "another axis is joined": """
def denoise(self, x, t, y, s):
    out = self.net(x, t, y)
    eps, rest = out[:, :3], out[:, :, 3:]
    cond, uncond = eps.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), rest], dim=2)
""",
}
"""Cuts of an axis that is not the channels."""

COMPLETE = {
    "in_channels": """
def forward_with_cfg(self, x, t, y, cfg_scale):
    out = self.forward(x, t, y)
    eps, rest = out[:, : self.in_channels], out[:, self.in_channels :]
    cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)
    half_eps = uncond_eps + cfg_scale * (cond_eps - uncond_eps)
    return torch.cat([torch.cat([half_eps, half_eps], dim=0), rest], dim=1)
""",
    "DiT in diffusers": """
class Pipeline:
    def __call__(self, latents, guidance_scale):
        latent_channels = self.transformer.config.in_channels
        noise_pred = self.transformer(latents, timestep=self.t).sample
        eps, rest = noise_pred[:, :latent_channels], noise_pred[:, latent_channels:]
        cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)
        half_eps = uncond_eps + guidance_scale * (cond_eps - uncond_eps)
        noise_pred = torch.cat([torch.cat([half_eps, half_eps], dim=0), rest], dim=1)
""",
    "half of the output": """
def guide(out, s):
    eps, rest = out.chunk(2, dim=1)
    cond, uncond = eps.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), rest], dim=1)
""",
    "four of eight": """
def guide(out, s):
    eps, variance = torch.split(out, [4, 4], dim=1)
    cond, uncond = eps.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([torch.cat([half, half]), variance], dim=1)
""",
    "the class says four": """
class Latte:
    def __init__(self, input_size=32, in_channels=4):
        self.net = make(input_size, in_channels)
    def forward_with_cfg(self, x, t, y, cfg_scale):
        out = self.net(x, t, y)
        eps, rest = out[:, :, :4], out[:, :, 4:]
        cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)
        half_eps = uncond_eps + cfg_scale * (cond_eps - uncond_eps)
        return torch.cat([torch.cat([half_eps, half_eps], dim=0), rest], dim=2)
""",
}
"""Guidance on every latent channel, which leaves out a learned variance."""

NOTHING = {
    "all channels": """
def guide(out, s):
    cond, uncond = out.chunk(2)
    half = uncond + s * (cond - uncond)
    return torch.cat([half, half], dim=0)
""",
    "learned variance after guidance": """
def guide(noise_pred, channels, s):
    uncond, cond = noise_pred.chunk(2)
    noise_pred = uncond + s * (cond - uncond)
    eps, variance = torch.split(noise_pred, channels, dim=1)
    return torch.cat([eps, variance], dim=1)
""",
    "variance dropped after guidance": """
def guide(noise_pred, s):
    uncond, cond = noise_pred.chunk(2)
    return (uncond + s * (cond - uncond)).chunk(2, dim=1)[0]
""",
    "tokens of a reference image dropped": """
class Pipeline:
    def guide(self, latents, t, s):
        noise_pred = self.transformer(latents, t, self.pos)[0]
        noise_pred = noise_pred[:, : latents.size(1)]
        neg_noise_pred = self.transformer(latents, t, self.neg)[0]
        neg_noise_pred = neg_noise_pred[:, : latents.size(1)]
        return neg_noise_pred + s * (noise_pred - neg_noise_pred)
""",
    "text tokens dropped": """
def guide(self, x, t, s, text_len):
    uncond, cond = self.net(x, t).chunk(2)
    uncond, cond = uncond[:, text_len:], cond[:, text_len:]
    return uncond + s * (cond - uncond)
""",
    "first frame kept": """
def guide(self, latents, image_latents, t, s):
    uncond, cond = self.net(latents, t).chunk(2)
    out = uncond + s * (cond - uncond)
    return torch.cat([image_latents[:, :, :1], out[:, :, 1:]], dim=2)
""",
    "conditioning frames dropped": """
def guide(self, latents, t, s):
    cond, uncond = self.net(latents, t).chunk(2)
    cond, uncond = cond[:, :, self.num_frames :], uncond[:, :, self.num_frames :]
    out = uncond + s * (cond - uncond)
    return torch.cat([latents[:, :, : self.num_frames], out], dim=2)
""",
    "logits of a language model": """
def guide(out, s):
    cond_logits, uncond_logits = out.logits[:, -1, :].chunk(2)
    return uncond_logits + s * (cond_logits - uncond_logits)
""",
    "samples of a batch": """
def guide(self, x, t, s, n):
    cond, uncond = self.net(x, t).chunk(2)
    return uncond[:n] + s * (cond[:n] - uncond[:n])
""",
    "RGB of images": """
def guide(self, latents, s):
    uncond, cond = self.unet(latents).chunk(2)
    image = self.vae.decode(uncond + s * (cond - uncond)).sample
    return image[:, :3]
""",
    "RGB beside guidance": """
def guide(out, images, s):
    rgb = images[:, :3]
    uncond, cond = out.chunk(2)
    return uncond + s * (cond - uncond), rgb
""",
    "alpha compositing": """
def composite(image, background):
    alpha = image[..., 3:]
    return image[..., :3] * alpha + background[..., :3] * (1 - alpha)
""",
    "poses between two frames": """
def between(first, second, t):
    place = first[:, :3] + t * (second[:, :3] - first[:, :3])
    return np.concatenate([place, first[:, 3:]], axis=1)
""",
    "gradient penalty": """
def penalty(self, real, fake):
    alpha = torch.rand(real.size(0), 1, 1, 1)
    return self.critic(real[:, :3] + alpha * (fake[:, :3] - real[:, :3]))
""",
    "moving average": """
def update(average, new, decay):
    average[:, :3] = decay * average[:, :3] + (1 - decay) * new[:, :3]
""",
    "inpainting mask": """
def guide(cond, uncond, mask, s):
    out = uncond + s * (cond - uncond)
    return mask * out + (1 - mask) * cond
""",
    "interval of guidance": """
def guide(out, t, s, low, high):
    cond, uncond = jnp.split(out, 2, axis=0)
    inside = ((t >= low) & (t <= high)).reshape(-1, 1, 1, 1)
    return jnp.where(inside, uncond + s * (cond - uncond), cond)
""",
    "learned range": """
def variance(self, model, x, t):
    out, values = torch.split(model(x, t), x.shape[1], dim=1)
    fraction = (values + 1) / 2
    return fraction * self.log_betas + (1 - fraction) * self.log_clipped
""",
    "rotary embedding": """
def rotate(x, cos, sin):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)
""",
    "a loss on some channels": """
def loss(out, target):
    a, b = out.chunk(2)
    return ((a[:, :3] - b[:, :3]) * 2).mean()
""",
    "a control image is joined": """
def guide(self, x, t, s, control):
    uncond, cond = self.net(torch.cat([x, control[:, :3]], 1), t).chunk(2)
    return uncond + s * (cond - uncond)
""",
    "a mask by frames": """
def blend(self, latents, frames, image):
    indicator = latents.new_zeros(1, 1, latents.size(2), 1, 1)
    indicator[:, :, :frames] = 1.0
    uncond, cond = self.net(latents).chunk(2)
    out = uncond + self.guidance_scale * (cond - uncond)
    return indicator * image + (1 - indicator) * out
""",
    "halves of a batch of images are mixed": """
def mix(images, weight):
    first, second = images[:, :3].chunk(2)
    return weight * first + (1 - weight) * second
""",
    "the first position of a sequence": """
def guide(self, hidden, s):
    cond, uncond = self.head(hidden)[:, -1].chunk(2)
    return uncond + s * (cond - uncond)
""",
    "a mean and its variance": """
def encode(self, x, s):
    mean, spread = self.net(x).chunk(2, dim=1)
    return mean + s * (spread - mean)
""",
    "colour jitter": """
def jitter(x, strength):
    mean = x[:, :3].mean(dim=1, keepdim=True)
    return mean + strength * (x[:, :3] - mean)
""",
    "frames of a condition": """
def guide(self, latents, t, s, n_cond_frames):
    cond, uncond = self.net(latents, t).chunk(2)
    out = uncond[:, n_cond_frames:] + s * (cond[:, n_cond_frames:] - uncond[:, n_cond_frames:])
    return torch.cat([latents[:, :n_cond_frames], out], dim=1)
""",
    "commented out": """
def guide(out, s):
    # eps, rest = out[:, :3], out[:, 3:]
    cond, uncond = out.chunk(2)
    return uncond + s * (cond - uncond)
""",
}
"""Code with guidance or slices, but no sliced guidance."""
