"""Whatever fails while Guidon writes, a file or folder is the old one or the new one, and the next run mends it."""

import pytest

from faults.shim import inject


def test_files_and_folders(tmp_path):
    inject(
        "write_json_over_an_old_one", "write_json_in_a_new_folder", "folder", "new_folder", "folder_in_two_steps",
        "torch_save", folder=tmp_path, in_ci=12,
    )  # fmt: skip


def test_clips_in_every_format(tmp_path):
    inject("save_mp4", "save_gif", "save_webp", "save_frames", "save_png", folder=tmp_path, in_ci=6)


def test_generate_over_an_old_output(tmp_path):
    inject("generate_frames", "generate_mp4", folder=tmp_path, in_ci=4)


def test_encode_into_an_old_file(tmp_path):
    for library in ("transformers", "sentencepiece"):
        pytest.importorskip(library)
    inject("encode", folder=tmp_path, in_ci=4)
