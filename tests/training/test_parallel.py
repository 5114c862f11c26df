"""Several ranks train as one process does; a rank that ends or fails stops all, and the checkpoint is kept."""

import contextlib
import io
import os
import shutil
import signal
from pathlib import Path

import matplotlib.figure  # noqa: F401 - here, as those below, so that not every fork imports it
import pytest
import torch
import torch._dynamo
from torch.distributed import checkpoint, fsdp  # noqa: F401
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from forks import in_fork
from guidon import cli
from guidon.analysis import evaluate  # noqa: F401
from guidon.checkpoints import load_component
from guidon.cli import together
from guidon.core.errors import InputError
from guidon.training import run_recipe
from guidon.training.sharded import step_of
from guidon.training.tasks.vae import VAETask
from own_clips import NETWORKS, videos_recipe, write_clips
from ranks import Killed, on_ranks
from recipes import (
    assert_same_run,
    at_step,
    denoiser_recipe,
    rows_of,
    run_on_ranks,
    vae_recipe,
    weights_of,
)

ADAMW = {"name": "adamw", "warmup_steps": 2}
EVERYTHING = {
    "terms": {"mse": {"weighting": "balanced", "foreground": 4}, "shape_contrast": {"weight": 4}},
    "shape_weights": {"cross": 3}, "shape_swap": 0.5, "batch_size": 12, "clips": 12, "caption_noise": 0.5,
}  # fmt: skip
SHARDED = {"shard_above": 1}
FORMS = [{}, SHARDED]


def recipe(folder, name, vae, **values):
    (folder / name).mkdir()
    return denoiser_recipe(folder / name, vae, **{"log_every": 1} | values)


def command(config, count=2):
    """Run the command on ranks. Returns of each: exit code, stdout, and stderr without the rows of the log."""

    def work():
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                cli.main(["train", str(config)])
            except SystemExit as stop:
                said = [line for line in err.getvalue().splitlines() if not line.startswith("step ")]
                return stop.code, out.getvalue(), "\n".join(said)

    return on_ranks(work, count)


def on_rank(rank, action):
    """An action that one rank alone does."""
    return lambda: action() if os.environ.get("RANK", "0") == str(rank) else None


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4) for name in ours)


@pytest.mark.parametrize(
    ("more", "steps"), [(EVERYTHING, 4), *(pytest.param(more, 50, marks=pytest.mark.long) for more in (EVERYTHING, {}))]
)
def test_two_ranks_have_the_losses_of_one_process(tmp_path, tiny_model, more, steps):
    """Each has 6 of 12 rows, and families of 4 clips: one is cut."""
    vae = tiny_model / "vae.safetensors"
    run_recipe(recipe(tmp_path, "one", vae, steps=steps, optimiser=ADAMW, **more))
    assert len(set(run_on_ranks(recipe(tmp_path, "two", vae, steps=steps, optimiser=ADAMW, **more)))) == 1
    assert_same_run(tmp_path / "one" / "run", tmp_path / "two" / "run")


@pytest.fixture(scope="module")
def of_one(tmp_path_factory, tiny_model):
    """The run of one process, of four steps."""
    folder = tmp_path_factory.mktemp("one")
    run_recipe(recipe(folder, "one", tiny_model / "vae.safetensors", steps=4, optimiser=ADAMW))
    return folder / "one" / "run"


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_compiled_networks_train_as_others(tmp_path, tiny_model, of_one, monkeypatch, form):
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_(module, backend="eager"))
    run_on_ranks(
        recipe(tmp_path, "two", tiny_model / "vae.safetensors", steps=4, optimiser=ADAMW, compile=True, **form)
    )
    assert_same_run(of_one, tmp_path / "two" / "run")


@pytest.mark.long
@pytest.mark.parametrize("family", list(NETWORKS))
def test_every_network_trains_on_two_ranks_as_on_one(tmp_path, tiny_model, family):
    """Whole on each rank, and sharded. The ranks encode the clips themselves, together."""
    clips = write_clips(tmp_path / "clips", frames=1 if family in ("dit", "pixart") else 4)

    def own(name, **values):
        (tmp_path / name).mkdir()
        return videos_recipe(tmp_path / name, clips, tiny_model / "vae.safetensors", family, **values)

    run_recipe(own("one"))
    for name, form in (("two", {}), ("sharded", SHARDED)):
        first, second = run_on_ranks(own(name, **form))
        assert first == second == str(tmp_path / name / "run" / "model")
        assert_same_run(tmp_path / "one" / "run", tmp_path / name / "run")


