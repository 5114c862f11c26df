"""The version of the package, which manifests hold."""

VERSION = "0.1.0"
