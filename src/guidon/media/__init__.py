"""Clips: as objects, as files and on contact sheets."""

from typing import TYPE_CHECKING

from ..core.lazy import imported_later
from .formats import FORMATS

if TYPE_CHECKING:
    from .files import load_video, save_video
    from .sheet import contact_sheet
    from .video import Video

__all__ = ["FORMATS", "Video", "contact_sheet", "load_video", "save_video"]
__getattr__ = imported_later(__name__, "files", "sheet", "video")
