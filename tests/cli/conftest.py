import pytest

from guidon import cli

PROMPT = "a red circle moves left on a white background"


@pytest.fixture
def run(capsys):
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return run


@pytest.fixture
def refused(run):
    """The one line with which a command line is refused."""

    def refused(*words):
        code, out, err = run(*words)
        assert code == 2, (out, err)
        assert out == ""
        assert err.startswith("guidon: ")
        assert err.count("\n") == 1
        return err.removeprefix("guidon: ").rstrip("\n")

    return refused


class Asked(BaseException):
    """Ends a command where its work would begin. It is no Exception, which the command line would report."""


@pytest.fixture
def asked(monkeypatch):
    """What a command asks of the pipeline, without a model: ``asked("generate", ...)`` is (load, plan)."""
    import guidon.pipeline

    def asked(*words):
        calls = {}

        class Preset:
            is_image, cfg_scale, name, classes = False, 3.0, "a model", 1000

        class Pipe:
            preset, hashes, channels = Preset, {}, 4

            def plan(self, prompts, samples, **choices):
                calls["plan"] = {"prompts": prompts, "samples": tuple(samples)} | choices
                raise Asked

        def load(model, **parts):
            calls["load"] = {"model": model} | parts
            return Pipe()

        monkeypatch.setattr(guidon.pipeline, "load", load)
        with pytest.raises(Asked):
            cli.main([str(word) for word in words])
        return calls["load"], calls["plan"]

    return asked
