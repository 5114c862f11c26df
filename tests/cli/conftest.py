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
def parts_asked(monkeypatch):
    """What a command gives to find its model: its files, and how to load them."""
    from guidon.pipeline.planner import Planner

    def find(model, **parts):
        raise Asked(parts)

    def parts_asked(*words):
        with pytest.raises(Asked) as asked:
            cli.main([str(word) for word in words])
        return asked.value.args[0]

    monkeypatch.setattr(Planner, "find", find)
    return parts_asked


@pytest.fixture
def asked(monkeypatch):
    """What a command asks of the model, without a model: ``asked("generate", ...)`` is (model and parts, plan)."""
    import guidon.pipeline.planner
    from guidon.models.family import Facts

    class Complete(dict):
        """What was chosen, in the place of a request."""

        guidance = None

    def asked(*words):
        calls = {}

        class Preset:
            is_image, cfg_scale, name, classes = False, 3.0, "a model", 1000

        class Planner:
            preset, facts = Preset, Facts((4, 16, 8, 8), (1, 1, 1), 8, 1000, "world")

            @classmethod
            def find(cls, model, **parts):
                calls["find"] = {"model": model} | parts
                return cls()

            def complete(self, prompts, samples, **choices):
                return Complete({"prompts": prompts, "samples": tuple(samples)} | choices)

            def latent_shape(self, request):
                return self.facts.latent_shape

            def length(self, request):
                return self.facts.latent_shape[1]

            def read_prompts(self, request, *, force):
                calls["plan"] = request | {"force": force}
                raise Asked

        monkeypatch.setattr(guidon.pipeline.planner, "Planner", Planner)
        with pytest.raises(Asked):
            cli.main([str(word) for word in words])
        return calls["find"], calls["plan"]

    return asked
