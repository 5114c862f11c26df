"""The page of the studio: one HTML document with its style and its script, which asks nobody but the studio.

The colours and the player are those of a study's report.
"""

from __future__ import annotations

import base64
from functools import cache
from importlib import resources

from ...core.hashing import hash_text
from ...core.version import VERSION

REPORT = "guidon.studies.report"
SHARED = ("strips.js", "clock.js")
"""The parts of the script that are the report's."""
SCRIPTS = ("state.js", "columns.js", "settings.js", "inside.js", "carry.js", "runs.js", "start.js")
"""The parts of the script that are the page's own, in order."""


@cache
def _parts() -> tuple[str, str]:
    """The style and the script."""
    report, own = resources.files(REPORT), resources.files(__package__ or "guidon.studio.page")
    css = report.joinpath("base.css").read_text("utf-8") + own.joinpath("page.css").read_text("utf-8")
    files = [
        *(report.joinpath("scripts", name) for name in SHARED),
        *(own.joinpath("scripts", name) for name in SCRIPTS),
    ]
    return css, "\n".join(file.read_text("utf-8") for file in files)


@cache
def page_html() -> str:
    """The page."""
    html = resources.files(__package__ or "guidon.studio.page").joinpath("page.html").read_text("utf-8")
    css, js = _parts()
    for mark, text in (("{{css}}", css), ("{{js}}", js), ("{{version}}", VERSION)):
        html = html.replace(mark, text)
    return html


def policy(embedded: bool) -> str:
    """The content security policy of the page: its own style and script, and nothing from elsewhere.

    Args:
        embedded: whether another site may show the page in a frame.
    """
    css, js = (f"'sha256-{base64.b64encode(bytes.fromhex(hash_text(text))).decode()}'" for text in _parts())
    around = "*" if embedded else "'none'"
    return (
        f"default-src 'none'; style-src {css}; script-src {js}; img-src 'self' data:; connect-src 'self'; "
        f"frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {around}"
    )
