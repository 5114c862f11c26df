"""The report of a study: one HTML file, its figures as CSV, and the clips as MP4."""

from .page import write_report

__all__ = ["write_report"]
