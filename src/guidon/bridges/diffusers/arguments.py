"""What the ``__call__`` of a pipeline class takes, read from diffusers' source code, so that it is known without torch.

A mistyped argument is then refused at once, before gigabytes of weights are loaded.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ...core.errors import InputError, nearest, quoted, setting
from ...core.extras import require
from ...core.reading import read_text, reading

_NUMBERS, _TRUTHS = (
    {form.format(kind) for kind in kinds for form in ("{}", "{} | None", "Optional[{}]")}
    for kinds in (("int", "float"), ("bool",))
)
"""How diffusers writes that an argument is a number, or true or false."""
REQUIRED: Final = object()
"""In the place of the default of an argument that has none."""
COMPUTED: Final = object()
"""In the place of a default that is no plain value, such as a call."""
PICTURES = ("image", "last_image", "control_image", "mask_image", "ip_adapter_image")
"""Arguments that hold a picture, which a setting can name by its file."""
ONE_PICTURE = ("WanImageToVideoPipeline", "Flux2KleinPipeline")
"""Pipelines that hold one picture for all clips of a call. Wan refuses a list; Flux 2 shows all of it to every clip."""
ONE_CLIP = (
    "Cosmos2_5_PredictBasePipeline",
    "HunyuanVideoImageToVideoPipeline",
    "LTXConditionPipeline",
    "QwenImageEditPipeline",
)
"""Pipelines that make one clip a call where they are given a picture. In a batch, Cosmos 2.5 and HunyuanVideo have a
picture for the first clip alone, LTX draws noise of the picture for the first clip alone, and Qwen-Image shows its text
encoder pictures of another size."""
SIZES = ("height", "width", "num_frames", "max_sequence_length", "num_inference_steps")
"""Arguments that count something: whole numbers of at least 1."""
EXPORTED_AT = 10.0
"""Frames per second of ``diffusers.utils.export_to_video``, where a call of it gives no other."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of a pipeline's call."""

    pipeline: str
    """The class."""
    defaults: Mapping[str, Any]
    """The default of every argument by name; ``REQUIRED`` or ``COMPUTED`` where it has no plain one."""
    example_fps: float | None = None
    """The frames per second at which the example in the pipeline's documentation is exported."""
    types: Mapping[str, str] = field(default_factory=dict[str, str])
    """What each argument is said to be, such as "int" or "float | None"; without those of which nothing is said."""

    def __contains__(self, name: str) -> bool:
        return name in self.defaults

    def default(self, name: str) -> Any:
        """The default of an argument; None where there is no such argument, or no plain default."""
        found = self.defaults.get(name)
        return None if found is REQUIRED or found is COMPUTED else found

    @property
    def plain(self) -> dict[str, Any]:
        """The defaults that say something: plain values that are not None."""
        return {name: value for name in self.defaults if (value := self.default(name)) is not None}

    @property
    def required(self) -> tuple[str, ...]:
        """The arguments that have no default."""
        return tuple(name for name, value in self.defaults.items() if value is REQUIRED)

    def check(self, name: str) -> None:
        """Refuse an argument that does not exist.

        Raises:
            InputError: the message holds the nearest name.
        """
        if name not in self.defaults:
            raise InputError(f"{self.pipeline} takes no argument {name!r}{nearest(name, self.defaults)}")

    def check_value(self, name: str, value: Any) -> None:
        """Refuse a value that is plainly of another type than the argument. None stands for the default.

        Raises:
            InputError: the message says what is expected.
        """
        kind = self.types.get(name, "")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None:
            return
        if name in SIZES and (not is_number or not isinstance(value, int) or value < 1):
            expected = "a whole number of at least 1"
        elif kind in _NUMBERS and not is_number:
            expected = "a number"
        elif kind in _TRUTHS and not isinstance(value, bool):
            expected = "true or false"
        else:
            return
        raise InputError(f"{setting('call')} gives {name} the value {quoted(value)}: give {expected}")


