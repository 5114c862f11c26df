"""The classes of all commands: help in panels, option names in errors, and command lines that cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..core.errors import InputError, InputWarning
from .usage import explain, option_names, unknown_command

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
MAY_BE_EMPTY = ("negative_prompt", "caption")  # texts of which the empty one means something
WIDEST_NAMES = 0.4  # of a terminal's width: longer names have a line of their own

_UsageError: Any = typer.BadParameter.__bases__[0]  # the argument parser's error, from click or typer's own copy of it


class Command(TyperCommand):
    """A command that shows its options in panels, and shows option names in error messages."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if row := _help_row(param, ctx):
                default = "Arguments" if param.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(param, "rich_help_panel", None) or default, []).append(row)
        _write_panels(formatter, panels)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        try:
            if not ctx.resilient_parsing:
                _refuse_values_left_out(self, ctx, words)
            return super().parse_args(ctx, args)
        except _UsageError as error:
            raise InputError(explain(error, self, ctx, words)) from None

    def invoke(self, ctx: Any) -> Any:
        def spell(name: str) -> str:
            return self.spelling(name, ctx.params)

        def show_spelled(message: Any, *rest: Any, **more: Any) -> None:
            show(message.spelled(spell) if isinstance(message, InputWarning) else message, *rest, **more)

        show, warnings.showwarning = warnings.showwarning, show_spelled
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise InputError(error.spelled(spell)) from error
        except KeyboardInterrupt:
            raise typer.Abort from None  # typer itself would exit without a message
        finally:
            warnings.showwarning = show

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
    """A group of commands, which the help shows in panels."""

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        for param in params:
            if getattr(param, "is_flag", False) and param.default is None:
                param.default = False  # for None, typer would load pydantic, which takes 0.1 s
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            raise InputError(explain(error, self, ctx, words)) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and not ctx.resilient_parsing:
            raise InputError(unknown_command(args[0], self, ctx))
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            text = command.get_short_help_str(limit=1000)
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, text))
        panels["Options"] = [row for param in self.get_params(ctx) if (row := _help_row(param, ctx))]
        _write_panels(formatter, panels)


def _refuse_values_left_out(command: Command, ctx: Any, words: list[str]) -> None:
    """Refuse an option without a value, which the parser reads as the option's value being the next word or empty.

    Raises:
        InputError: the message names the option.
    """
    values, _, _ = command.make_parser(ctx).parse_args(list(words))
    if values.get("help"):
        return
    names = option_names(command)
    for param in command.params:
        value = values.get(param.name)
        for text in value if isinstance(value, list | tuple) else (value,):
            what = param.opts[0] if param.param_type_name == "option" else param.metavar
            if param.param_type_name == "option" and isinstance(text, str) and text in names:
                raise InputError(f"{what} has no value, {text} follows it: give {what} {param.metavar}")
            if text == "" and param.name not in MAY_BE_EMPTY and not (param.metavar == "PROMPT"):
                raise InputError(f"{what} is empty: give {ctx.command_path} {_with_value(param)}")


def _with_value(param: Any) -> str:
    return f"{param.opts[0]} {param.metavar}" if param.param_type_name == "option" else str(param.metavar)


def _write_panels(formatter: Any, panels: Mapping[str, list[tuple[str, str]]]) -> None:
    """Write rows of names and texts under their titles. All texts begin in the same column."""
    rows = [row for panel in panels.values() for row in panel]
    width = min(max(len(names) for names, _ in rows), int(WIDEST_NAMES * formatter.width))
    for title, panel in panels.items():
        with formatter.section(title):
            formatter.write_dl([(names.ljust(width), text) for names, text in panel], col_max=width)


def _help_row(param: Any, ctx: Any) -> tuple[str, str] | None:
    """The names and the text of an option or argument; None for a hidden one.

    An option shows its first name on the left, after its letter if it has one, and its aliases at the end of the text.
    """
    record = param.get_help_record(ctx)
    if record is None:
        return None
    names, text = record
    if param.param_type_name == "argument":
        names = param.metavar or names
    else:
        letters = [name for name in param.opts if not name.startswith("--")]
        first, *others = [name for name in param.opts if name.startswith("--")]
        value = "".join(f"/{name}" for name in param.secondary_opts) or (f" {param.metavar}" if param.metavar else "")
        names = ", ".join([*letters, first]) + value
        text += f" [also {', '.join(others)}]" if others else ""
    if isinstance(default := param.show_default, str):
        text = text.replace(f"default: ({default})", f"default: {default}")  # typer puts words in parentheses
    return names, text.replace("; x>=", "; at least ")
