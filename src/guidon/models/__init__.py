"""Models: one folder per family, and shared code. ``registry`` lists the families, ``catalogue`` the presets."""
