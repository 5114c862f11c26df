"""The shape of MMDiT. It is read without torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import InputError


@dataclass(frozen=True)
class MMDiTConfig:
    """The shape of an ``MMDiT``. The defaults are those of Open-Sora 2.0's released weights."""

    in_channels: int = 64
    """Values of a token of video: latent channels times the pixels of a patch."""
    vec_in_dim: int = 768
    """Width of the pooled text feature."""
    context_in_dim: int = 4096
    """Width of the text features."""
    hidden_size: int = 3072
    mlp_ratio: float = 4.0
    """Width of the hidden layer of every MLP, in multiples of ``hidden_size``."""
    num_heads: int = 24
    depth: int = 19
    """Blocks in which text and video have weights of their own."""
    depth_single_blocks: int = 38
    """Blocks in which they share weights."""
    axes_dim: tuple[int, ...] = (16, 56, 56)
    """How many values of a head are rotated by each coordinate of a token: time, row, column."""
    theta: int = 10_000
    """Base of the rotation's wavelengths."""
    qkv_bias: bool = True
    """Whether queries, keys and values of the first blocks have biases."""
    guidance_embed: bool = False
    """Whether the network is told a guidance scale."""
    cond_embed: bool = True
    """Whether the network is given an image: a mask and the latents that it shows."""
    fused_qkv: bool = False
    """Whether queries, keys and values are one layer, as in FLUX's weights."""
    use_liger_rope: bool | None = None
    """Whether the pairs that are rotated are (i, i + half of a head), as in the released weights, and not neighbours
    (2i, 2i + 1), as in FLUX's. Weights work with one of them, and no shape tells which. None: True with separate
    queries, keys and values, as in the released weights. With ``fused_qkv`` it must be given."""
    patch_size: int = 2
    """Side of a patch in latent pixels."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes_dim", tuple(self.axes_dim))  # JSON has lists
        if self.use_liger_rope is None:
            if self.fused_qkv:
                raise InputError(
                    "an MMDiT of fused queries, keys and values does not tell which pairs it rotates: give "
                    "use_liger_rope, False for neighbours as in FLUX, True for halves"
                )
            object.__setattr__(self, "use_liger_rope", True)
        sizes = ("in_channels", "vec_in_dim", "context_in_dim", "hidden_size", "num_heads", "patch_size", "theta")
        for name in sizes:
            if getattr(self, name) < 1:
                raise InputError(f"an MMDiT of {name} {getattr(self, name)} cannot be made: give 1 or more")
        if self.depth < 0 or self.depth_single_blocks < 0 or self.mlp_ratio <= 0:
            raise InputError(
                f"an MMDiT of depth {self.depth}, depth_single_blocks {self.depth_single_blocks} and mlp_ratio "
                f"{self.mlp_ratio:g} cannot be made: give blocks of at least 0, and a ratio above 0"
            )
        if self.hidden_size % self.num_heads:
            raise InputError(f"a hidden_size of {self.hidden_size} cannot be shared by {self.num_heads} heads")
        if sum(self.axes_dim) != self.head_dim or any(width < 2 or width % 2 for width in self.axes_dim):
            raise InputError(
                f"axes_dim {self.axes_dim} does not share out the {self.head_dim} values of a head: give an even "
                "number for each axis, with that sum"
            )
        if self.in_channels % self.patch_size**2:
            raise InputError(
                f"tokens of {self.in_channels} values hold no whole latent pixels of a patch of {self.patch_size}x"
                f"{self.patch_size}: give other in_channels or patch_size"
            )

    @property
    def head_dim(self) -> int:
        """Values of a head."""
        return self.hidden_size // self.num_heads

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, before they are packed into tokens."""
        return self.in_channels // self.patch_size**2

    @property
    def cond_channels(self) -> int:
        """Values of a token of the image: its latents, and a mask of one channel."""
        return self.in_channels + self.patch_size**2
