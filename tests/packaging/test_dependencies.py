"""What pyproject.toml declares against what the code imports, and what an import costs."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch

from forks import in_fork

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "guidon"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FILES = sorted(SOURCE.rglob("*.py"))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements):
    """The distributions that requirements name; an extra of ours stands for what it brings."""
    found = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[(.*?)\])?", requirement).groups()
        if normal(name) == PROJECT["name"]:
            found |= declared(r for extra in extras.split(",") for r in EXTRAS[extra.strip()])
        else:
            found.add(normal(name))
    return found


LOCK = "".join((ROOT / name).read_text() for name in ("constraints.txt", "constraints-studio.txt"))
BASE = declared(PROJECT["dependencies"])
OPTIONAL = declared(r for requirements in EXTRAS.values() for r in requirements) - BASE
DISTRIBUTIONS = {module: {normal(name) for name in names} for module, names in packages_distributions().items()}
OPTIONAL_MODULES = sorted(m for m, names in DISTRIBUTIONS.items() if names & OPTIONAL and not m.startswith("_"))


def distribution(module):
    """The distribution that an imported module belongs to; None for the standard library and for Guidon."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "guidon":
        return None
    names = DISTRIBUTIONS.get(top, {top})
    return next(iter(names & (BASE | OPTIONAL) or names))


@functools.cache
def nodes(file):
    """The nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(file.read_text())))


def imports(file):
    """Modules that a file imports, with their lines."""
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module, node.lineno


def fresh(code):
    """What ``code`` prints in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_imported_library_is_declared():
    undeclared = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in FILES
        for module, line in imports(file)
        if (name := distribution(module)) and name not in BASE | OPTIONAL
    ]
    assert undeclared == []


def test_every_extra_that_an_error_recommends_brings_what_is_missing():
    found = 0
    for file in FILES:
        for node in nodes(file):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("require", "extras.require"):
                given = dict(zip(("module", "purpose", "extra"), node.args, strict=False))
                given |= {keyword.arg: keyword.value for keyword in node.keywords}
                module, extra = (getattr(given[name], "value", None) for name in ("module", "extra"))
                if isinstance(module, str):  # a name that is computed is not checked
                    assert distribution(module) in declared(EXTRAS[extra]), f"{file}:{node.lineno}"
                    found += 1
    assert found > 0


@pytest.mark.parametrize("folder", ["src", "docs", "examples", "benchmarks", "."])
def test_every_extra_that_is_named_exists(folder):
    pattern = "*" if folder == "." else "**/*"
    for file in (ROOT / folder).glob(pattern):
        if file.suffix in (".py", ".md", ".yml", ".html"):
            for extras in re.findall(r"guidon-diffusion\[([\w, -]+)\]", file.read_text()):
                assert set(re.split(r", *", extras)) <= set(EXTRAS), file


def without_optional(work):
    """Do it in a process that has not imported Guidon, and in which no optional library can be imported."""

    def blocked():
        sys.modules.update(dict.fromkeys(OPTIONAL_MODULES))  # the import of a module that is None fails
        work()

    in_fork(blocked, without=("guidon", *OPTIONAL_MODULES))


def test_every_module_is_imported_without_the_optional_libraries_or_names_the_extra():
    """What guides and samples is imported; what measures or bridges may refuse, in one line."""
    modules = [
        ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        for file in FILES
        if file.name != "__main__.py"
    ]

    def import_all():
        from guidon.core.errors import InputError

        refused = {}
        for name in modules:
            try:
                importlib.import_module(name)
            except InputError as error:
                refused[name] = str(error)
        for name, error in refused.items():
            bridge = name.startswith("guidon.bridges.diffusers.")
            assert bridge or name.split(".")[1] in ("metrics", "studies", "analysis", "studio"), (name, error)
            assert f"guidon-diffusion[{'diffusers' if bridge else 'study'}]" in error, (name, error)

    without_optional(import_all)


def test_the_base_guides_and_samples_without_the_optional_libraries():
    """A user of ComfyUI or diffusers has the base alone."""

    def sample():
        import guidon

        assert guidon.apply
        assert guidon.remove
        scheduler = guidon.IDDPM(num_sampling_steps=4, cfg_scale=4.0, cfg_channels=3)
        x = torch.ones(1, 4, 2, 2, 2)
        model = lambda x, timestep, **condition: torch.cat([x * 0.5, torch.zeros_like(x)], dim=1)  # noqa: E731
        assert scheduler.p_sample(model, x, torch.tensor([3]))["sample"].shape == x.shape

    without_optional(sample)


def test_importing_guidon_loads_no_other_library():
    loaded = set(fresh("import sys, guidon; print(*sys.modules)").split())
    assert not {"torch", "numpy", "pydantic", "yaml", "typer", "rich"} & loaded


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_the_help_loads_no_torch(arguments):
    code = f"""
import sys
from guidon import cli
try:
    cli.main({arguments})
except SystemExit as stop:
    assert not stop.code
print("loaded:", *sys.modules)
"""
    loaded = set(fresh(code).split("loaded:")[1].split())
    assert not {"torch", "numpy", "pydantic", "diffusers"} & loaded


def test_the_lock_pins_every_dependency_and_names_no_index():
    lock = LOCK
    pinned = {normal(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    assert pinned >= BASE | OPTIONAL
    assert not re.search(r"://|^-", lock, re.MULTILINE)


def test_every_dependency_has_bounds_that_hold_the_tested_version():
    """A release that removes what is used here must not be installed, and the tested one must be."""
    lock = LOCK
    for requirement in {*PROJECT["dependencies"], *(r for requirements in EXTRAS.values() for r in requirements)}:
        if normal(requirement).startswith(PROJECT["name"]):
            continue
        name, least, most = re.fullmatch(r"([\w-]+)>=([\d.]+),<(\d+)", requirement).groups()
        pinned = re.findall(rf"^{name}==([\d.]+)", lock, re.MULTILINE | re.IGNORECASE)  # one for each version of Python
        tested = [tuple(map(int, version.split("."))) for version in pinned]
        assert tuple(map(int, least.split("."))) <= min(tested), requirement
        assert max(tested)[0] == int(most) - 1, requirement
