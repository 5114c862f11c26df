"""What pyproject.toml declares against what the code imports, and what an import costs."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

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


def is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(node, at_import_time):
    """Modules that the code below ``node`` imports, with their lines; without function bodies if ``at_import_time``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            yield child.module, child.lineno
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not (at_import_time and (is_function or is_for_types(child))):
            yield from imports(child, at_import_time)


def fresh(code):
    """What ``code`` prints in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def libraries(at_import_time):
    """Every import of a library in the package: where it is, and the library's distribution."""
    for file in FILES:
        for module, line in imports(ast.parse(file.read_text()), at_import_time):
            if name := distribution(module):
                yield f"{file.relative_to(ROOT)}:{line} imports {module}", name


def test_every_imported_library_is_declared():
    assert [where for where, name in libraries(at_import_time=False) if name not in BASE | OPTIONAL] == []


def test_no_module_imports_an_optional_library_before_it_is_needed():
    assert [where for where, name in libraries(at_import_time=True) if name in OPTIONAL] == []


def test_every_extra_that_an_error_recommends_brings_what_is_missing():
    found = 0
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "require":
                given = dict(zip(("module", "purpose", "extra"), node.args, strict=False))
                given |= {keyword.arg: keyword.value for keyword in node.keywords}
                module, extra = (ast.literal_eval(given[name]) for name in ("module", "extra"))
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


def test_the_base_guides_and_samples_without_the_optional_libraries():
    """A user of ComfyUI or diffusers has the base alone."""
    code = f"""
import sys
sys.modules |= dict.fromkeys({OPTIONAL_MODULES})  # importing a module that is None fails
import torch
import guidon, guidon.cli, guidon.diffusion, guidon.guidance, guidon.samplers
from guidon.bridges.opensora import IDDPM
scheduler = IDDPM(num_sampling_steps=4, cfg_scale=4.0, cfg_channels=3)
x = torch.ones(1, 4, 2, 2, 2)
model = lambda x, timestep, **condition: torch.cat([x * 0.5, torch.zeros_like(x)], dim=1)
print(scheduler.p_sample(model, x, torch.tensor([3]))["sample"].shape)
"""
    assert "[1, 4, 2, 2, 2]" in fresh(code)


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
    lock = (ROOT / "constraints.txt").read_text()
    pinned = {normal(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    assert pinned >= BASE | OPTIONAL
    assert not re.search(r"://|^-", lock, re.MULTILINE)
