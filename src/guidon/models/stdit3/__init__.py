"""STDiT3, the video transformer of Open-Sora 1.2: captions to video of any size and length, by rectified flow.

``network`` is the transformer.
"""
