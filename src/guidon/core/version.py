"""The version of the package. Manifests record it."""

VERSION = "0.1.0"
