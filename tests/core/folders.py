"""Folders that tests write and read as a whole."""

from guidon.core.atomic import atomic_folder


def content(folder):
    """Every file under a folder, hidden ones too, with its text."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_folder(target, text):
    with atomic_folder(target) as folder:
        (folder / "nested").mkdir()
        (folder / "a").write_text(text)
        (folder / "nested" / "b").write_text(text)