@pytest.mark.long
def test_parts_of_a_batch_are_those_of_one_process(tmp_path, tiny_model):
    """The gradients of parts add up, whole on each rank and sharded."""
    clips = write_clips(tmp_path / "clips")
    more = {"accumulate": 2, "batch_size": 8}

    def own(name, **form):
        (tmp_path / name).mkdir()
        return videos_recipe(tmp_path / name, clips, tiny_model / "vae.safetensors", **more, **form)

    run_recipe(own("one"))
    for name, form in (("two", {}), ("sharded", SHARDED)):
        run_on_ranks(own(name, **form))
        assert_same_run(tmp_path / "one" / "run", tmp_path / name / "run")


@pytest.mark.parametrize(
    ("form", "first", "then"),
    [
        ({}, 2, 1),
        (SHARDED, 1, 2),
        pytest.param({}, 1, 2, marks=pytest.mark.long),
        pytest.param(SHARDED, 2, 1, marks=pytest.mark.long),
    ],
)
def test_another_number_of_ranks_goes_on_with_the_same_run(
    tmp_path, tiny_model, of_one, monkeypatch, form, first, then
):
    config = recipe(tmp_path, "own", tiny_model / "vae.safetensors", steps=4, optimiser=ADAMW, **form)
    own = tmp_path / "own" / "run"

    def run_on(count):
        return run_on_ranks(config)[0] if count == 2 else str(run_recipe(config))

    with monkeypatch.context() as patch:
        at_step(patch, 1, on_rank(first - 1, lambda: signal.raise_signal(signal.SIGTERM)))
        assert run_on(first) == "None"
    assert step_of(own) == 2
    assert (own / "checkpoint").is_dir() == bool(form)
    assert run_on(then) == str(own / "model")
    assert_same_run(of_one, own)
    assert_close(weights_of(of_one / "model"), weights_of(own / "model"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a run of two ranks, of some values, that nothing stops."""
    found = {}

    def of(values):
        key = repr(values)
        if key not in found:
            found[key] = Path(run_on_ranks(vae_recipe(tmp_path_factory.mktemp("whole"), **values))[0]).read_bytes()
        return found[key]

    return of


@pytest.mark.parametrize(
    ("form", "kills"), [({}, 1), *(pytest.param(form, 20, marks=pytest.mark.long) for form in FORMS)]
)
def test_killed_again_and_again_it_has_the_bytes_of_a_whole_run(tmp_path, monkeypatch, whole, form, kills):
    """Rank 0 first. Of torchrun's ranks below, rank 1 is killed."""
    values = {"steps": 2 * kills + 1, "checkpoint_every": 2} | form
    config = vae_recipe(tmp_path, **values)
    for number in range(kills):
        rank = number % 2
        with monkeypatch.context() as patch:
            at_step(patch, 2 * number + 2, on_rank(rank, kill))
            said = run_on_ranks(config)
        assert isinstance(said[rank], Killed)
        assert said[1 - rank].startswith("RankLost: ")
        assert said[1 - rank].endswith(f"the last checkpoint in {tmp_path / 'vae'} is kept")
        assert step_of(tmp_path / "vae") == 2 * number + 2
    assert Path(run_on_ranks(config)[1]).read_bytes() == whole(values)


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        pytest.param("draw", InputError("no such frame"), "rank 1: no such frame", marks=pytest.mark.long),
        ("predict", RuntimeError("CUDA out of memory"), "rank 1: training ran out of the memory of cpu: lower batch"),
        ("prepare", InputError("no such file"), "rank 1: no such file"),
    ],
)
def test_an_error_of_one_rank_is_said_once(tmp_path, monkeypatch, where, error, said):
    original, calls = getattr(VAETask, where), []

    def fail(*arguments):
        calls.append(1)
        if os.environ["RANK"] == "1" and (where == "prepare" or len(calls) == 3):
            raise error
        return original(*arguments)

    monkeypatch.setattr(VAETask, where, fail)
    monkeypatch.setattr(together, "GRACE", 0.0)
    first, second = command(vae_recipe(tmp_path, checkpoint_every=1))
    assert (first[0], first[1]) == (2, "")
    lines = first[2].splitlines()
    assert [line for line in lines if line.startswith("guidon: ")] == lines[-1:]
    assert lines[-1].startswith(f"guidon: {said}")
    assert second == (2, "", "")
    assert step_of(tmp_path / "vae") == (0 if where == "prepare" else 2)


