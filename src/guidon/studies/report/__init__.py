"""The report of a study: one HTML file, its figures as CSV, and the clips as MP4."""

from ...core.extras import require

require("jinja2", "a study's report", "study")

from .page import write_report  # noqa: E402  (imported after the check that jinja2 is installed)

__all__ = ["write_report"]
