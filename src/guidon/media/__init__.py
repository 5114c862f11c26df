"""Clips: as objects, as files and on contact sheets."""

from .files import FORMATS, load_video, save_video
from .sheet import contact_sheet
from .video import Video

__all__ = ["FORMATS", "Video", "contact_sheet", "load_video", "save_video"]
