"""How good a clip is: metrics with exact truth for the world, weight-free ones for any video, and their statistics."""
