"""The wheel as a user gets it: built, then installed in a new environment outside the repository."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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
    """The programs of a new environment with nothing installed."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    yield folder / "bin"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def install(environment, wheel):
    """Installs the wheel with an extra such as ``video``: all that its metadata asks for, and nothing else.

    The packages are links to those that are installed here, which pip took for the same metadata. To download and
    unpack them again takes minutes.
    """
    [site] = environment.parent.glob("lib/python*/site-packages")

    def install(extra):
        pip = (sys.executable, "-m", "pip", "--python", environment / "python", "install", "-q", "--no-deps")
        run(*pip, "--force-reinstall", "--disable-pip-version-check", wheel, cwd=environment)
        for package in needed(metadata_of(wheel).get_all("Requires-Dist"), extra):
            for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
                if not (site / name).exists():
                    (site / name).symlink_to(package.locate_file(name))

    return install


def metadata_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def needed(requirements, extra):
    """The installed distributions that a wheel's requirements ask for with an extra, directly and indirectly."""
    found, seen, waiting = {}, set(), [(text, extra) for text in requirements]
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if (text, extra) in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add((text, extra))
        if requirement.name == "guidon-diffusion":  # an extra that holds another one
            asked = requirements
        else:
            package = found[requirement.name] = distribution(requirement.name)
            assert requirement.specifier.contains(package.version, prereleases=True), text
            asked = package.requires or ()
        waiting += [(text, extra) for text in asked for extra in requirement.extras or {""}]
    return found.values()


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    package = {p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    [information] = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert {name for name in names if not name.startswith(information)} == package
    assert {"guidon/py.typed", "guidon/weights/guidon-small/denoiser.safetensors"} <= package
    assert f"{information}/licenses/LICENSE" in names
    assert metadata_of(wheel)["License-Expression"] == "Apache-2.0"


def test_the_base_starts_and_names_the_extra_that_is_missing(environment, install, tmp_path):
    install("")
    run(environment / "python", "-c", "import guidon; guidon.IDDPM", cwd=tmp_path)
    assert "generate" in run(environment / "guidon", "--help", cwd=tmp_path).stdout
    refused = run(environment / "guidon", "generate", "a red circle moves left", cwd=tmp_path, code=2)
    assert "guidon-diffusion[video]" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_video_extra_generates_a_video_in_an_empty_folder(environment, install, tmp_path):
    install("video")
    run(environment / "guidon", "generate", "a red circle moves left", "--steps", "2", cwd=tmp_path)
    [manifest] = tmp_path.glob("outputs/*.json")
    assert json.loads(manifest.read_text())
    assert manifest.with_suffix("").stat().st_size > 1000
    study = ("study", "run", ROOT / "studies" / "quick.yaml", "--out", "results")
    refused = run(environment / "guidon", *study, cwd=tmp_path, code=2)
    assert "guidon-diffusion[study]" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