def test_torchrun_starts_all_ranks_again_and_they_go_on(tmp_path, monkeypatch, whole):
    """torchrun's own engine, of which each rank is a fork."""
    values = {"steps": 3, "checkpoint_every": 2}
    config = vae_recipe(tmp_path, **values)
    monkeypatch.setattr(together, "GRACE", 0.0)
    # torchrun's log names the caller, for which it reads the source of every frame of pytest's stack
    monkeypatch.setattr(dynamic_rendezvous, "get_method_name", lambda *_: "", raising=False)
    killed = on_rank(1, kill)
    at_step(monkeypatch, 2, lambda: killed() if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else None)

    def one_rank():
        torch.set_num_threads(1)
        with contextlib.redirect_stderr(io.StringIO()), pytest.raises(SystemExit) as stop:
            cli.main(["train", str(config)])
        assert not stop.value.code

    def engine():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        limits = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "max_restarts": 1, "monitor_interval": 0.1}
        meeting = {"run_id": "test", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
        elastic_launch(LaunchConfig(**limits, **meeting, start_method="fork"), one_rank)()

    in_fork(engine)
    assert (tmp_path / "vae" / "vae.safetensors").read_bytes() == whole(values)


def test_sigterm_on_one_rank_stops_all_after_the_step(tmp_path, monkeypatch):
    at_step(monkeypatch, 1, on_rank(1, lambda: signal.raise_signal(signal.SIGTERM)))
    first, second = command(vae_recipe(tmp_path))
    assert first == (130, "", "guidon: stopped; the checkpoint is saved: the same command resumes from it")
    assert second == (130, "", "")
    assert step_of(tmp_path / "vae") == 2


def test_a_step_that_is_broken_on_one_rank_is_skipped_on_all(tmp_path, monkeypatch):
    original = VAETask.predict

    def predict(self, batch):
        found = original(self, batch)
        if poisoned.pop(0) and os.environ.get("RANK", "1") == "1":
            found.error[-1] *= float("nan")
        return found

    monkeypatch.setattr(VAETask, "predict", predict)
    weights = []
    for count in (1, 2):
        poisoned = [False, True, False, False]
        (tmp_path / str(count)).mkdir()
        config = vae_recipe(tmp_path / str(count), log_every=1)
        result = str(run_recipe(config)) if count == 1 else run_on_ranks(config)[0]
        weights.append(load_component(Path(result), "vae").weights)
        assert [row["skipped"] for row in rows_of(tmp_path / str(count) / "vae")] == ["0", "1", "0", "0"]
    assert_close(*weights)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batch_size": 5}, "batch_size is 5, which 2 ranks cannot share equally: give a multiple of 2"),
        (SHARDED | {"optimiser": {"name": "muon"}}, "but muon needs whole matrices: raise shard_above, or use adamw"),
    ],
)
def test_what_ranks_cannot_do_is_refused(tmp_path, values, said):
    assert all(said in line and "\n" not in line for line in run_on_ranks(vae_recipe(tmp_path, **values)))
    assert not (tmp_path / "vae").exists()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The folder of a sharded run of two steps."""
    folder = tmp_path_factory.mktemp("sharded")
    run_recipe(vae_recipe(folder, steps=2, **SHARDED))
    return folder / "vae"


@pytest.fixture
def of_two(tmp_path, sharded):
    """A copy of it in the folder of the test's own."""
    shutil.copytree(sharded, tmp_path / "vae")


@pytest.mark.usefixtures("of_two")
def test_a_checkpoint_of_the_other_form_is_refused(tmp_path):
    with pytest.raises(InputError, match="checkpoint was written under another shard_above than the recipe's"):
        run_recipe(vae_recipe(tmp_path))


@pytest.mark.usefixtures("of_two")
@pytest.mark.parametrize("damage", ["truncated", "missing", "changed", "state"])
def test_a_damaged_part_of_a_checkpoint_is_refused(tmp_path, damage):
    folder = tmp_path / "vae" / "checkpoint"
    part = next(folder.glob("*.safetensors"))
    data = part.read_bytes()
    if damage == "missing":
        part.unlink()
    elif damage == "state":
        text = (folder / "state.json").read_text()
        (folder / "state.json").write_text(text.replace('"step": 2', '"step": 1'))
    else:
        part.write_bytes(data[:-9] if damage == "truncated" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(InputError, match=r"checkpoint.* cannot be read as a checkpoint: .*; delete it to train again"):
        run_recipe(vae_recipe(tmp_path, **SHARDED))


@pytest.mark.usefixtures("of_two")
def test_the_folder_is_whole_or_the_one_before(tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in (tmp_path / "vae" / "checkpoint").iterdir()}

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("guidon.training.sharded.write_json", broken)
    with pytest.raises(OSError, match="No space left"):
        run_recipe(vae_recipe(tmp_path, steps=4, **SHARDED))
    assert {path.name: path.read_bytes() for path in (tmp_path / "vae" / "checkpoint").iterdir()} == before
