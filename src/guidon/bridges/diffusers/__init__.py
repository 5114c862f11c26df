"""Guidance in pipelines of the diffusers library: by a hook, a guider, a number, a scheduler."""
