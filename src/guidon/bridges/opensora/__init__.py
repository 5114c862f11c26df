"""Drop-ins for the scripts of Open-Sora, DiT and PixArt: the names that they import, on Guidon's own mathematics."""
