"""Trainings under kills, faults, damage, NaN and races: they end as if undisturbed, or are refused and lose nothing."""

import re
import shutil
import time
from collections import Counter
from functools import cache, partial

import pytest
from safetensors.torch import load_file

from faults.harness import LONG, Child, chance, child, count, leftovers, sample, trials
from faults.shim import inject
from faults.training_work import content, ends, recipe_of, train, train_until_call
from guidon.cli import main
from guidon.core.errors import InputError
from guidon.training.log import read_rows
from guidon.training.loop import SKIPPED_AT_MOST
from guidon.training.state import Checkpoint, read_state

TASKS = ("vae", "denoiser", "rollout", "stages")
STEP = re.compile(r"^step (\d+)/(\d+) ", re.MULTILINE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """For each task: what an undisturbed run leaves, and the seconds that it takes in a forked process."""

    @cache
    def of(task, **changes):
        folder = tmp_path_factory.mktemp(task)
        train(task, folder / "first", **changes)  # imports what a run needs, so that it is not imported in each child
        ended = child(train, task, folder / "second", memory=None, cpu=None)
        assert ended.how == "returned", str(ended)
        assert ends(folder / "first") == ends(folder / "second")
        return ends(folder / "first"), ended.seconds

    return of


def where(ended, folder):
    """The step in which a run was killed, as its own lines on stderr tell, or its checkpoint."""
    steps = STEP.findall(ended.output)
    if not steps:
        found = [path for path in (folder / "out").rglob("checkpoint.pt") if not path.parent.name.startswith(".")]
        states = sorted(found, key=lambda path: path.stat().st_mtime)
        return f"resumed from step {read_state(states[-1]).step}, before the next" if states else "before a first step"
    step, last = steps[-1]
    return f"after step {step} of {last}" if step != last else f"after the last step, {last}"


@pytest.mark.parametrize("task", TASKS)
def test_killed_again_and_again_a_run_ends_as_if_undisturbed(tmp_path, whole, task):
    """Some kills come after a time, others before a file operation."""
    wanted, seconds = whole(task)
    moments, kills, number = chance(f"kills of {task}"), count(long=75, in_ci=2), 0
    by_step = Counter()
    with trials("SIGKILL in guidon train") as found:
        while found.here < kills:
            folder, number, cases = tmp_path / str(number), number + 1, []
            while True:
                if moments.random() < 0.5:
                    moment = moments.uniform(0, seconds)
                    running, case = Child(train, task, folder), f"after {moment:.3f} s"
                    time.sleep(moment)
                    running.kill()
                else:
                    call = moments.randrange(1, 60)
                    running, case = Child(train_until_call, task, folder, call), f"before file operation {call}"
                ended = running.wait()
                if ended.how != "killed" or found.here + len(cases) >= kills:
                    break
                step = where(ended, folder)
                cases.append(f"{task}, {case}, {step}")
                by_step[f"{task}, {step}"] += 1
            ended = child(train, task, folder, memory=None, cpu=None) if ended.how == "killed" else ended
            left = ends(folder) if ended.how == "returned" else {}
            other = sorted(name for name in left.keys() | wanted.keys() if left.get(name) != wanted.get(name))
            held = ended.how == "returned" and not other and not leftovers(folder)
            for case in cases:
                found.check(held, case if held else f"{case}; the end: {ended}, different: {other} {leftovers(folder)}")
            shutil.rmtree(folder)
    print("\n" + "\n".join(f"{number:4} kills {moment}" for moment, number in sorted(by_step.items())))


# NaN


POISONS = ("loss", "gradient", "infinite gradient")
LAST = {"vae": 9, "denoiser": 8, "rollout": 6}


def checkpoint(folder):
    return folder / "out" / "checkpoint.pt"


def finite(folder):
    """Whether every exported value is a number."""
    files = [path for path in (folder / "out").rglob("*.safetensors") if path.stem in ("vae", "text", "denoiser")]
    return bool(files) and all(value.isfinite().all() for path in files for value in load_file(path).values())


@pytest.mark.parametrize(("task", "poison"), sample([(task, poison) for task in LAST for poison in POISONS], in_ci=4))
def test_a_step_without_a_gradient_changes_nothing_and_is_counted(tmp_path, task, poison, capsys, monkeypatch):
    """The first and the last step too."""
    last, states, save = LAST[task], {}, Checkpoint.save

    def saved(self, progress):
        save(self, progress)
        states[progress.step] = content(read_state(self.path), but="step skipped")

    monkeypatch.setattr(Checkpoint, "save", saved)
    steps = frozenset({1, 2, 4, last})
    train(task, tmp_path, poison=(poison, steps), checkpoint_every=1)
    rows = read_rows(tmp_path / "out" / "log.csv")
    said = [int(step) for step in re.findall(r"^step (\d+)/\d+ skipped: ", capsys.readouterr().err, re.MULTILINE)]
    with trials(f"NaN or infinity in training: {poison}") as found:
        for step in range(1, last + 1):
            counted = (int(rows[step - 1]["skipped"]), said.count(step)) == (int(step in steps),) * 2
            same = states[step] == states.get(step - 1, states[1])
            found.check(counted and same == (step in steps | {1}), f"{task}, step {step}: {counted}, {same}")
        found.check(finite(tmp_path), f"{task}, exported")


@pytest.mark.parametrize("poison", sample(POISONS, in_ci=1))
def test_skipped_steps_are_skipped_again_after_a_kill(tmp_path, whole, poison):
    """A kill may come between two of them: the checkpoint counts the first."""
    work = partial(train, "denoiser", poison=(poison, frozenset({3, 4, 7})), checkpoint_every=1)
    work(tmp_path / "whole")
    with trials("SIGKILL between steps with NaN") as found:
        for number in sample(range(20), in_ci=1):
            folder, moment = tmp_path / str(number), chance(f"{poison} {number}").uniform(0.1, whole("denoiser")[1])
            running = Child(work, folder)
            time.sleep(moment)
            running.kill()
            ended = running.wait()
            work(folder)
            found.check(
                ends(folder) == ends(tmp_path / "whole"), f"{poison}, after {moment:.3f} s, {where(ended, folder)}"
            )


@pytest.mark.parametrize("poison", [*POISONS, "weights"])
def test_a_run_without_gradients_stops_and_keeps_its_last_good_checkpoint(tmp_path, poison):
    """NaN from a step on. The run stops in time for the checkpoint; it goes on once the cause is gone."""
    last, many, few_left = 16, 5, 13
    with trials(f"NaN or infinity in training: {poison}, from a step on") as found:
        for first in range(1, last + 1) if LONG else (many if poison in ("loss", "weights") else few_left,):
            folder = tmp_path / str(first)
            folder.mkdir()
            work = partial(train, "denoiser", folder, steps=last)
            try:
                work(poison=(poison, frozenset(range(first, last + 1))))
            except InputError as error:
                told = str(error)
            else:
                told = ""
            # The last steps may all be skipped, if they are few.
            few = poison != "weights" and last - first + 1 < SKIPPED_AT_MOST
            kept = read_state(checkpoint(folder)).step if checkpoint(folder).exists() else 0
            held = bool(told) != few and "\n" not in told and kept >= min(first - 1, last - 2) // 2 * 2
            held = held and (finite(folder) if few else not (folder / "out" / "model").exists())
            work()
            held = held and finite(folder) and read_state(checkpoint(folder)).step == last
            found.check(held, f"from step {first}, the checkpoint of step {kept} kept: {told or 'exported'}")


# Damage


@pytest.mark.parametrize("task", ["vae", "denoiser"])
def test_one_flipped_bit_in_a_checkpoint_is_refused_or_changes_nothing(tmp_path, task):
    train(task, tmp_path)
    path = checkpoint(tmp_path)
    whole, wanted = path.read_bytes(), content(read_state(path))
    bits = chance(f"bits of {task}")
    with trials("one flipped bit in a checkpoint") as found:
        for position in sample(range(0, len(whole), 11), in_ci=30):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bits.randrange(8)
            path.write_bytes(damaged)
            try:
                held = content(read_state(path)) == wanted
            except InputError as error:
                held = "\n" not in str(error) and "delete it to train again" in str(error)
                found.refused() if held else found.failed(f"byte {position}: {error}")
            else:
                found.survived() if held else found.failed(f"byte {position}: read with another content")


def test_flipped_bits_in_what_a_run_stores_never_change_its_result(tmp_path):
    """The whole command: the checkpoint is refused, or trained on as it was; clips are made again."""
    with trials("flipped bits under guidon train") as found:
        for task in ("denoiser", "rollout"):
            train(task, tmp_path / f"{task}-half", steps=4)
            shutil.copytree(tmp_path / f"{task}-half", tmp_path / task)
            train(task, tmp_path / task)
            wanted = ends(tmp_path / task)
            names = [path for path in (tmp_path / f"{task}-half" / "out").rglob("*") if path.suffix in KINDS]
            names = [path.relative_to(tmp_path / f"{task}-half") for path in names if "model" not in path.parts]
            cases = [(name, k) for name in sorted(names) for k in range(20)]
            for name, k in sample(cases, in_ci=4):
                random, folder = chance(f"{name} {k}"), tmp_path / f"{task}-damaged"
                shutil.copytree(tmp_path / f"{task}-half", folder)
                data = bytearray((folder / name).read_bytes())
                position = random.choice((random.randrange(len(data)), random.randrange(min(400, len(data)))))
                data[position] ^= 1 << random.randrange(8)
                (folder / name).write_bytes(data)
                ended = child(train, task, folder, memory=1 << 30, cpu=60)
                case = f"{task}: bit in byte {position} of {name.name}: {ended.how}"
                if ended.how == "returned":
                    found.check(ends(folder) == wanted, case, ended)
                elif ended.one_line and name.name == "checkpoint.pt":
                    found.refused(case, ended)
                else:
                    found.failed(f"{case} {ended}", ended)
                shutil.rmtree(folder)


KINDS = (".pt", ".csv", ".safetensors")


# Races


def test_a_second_training_in_a_folder_is_refused_by_name(tmp_path, capsys):
    with trials("two trainings into one folder") as found:
        for task in sample(("vae", "denoiser", "stages"), in_ci=2):
            folder = tmp_path / task
            running = Child(train, task, folder, memory=None)
            lock = folder / "out" / ".guidon.lock"
            while not lock.exists():
                time.sleep(0.01)
            with pytest.raises(SystemExit) as stop:
                main(["train", str(recipe_of(task, folder))])
            told, ended = capsys.readouterr().err.strip(), running.wait()
            named = f"{folder / 'out'} is in use: training by process {running.process} on " in told
            held = stop.value.code == 2 and named and "\n" not in told and ended.how == "returned"
            found.refused(f"{task}: {told}") if held else found.failed(f"{task}: {told}; the first: {ended}")


def test_trainings_that_share_their_clips_do_not_disturb_each_other(tmp_path):
    with trials("two trainings at once that share their clips") as found:
        for task in ("denoiser", "rollout") if LONG else ("rollout",):  # which shares latents too, as a denoiser does
            train(task, tmp_path / task)
            for number in range(count(long=10, in_ci=1)):
                clips = str(tmp_path / f"{task}-{number}-clips")
                folders = [tmp_path / f"{task}-{number}-{name}" for name in "ab"]
                both = [Child(partial(train, task, folder, cache=clips)) for folder in folders]
                told = [running.wait() for running in both]
                results = {name: digest for name, digest in ends(tmp_path / task).items() if "latents" not in name}
                results = {name: digest for name, digest in results.items() if "rollouts" not in name}
                held = all(ends(folder) == results for folder in folders) and not leftovers(tmp_path)
                found.check(held, f"{task}: {'; '.join(map(str, told))}")


# I/O faults


def test_what_a_training_writes_is_old_or_new(tmp_path):
    inject("train_vae", "train_further", folder=tmp_path, in_ci=2, module="faults.training_targets")
