"""Compiled networks: few graphs, none compiled twice, and the predictions of the network as it is."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import guidon
from guidon.models.parts.compiling import compiled_parts
from guidon.models.stdit.network import STDiT
from guidon.pipeline.compilation import Compilation, said
from tiny_model import write_tiny_distilled

PROMPT = "a red circle moves left on a white background"
CPU = torch.device("cpu")
RUN = {"steps": 2, "seed": 3, "timing": "interval:0,0.5"}  # steps with and without the unconditional branch


@pytest.fixture(scope="module")
def plain(tiny_model):
    return guidon.load(tiny_model, device="cpu")


def compiled(tiny_model, backend):
    pipe = guidon.load(tiny_model, device="cpu")
    pipe.compilation = Compilation(CPU, backend)
    return pipe


def test_a_run_has_a_graph_for_each_number_of_rows_and_compiles_none_again(tiny_model, plain, capsys):
    from torch._dynamo.utils import counters

    counters.clear()
    pipe = compiled(tiny_model, "eager")
    video = pipe(PROMPT, **RUN)
    graphs = counters["stats"]["unique_graphs"]
    # with and without the other branch: the first block, which adds positions, and all others; they share their graphs
    with pipe.model.network.in_use(torch.float32) as network:
        extra = len(compiled_parts(network)) - len(network.blocks)
    assert 0 < graphs <= 2 * (2 + extra)
    assert not counters["graph_break"]
    before, first, second = capsys.readouterr().err.partition("guidon: compiling took")
    assert before == "guidon: compiling the network, which may take a minute; what torch has in its cache is quick\n"
    assert first
    assert "a step takes" in second
    usual = plain(PROMPT, **RUN)
    assert np.array_equal(video.frames, usual.frames)  # this backend computes as torch does
    assert video.manifest["computed"]["compiled"] is True
    assert "compiled" not in usual.manifest["computed"]

    pipe(PROMPT, **RUN | {"seed": 4, "steps": 3})
    pipe("a blue square moves up on a white background", **RUN)
    assert counters["stats"]["unique_graphs"] == graphs
    assert capsys.readouterr().err == ""
    rule = {"guidance": "stg"}  # its hooks stay outside of the graphs
    assert np.array_equal(pipe(PROMPT, **RUN | rule).frames, plain(PROMPT, **RUN | rule).frames)


def test_a_distilled_network_is_compiled_and_each_of_its_networks_is_compared(
    tiny_model, tmp_path, monkeypatch, capsys
):
    from torch._dynamo.utils import counters

    folder = write_tiny_distilled(shutil.copytree(tiny_model, tmp_path / "model"))
    counters.clear()
    called, compared = set[int](), list[set[int]]()
    forward, check = STDiT.forward, Compilation.check
    monkeypatch.setattr(STDiT, "forward", lambda self, *given: called.add(id(self)) or forward(self, *given))
    monkeypatch.setattr(Compilation, "check", lambda *given: check(*given) or compared.append(set(called)))
    usual = guidon.load(folder, device="cpu")(PROMPT, fast=True, seed=3)
    called.clear()
    pipe = compiled(folder, "eager")
    video = pipe(PROMPT, fast=True, seed=3)
    assert counters["stats"]["unique_graphs"] > 0
    assert "compiling took" in capsys.readouterr().err
    with pipe.model.distilled.in_use(torch.float32) as network:
        assert {id(network.distilled), id(network.own)} == compared[0]
        assert all("forward" in part.__dict__ for each in (network.distilled, network.own) for part in each.blocks)
    assert np.array_equal(video.frames, usual.frames)


def test_a_network_that_no_earlier_run_visited_is_compared_too(tiny_model, monkeypatch):
    monkeypatch.setattr(STDiT, "network_at", lambda self, level: level.timestep < 500, raising=False)
    keys, check = list[object](), Compilation.check
    monkeypatch.setattr(Compilation, "check", lambda self, *given: keys.append(given[1]) or check(self, *given))
    pipe = compiled(tiny_model, "eager")
    for steps in (1, 2, 3):
        pipe(PROMPT, **RUN | {"steps": steps, "timing": "constant"})
    assert keys[0] != keys[1] == keys[2]


def test_a_comparison_that_was_interrupted_is_made_again():
    network, right = SimpleNamespace(dtype=torch.float32, networks=()), torch.ones(2)
    given = iter([KeyboardInterrupt(), *[right] * 4])

    def steps():
        found = next(given)
        if isinstance(found, BaseException):
            raise found
        return [found]

    compilation = Compilation(CPU, "eager")
    with pytest.raises(KeyboardInterrupt):
        compilation.check([network], "shapes", steps)
    compilation.check([network], "shapes", steps)
    assert next(given, None) is None


def fails(graph, inputs):
    raise RuntimeError("no C++ compiler")


def lies(graph, inputs):
    return lambda *given: tuple(2 * each if isinstance(each, torch.Tensor) else each for each in graph(*given))


def test_captions_of_another_length_are_checked_as_the_first(tiny_model, plain, monkeypatch, capsys):
    monkeypatch.setattr("guidon.models.parts.captioned.GROUP", 4)
    monkeypatch.setattr("guidon.models.parts.layers.LEAST_WIDTH", 1)  # short captions are multiplied, as in wide ones
    lying = list[bool]()
    pipe = compiled(tiny_model, lambda graph, inputs: lies(graph, inputs) if lying else graph.forward)
    once = RUN | {"timing": "constant"}
    pipe(PROMPT, **once)
    assert "compiling took" in capsys.readouterr().err
    pipe("a blue square moves up on a white background", **once)
    assert capsys.readouterr().err == ""
    lying.append(True)
    with pytest.warns(UserWarning, match="is another one"):
        video = pipe("a red circle moves left", **once)
    assert np.array_equal(video.frames, plain("a red circle moves left", **once).frames)


@pytest.mark.parametrize(
    ("backend", "why"),
    [(fails, "this machine cannot compile"), pytest.param(lies, "is another one", marks=pytest.mark.long)],
)
def test_what_cannot_be_compiled_or_gives_something_else_runs_as_it_is(tiny_model, plain, backend, why):
    pipe = compiled(tiny_model, backend)
    with pytest.warns(UserWarning, match=f"{why}.*; the run goes on without"):
        video = pipe(PROMPT, **RUN)
    assert np.array_equal(video.frames, plain(PROMPT, **RUN).frames)
    assert "compiled" not in video.manifest["computed"]


def test_a_compiled_network_that_gives_nan_in_one_form_is_not_used():
    network, right = SimpleNamespace(dtype=torch.float32, networks=()), torch.ones(2)
    made = iter([[right, right]] * 2 + [[right, right * float("nan")]] * 2)  # twice as it is, twice compiled
    compilation = Compilation(CPU, "eager")
    with pytest.warns(UserWarning, match="is another one, with an error of nan"):
        compilation.check([network], "shapes", lambda: next(made))
    assert not compilation.works


def test_a_manifest_says_that_a_clip_was_compiled_and_how_it_is_reproduced(tiny_model, plain, monkeypatch):
    monkeypatch.setattr("guidon.pipeline.loading.Compilation", lambda device: Compilation(device, "eager"))
    video = guidon.load(tiny_model, device="cpu", compile=True)(PROMPT, **RUN)
    again = guidon.reproduce(video.manifest, device="cpu")
    assert again.manifest["computed"] == video.manifest["computed"]
    assert np.array_equal(again.frames, video.frames)
    with pytest.warns(UserWarning, match="was made with compiled blocks: frames may differ by 1/255"):
        plain.reproduce(video.manifest)


def test_the_line_says_from_how_many_steps_it_pays():
    assert (
        said(20.0, 0.040, 0.030)
        == "compiling took 20.0 s; a step takes 30 ms in place of 40 ms, which pays from 2,000 steps"
    )
    assert said(20.0, 0.030, 0.031).endswith("a step takes 31 ms in place of 30 ms, which does not pay here")


@pytest.mark.long
def test_inductors_predictions_are_those_of_the_network(tiny_model, plain):
    pipe = compiled(tiny_model, "inductor")
    found, exact = (each(PROMPT, **RUN, output_type="latent").frames for each in (pipe, plain))
    assert (found - exact).abs().max() < 1e-3 * exact.abs().max()
