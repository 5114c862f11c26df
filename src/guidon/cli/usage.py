"""Command lines that cannot be read: one line that says what was given, what was expected and what to write."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import typer

# What other programs call our options, without the dashes: their spelling -> our option.
ELSEWHERE = {
    **dict.fromkeys(("outdir", "output-dir", "output-path", "output-folder", "save-dir", "save-path"), "--out"),
    **dict.fromkeys(("num-sampling-steps", "sampling-steps", "sample-steps", "infer-steps", "num-steps"), "--steps"),
    **dict.fromkeys(("ddim-steps", "timesteps", "num-timesteps"), "--steps"),
    **dict.fromkeys(("scale", "cfg", "cfg-strength", "guidance-weight", "guide-scale", "cfg-weight"), "--cfg-scale"),
    **dict.fromkeys(("channels", "channel", "guided-channels", "guidance-channels"), "--cfg-channels"),
    **dict.fromkeys(("scheduler", "solver", "sample-solver"), "--sampler"),
    **dict.fromkeys(("random-seed", "base-seed", "manual-seed", "noise-seed"), "--seed"),
    **dict.fromkeys(("ckpt", "ckpt-path", "checkpoint-path", "weights", "pretrained"), "--checkpoint"),
    **dict.fromkeys(("model-path", "model-name", "model-id", "ckpt-dir"), "--model"),
    **dict.fromkeys(("image-size", "img-size", "video-size"), "--size"),
    **dict.fromkeys(("video-length", "frame-num", "length", "num-frame"), "--frames"),
    **dict.fromkeys(("frame-rate", "framerate"), "--fps"),
    **dict.fromkeys(("n", "n-samples", "num-images", "num-videos", "samples"), "--num-samples"),
    **dict.fromkeys(("neg-prompt", "uncond-prompt", "n-prompt"), "--negative-prompt"),
    **dict.fromkeys(("prompt-file", "prompt-path", "from-file", "prompts"), "--prompts-file"),
    **dict.fromkeys(("cpu", "gpu", "cuda"), "--device"),
    **dict.fromkeys(("zoom", "enlarge", "scale-up"), "--upscale"),
    **dict.fromkeys(("rule", "guidance-rule"), "--guidance"),
    **dict.fromkeys(("timing", "guidance-interval", "cfg-interval"), "--interval"),
    **dict.fromkeys(("manifest", "json"), "--from"),
    **dict.fromkeys(("precision", "torch-dtype"), "--dtype"),
    **dict.fromkeys(("batch", "bs"), "--batch-size"),
    **dict.fromkeys(("reference-path", "references", "ref"), "--reference"),
    **dict.fromkeys(("condition-frame-length", "overlap"), "--condition-frames"),
    **dict.fromkeys(("condition-frame-edit",), "--condition-edit"),
    **dict.fromkeys(("num-sample",), "--num-samples"),
    **dict.fromkeys(("init-image", "start-image"), "--first-frame"),
    **dict.fromkeys(("init-video", "input-video"), "--edit"),
    **dict.fromkeys(("loops", "num-loops"), "--loop"),
    **dict.fromkeys(("t5", "t5-path"), "--text-encoder"),
    "h": "--height",
    "w": "--width",
}
# What other programs call our commands: their word -> the command to write.
COMMANDS_ELSEWHERE = {
    **dict.fromkeys(("sample", "infer", "inference", "run-model", "video", "txt2vid", "t2v", "make"), "generate"),
    **dict.fromkeys(("list", "presets", "ls"), "models"),
    **dict.fromkeys(("eval", "measure", "metrics"), "evaluate"),
    **dict.fromkeys(("info", "show", "describe"), "inspect"),
    **dict.fromkeys(("run", "compare"), "study run"),
    **dict.fromkeys(("convert", "migrate", "translate"), "config"),
    "report": "study report",
    "version": "--version",
}


def explain(error: Any, command: Any, context: Any, words: Sequence[str]) -> str:
    """The message for an error of the argument parser.

    Args:
        error: what the parser raised.
        command: the command or group whose arguments were read.
        context: the parser's context of that command.
        words: the arguments.
    """
    where = context.command_path
    if hasattr(error, "possibilities"):
        return _unknown_option(str(error.option_name), command, context, words)
    if (name := getattr(error, "option_name", None)) is not None:
        param = next(param for param in command.params if name in (*param.opts, *param.secondary_opts))
        if getattr(param, "is_flag", False):
            return f"{name} takes no value: write {name} alone"
        return f"{name} has no value: give {name} {param.metavar}; {_lower_first(param.help)}"
    param = getattr(error, "param", None)
    if param is not None and isinstance(error, typer.BadParameter):
        given = [value for value in _given(command, context, words, param) if not _is_valid(param, value, str(error))]
        if given:
            pointed = given[0].replace(",", ".")  # other languages write 0,7
            hint = f": write {pointed}" if pointed != given[0] and _is_valid(param, pointed, str(error)) else ""
            return f"{param.opts[0]} {given[0]!r} is not {_expected(param, str(error))}{hint}"
        what = f"{param.opts[0]} {param.metavar}" if param.param_type_name == "option" else param.metavar
        return f"no {what} was given, as in: {_example(command) or f'{where} {what}'}"
    message = str(error.format_message())
    if found := re.fullmatch(r"Got unexpected extra argument\S* \((.*)\)", message, re.DOTALL):
        takes = next((param.metavar for param in command.params if param.param_type_name == "argument"), None)
        return f"{where} takes {f'one {takes}' if takes else 'options alone'}: leave out {found[1]!r}"
    return message


def unknown_command(word: str, group: Any, context: Any) -> str:
    """The message for a word that is no command of a group."""
    where = context.command_path
    commands = dict(_commands(group))
    if " " in word.strip() and "generate" in commands:
        return f'{word!r} is not a command; to make a video of it: {where} generate "{word}"'
    if word == "help":
        return f"'help' is not a command: write {where} --help, or {where} COMMAND --help"
    hint = COMMANDS_ELSEWHERE.get(word.lower(), "")
    if not hint.startswith("-") and hint not in commands:
        close = difflib.get_close_matches(word.lower(), commands, n=1, cutoff=0.5)
        hint = close[0] if close else ""
    if not hint and word.endswith((".yaml", ".yml")):
        hint = f"{'study ' if 'study' in group.commands else ''}run {word}"
    valid = f"; valid: {', '.join(group.commands)}"
    return f"{word!r} is not a command of {where}" + (f" (did you mean `{where} {hint}`?)" if hint else valid)


def option_names(command: Any) -> set[str]:
    """Every spelling of every option of a command."""
    options = [param for param in command.params if param.param_type_name == "option"]
    return {name for param in options for name in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}


def _unknown_option(name: str, command: Any, context: Any, words: Sequence[str]) -> str:
    where, valid = context.command_path, option_names(command)
    # the parser names the first letter only of a word with one dash
    word = next((word for word in words if word.replace("_", "-").startswith(name)), name)
    option = word.partition("=")[0].replace("_", "-")
    takes_text = any(param.param_type_name == "argument" for param in command.params)
    # a text that begins with a dash
    if takes_text and (" " in word or option.lstrip("-").isdecimal()):
        text = shlex.quote(word)
        return f"{word!r} begins with a dash, which begins an option: write it last, after --, as in {where} -- {text}"
    if f"-{option}" in valid:
        return f"{option} is not an option of {where} (did you mean -{option}?)"
    key = option.lstrip("-")
    if key == "prompt" and takes_text:
        return f'{option} is not an option of {where}: give the prompt alone: {where} "a red circle moves left"'
    if key == "resume":
        return f"{option} is not an option of {where}: leave it out; the same command resumes a run that was stopped"
    # what others call an option of ours
    theirs = ELSEWHERE.get(key.lower())
    if theirs in valid:
        return f"{option} is not an option of {where} (did you mean {theirs}?)"
    # a slip in one of its own, or an option of another command
    long = sorted(valid) if option.startswith("--") else []
    if slip := difflib.get_close_matches(option, long, n=1, cutoff=0.9):
        return f"{option} is not an option of {where} (did you mean {slip[0]}?)"
    others = [path for path, other in _commands(_root(context)) if option in option_names(other)]
    if others and option.startswith("--"):
        below = [path for path in others if hasattr(command, "commands") and f"guidon {path}".startswith(where)]
        if below:
            return f"{option} is an option of `guidon {below[0]}`: write it after the command"
        files = [param.metavar for param in command.params if str(param.metavar).endswith(".yaml")]
        instead = f"leave it out; {files[0]} holds the settings" if files else "leave it out"
        return f"{option} is an option of `guidon {others[0]}`, not of `{where}`: {instead}"
    close = difflib.get_close_matches(option, long, n=1, cutoff=0.75)
    hint = f" (did you mean {close[0]}?)" if close else f": see {where} --help"
    dashed = " ('-' begins an option; a text that begins with one comes last, after --)" if takes_text else ""
    return f"{option} is not an option of {where}{hint}{dashed if not option.startswith('--') else ''}"


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    """Every command of a group and of the groups in it, by the words that run it."""
    for name, command in group.commands.items():
        yield name, command
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", found) for inner, found in _commands(command))


def _root(context: Any) -> Any:
    return context.find_root().command


def _given(command: Any, context: Any, words: Sequence[str], param: Any) -> list[str]:
    """The texts that were given for a parameter."""
    value = command.make_parser(context).parse_args(list(words))[0].get(param.name)
    return [str(text) for text in value] if isinstance(value, list | tuple) else [] if value is None else [str(value)]


def _is_valid(param: Any, text: str, message: str) -> bool:
    """Whether one of several texts is not the one that the parser refused."""
    try:
        number = int(text) if "integer" in message else float(text)
    except ValueError:
        return False
    return number >= param.min if getattr(param, "min", None) is not None else True


def _expected(param: Any, message: str) -> str:
    kind = "a whole number" if "integer" in message or isinstance(getattr(param, "min", None), int) else "a number"
    return kind + (f" of at least {param.min:g}" if getattr(param, "min", None) is not None else "")


def _example(command: Any) -> str:
    return (command.epilog or "").strip().splitlines()[-1].strip() if command.epilog else ""


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")