@lru_cache(maxsize=64)
def read_arguments(pipeline: str) -> Arguments:
    """The arguments of a class of diffusers, from its source code. diffusers is not imported.

    Raises:
        InputError: diffusers is not installed, or this version of it has no such class.
    """
    root = _root()
    for path in _files_with(root, pipeline):
        text = read_text(path, "source code")
        with reading(path, "source code"):
            tree = ast.parse(text)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == pipeline and (call := _call_of(node)) is not None:
                said = {own.arg: ast.unparse(own.annotation) for own in _arguments(call.args) if own.annotation}
                return Arguments(pipeline, MappingProxyType(_defaults(call.args)), _example_fps(text), said)
    raise InputError(
        f"the installed diffusers ({_version(root)}) has no {pipeline}: install a version that has it, with pip "
        "install -U diffusers"
    )


def arguments_of(pipe: Any) -> Arguments:
    """The arguments of a pipeline that is loaded. Its class may be of the user's own."""
    kind = type(pipe)
    found: dict[str, Any] = {}
    said: dict[str, str] = {}
    for name, parameter in list(inspect.signature(kind.__call__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = parameter.default
        plain = value is None or isinstance(value, bool | int | float | str)
        found[name] = REQUIRED if value is parameter.empty else value if plain else COMPUTED
        if parameter.annotation is not parameter.empty:
            said[name] = inspect.formatannotation(parameter.annotation).strip("'")
    try:
        text = inspect.getsource(inspect.getmodule(kind.__call__) or kind)
    except (OSError, TypeError):  # no file holds it, such as a class of a notebook
        text = ""
    return Arguments(kind.__name__, MappingProxyType(found), _example_fps(text), said)


def _root() -> Path:
    """The folder of the installed diffusers."""
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        return Path(str(require("diffusers", "a pipeline of diffusers", "diffusers").__file__)).parent  # raises
    return Path(spec.origin).parent


def _files_with(root: Path, pipeline: str) -> list[Path]:
    """The modules that define a class; the ``__init__`` of each folder names the classes in it."""
    found: list[Path] = []
    for init in sorted((root / "pipelines").rglob("__init__.py")):
        if f'"{pipeline}"' in read_text(init, "source code"):
            modules = sorted(path for path in init.parent.glob("*.py") if path != init)
            found += [path for path in modules if f"class {pipeline}(" in read_text(path, "source code")]
    return found


def _version(root: Path) -> str:
    match = re.search(r'__version__ = "([^"]+)"', read_text(root / "__init__.py", "source code"))
    return match[1] if match else "of an unknown version"


def _call_of(node: ast.ClassDef) -> ast.FunctionDef | None:
    found = (part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__call__")
    return next(found, None)


def _arguments(arguments: ast.arguments) -> tuple[ast.arg, ...]:
    return (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)


def _defaults(arguments: ast.arguments) -> dict[str, Any]:
    """Every argument but the first, ``self``, with its default."""
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    found: dict[str, Any] = dict.fromkeys(names[1:], REQUIRED)
    given = arguments.defaults
    found |= zip(names[len(names) - len(given) :], map(_plain, given), strict=True)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found[argument.arg] = REQUIRED if default is None else _plain(default)
    return found


def _plain(node: ast.expr) -> Any:
    """The value of a default that is a number, a text, a truth value or None; ``COMPUTED`` otherwise."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return COMPUTED
    return value if value is None or isinstance(value, bool | int | float | str) else COMPUTED


def _example_fps(text: str) -> float | None:
    """The frames per second of the first export in an example; ``EXPORTED_AT`` where it does not say it."""
    match = re.search(r"export_to_(?:video|gif)\(([^\n]*)\)", text)
    if match is None:
        return None
    fps = re.search(r"fps=(\d+(?:\.\d+)?)", match[1])
    return float(fps[1]) if fps else EXPORTED_AT
