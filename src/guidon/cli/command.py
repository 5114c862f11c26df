"""The class of all commands: help in panels, and option names in error messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..core.errors import InputError

# Names in error messages that are set by options of other names: name -> those options.
OPTIONS_OF = {
    "scale": ("cfg_scale",),
    "channels": ("cfg_channels",),
    "cfg_channel": ("cfg_channels",),
    "rule": ("guidance",),
    "timing": ("interval", "ramp", "oscillate"),
    "size": ("size", "height", "width"),
    "samples": ("num_samples",),
    "batch_size": ("batch_size", "block"),
}


class Command(TyperCommand):
    """A command that shows its options in panels, and shows option names in error messages."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if row := _help_row(param, ctx):
                default = "Arguments" if param.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(param, "rich_help_panel", None) or default, []).append(row)
        # Use one width for the names in all panels, so that all texts begin in the same column.
        width = max(len(names) for rows in panels.values() for names, _ in rows)
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl([(names.ljust(width), text) for names, text in rows], col_max=width)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise InputError(error.spelled(lambda name: self.spelling(name, ctx.params))) from error
        except KeyboardInterrupt:
            raise typer.Abort from None  # typer itself would exit without a message

    def spelling(self, name: str, values: Mapping[str, Any]) -> str:
        """The option of this command for a setting: ``--cfg-scale`` for ``cfg_scale``.

        If several options set it, one that the user gave is named. A setting without an option, such as a key of a
        recipe, keeps its name.
        """
        names = OPTIONS_OF.get(name, (name,))
        params = [param for param in self.params if param.name in names]
        params.sort(key=lambda param: values.get(param.name) is None)
        if not params:
            return name
        first = params[0]
        return first.opts[0] if first.param_type_name == "option" else str(first.metavar or first.name)


class Group(TyperGroup):
    """A group of commands."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False  # for None, typer would load pydantic, which takes 0.1 s
        return option


def _help_row(param: Any, ctx: Any) -> tuple[str, str] | None:
    """The names and the text of an option or argument; None for a hidden one.

    An option shows its first name on the left and its aliases at the end of the text.
    """
    record = param.get_help_record(ctx)
    if record is None:
        return None
    names, text = record
    if param.param_type_name == "argument":
        names = param.metavar or names
    elif len(param.opts) > 1:
        first, *others = param.opts
        names = first + names.removeprefix(", ".join(param.opts))
        text += f" [also {', '.join(others)}]"
    if isinstance(default := param.show_default, str):
        text = text.replace(f"default: ({default})", f"default: {default}")  # typer puts words in parentheses
    return names, text
