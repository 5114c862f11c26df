"""Adapters of low rank (LoRA, Hu et al. 2106.09685): files of peft and diffusers, merged into a network's weights.

``files`` finds them and reads their settings, without torch. ``merging`` adds them to the weights.
"""
