"""What torch's compiler must know of the networks."""

import torch
from einops import rearrange


def keep_rearranging_whole() -> None:
    """Let torch's compiler take ``rearrange`` as one operation, which its backend sees as what it does to a tensor.

    Without this, it traces how einops reads the pattern of each call, which is most of what it traces in a block.
    """
    torch.compiler.allow_in_graph(rearrange)
