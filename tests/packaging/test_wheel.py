"""The wheel as a user gets it: built, then installed in an empty environment outside the repository."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel
ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
# The caller's settings of Python and of Guidon must not reach the new environment.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "GUIDON"))}


def run(*command, cwd, code=0):
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == code, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    [path] = folder.glob("*.whl")
    yield path
    shutil.rmtree(folder)  # pytest keeps the folders of three runs


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The programs of a new environment, with nothing installed but pip."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    yield folder / "bin"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def install(environment, wheel):
    """Installs the wheel, with extras such as ``[video]``, on the versions of constraints.txt."""

    def install(extras):
        pip = (environment / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check")
        run(*pip, "-c", ROOT / "constraints.txt", f"{wheel}{extras}", cwd=environment)

    return install


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    package = {p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith("/METADATA"))
        about = archive.read(metadata).decode()
    information = metadata.removesuffix("METADATA")
    assert {name for name in names if not name.startswith(information)} == package
    assert {"guidon/py.typed", "guidon/weights/guidon-small/denoiser.safetensors"} <= package
    assert f"{information}licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in about


def test_the_base_starts_and_names_the_extra_that_is_missing(environment, install, tmp_path):
    install("")
    run(environment / "python", "-c", "import guidon; guidon.IDDPM", cwd=tmp_path)
    assert "generate" in run(environment / "guidon", "--help", cwd=tmp_path).stdout
    refused = run(environment / "guidon", "generate", "a red circle moves left", cwd=tmp_path, code=2)
    assert "guidon-diffusion[video]" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_video_extra_generates_a_video_in_an_empty_folder(environment, install, tmp_path):
    install("[video]")
    run(environment / "guidon", "generate", "a red circle moves left", "--steps", "2", cwd=tmp_path)
    [manifest] = tmp_path.glob("outputs/*.json")
    assert json.loads(manifest.read_text())
    assert manifest.with_suffix("").stat().st_size > 1000
    study = ("study", "run", ROOT / "studies" / "quick.yaml", "--out", "results")
    refused = run(environment / "guidon", *study, cwd=tmp_path, code=2)
    assert "guidon-diffusion[study]" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
