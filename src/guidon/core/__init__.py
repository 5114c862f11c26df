"""Used by all other packages: errors, atomic writes, settings, devices, hashes, progress. Imports none of them."""
