"""What every room uses: errors, whole files, settings, devices, hashes, progress. Imports nothing else of guidon."""
