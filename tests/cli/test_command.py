"""Settings are spelled as the options of the command that was run."""

from typing import Annotated

import pytest
import typer

from guidon.cli.command import Command
from guidon.core.errors import InputError, setting


@pytest.fixture
def message():
    """What a command of several options says when a setting is refused."""

    def message(name, *words):
        app = typer.Typer(rich_markup_mode=None)

        @app.command(cls=Command)
        def command(
            prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT")] = None,
            cfg_scale: Annotated[float | None, typer.Option("--cfg-scale", "--guidance-scale")] = None,
            from_manifest: Annotated[str | None, typer.Option("--from")] = None,
            interval: str | None = None,
            ramp: str | None = None,
            block: int = 8,
        ) -> None:
            raise InputError(f"{setting(name)} is refused")

        with pytest.raises(InputError) as error:
            app(list(words), standalone_mode=False)
        return str(error.value).removesuffix(" is refused")

    return message


@pytest.mark.parametrize(
    ("name", "words", "spelling"),
    [
        ("cfg_scale", [], "--cfg-scale"),
        ("cfg_scale", ["--guidance-scale", "3"], "--cfg-scale"),
        ("from_manifest", [], "--from"),
        ("prompts", [], "PROMPT"),
        ("scale", [], "--cfg-scale"),
        ("timing", [], "--interval"),
        ("timing", ["--ramp", "linear"], "--ramp"),
        ("batch_size", [], "--block"),
        ("learning_rate", [], "learning_rate"),
        ("channels", [], "channels"),
    ],
)
def test_a_setting_is_spelled_as_the_option_that_sets_it(message, name, words, spelling):
    assert message(name, *words) == spelling
