"""Models: one folder a family, and what they share. ``registry`` lists the families, ``catalogue`` the presets."""
