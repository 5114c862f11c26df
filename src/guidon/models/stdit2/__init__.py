"""STDiT2, the video transformer of Open-Sora 1.1: captions to video of any size and length.

``network`` is the transformer.
"""
