"""Studies under kills, races, faults and damage: the folder ends with the bytes of an undisturbed run, or is refused."""

import io
import json
import math
import os
import shutil
import socket
import struct
import time
import zipfile
import zlib
from contextlib import chdir

import numpy as np
import pytest

from faults.harness import Child, chance, child, count, leftovers, sample, tree, trials
from faults.shim import inject
from faults.study_work import copied, finished, parts, pipe, report, run, toy_world
from guidon.core.hashing import hash_files, hash_settings
from guidon.studies.cells import CONTENT, cells_of, read_plan
from guidon.studies.study import CELLS

CELLS_OF = "cells/*/0*"
LIMITS = {"memory": 1 << 30, "cpu": 20.0}


@pytest.fixture(scope="module", autouse=True)
def whole():
    """What an undisturbed run writes."""
    pipe()
    with toy_world():
        written = tree(finished())
        yield {name: data for name, data in written.items() if not name.startswith(("videos", "report", "summ"))}


def is_whole(out, whole):
    """Whether a folder is that of an undisturbed run, with nothing left over."""
    return tree(out) == whole and not leftovers(out)


def cells(out):
    """The digest of each cell of a folder."""
    return {name: digest for name, digest in parts(out).items() if name.startswith("cells")}


def wait_for(out, running, random):
    """Wait until a random number of the cells are done, and a moment more. Returns what was waited for, as text."""
    wanted, more = random.randint(len(list(out.glob(CELLS_OF))), 6), random.uniform(0, 0.1)
    while len(list(out.glob(CELLS_OF))) < wanted and not running.has_ended():
        time.sleep(0.002)
    time.sleep(more)
    return f"{more:.3f} s after cell {wanted}"


def test_killed_again_and_again_a_study_ends_as_if_undisturbed(tmp_path, whole):
    moments, kills, number = chance("kills of a study"), count(long=100, in_ci=4), 0
    with trials("SIGKILL in study run") as found:
        while found.here < kills:
            out, number, cases = tmp_path / str(number), number + 1, []
            while True:
                running = Child(run, out)
                moment = wait_for(out, running, moments)
                running.kill()
                ended = running.wait()
                if ended.how != "killed":
                    break
                made = parts(out) if out.exists() else {}
                wrong = [name for name, digest in made.items() if digest != parts(finished()).get(name)]
                cases.append(f"{moment}, {sum('cells' in name for name in made)} of 6 cells; torn: {wrong}")
                if wrong or found.here + len(cases) >= kills or sum("cells" in name for name in made) == 6:
                    break
            ended = child(run, out, **LIMITS) if ended.how == "killed" else ended
            held = ended.how == "returned" and is_whole(out, whole)
            for case in cases:
                found.check(held and case.endswith("[]"), f"{case}; the end: {ended.how}")


@pytest.mark.parametrize("runners", [2, 3])
def test_several_runners_share_a_study_and_one_may_be_killed(tmp_path, whole, runners):
    moments = chance(f"{runners} runners")
    with trials(f"study run, {runners} at once, one killed half of the times") as found:
        for number in range(count(long=40, in_ci=1)):
            out = tmp_path / str(number)
            children = [Child(run, out) for _ in range(runners)]
            moment = wait_for(out, children[0], moments) if number % 2 else ""
            if number % 2:
                children[0].kill()
            told = [running.wait() for running in children]
            others = told[1:] if number % 2 else told
            held = all(ended.how == "returned" for ended in others) and cells(out) == cells(finished())
            if number % 2:  # it may have been killed after the others ended: the next command finds what it left
                told.append(child(run, out, **LIMITS))
            held = held and told[-1].how == "returned" and is_whole(out, whole)
            case = f"killed {moment}" if number % 2 else "none killed"
            found.check(held, f"{case}: {'; '.join(map(str, told))}")


def test_two_plans_for_one_folder_at_once_give_one_study(tmp_path, whole):
    with trials("study run with two plans for one folder") as found:
        for number in range(count(long=40, in_ci=1)):
            out = tmp_path / str(number)
            children = [Child(run, out, "study.yaml"), Child(run, out, "other.yaml")]
            told = [running.wait() for running in children]
            refused = [ended for ended in told if ended.how == "refused"]
            first = told[0].how == "returned"
            held = len(refused) == 1 and refused[0].one_line and "results of another plan" in refused[0].output
            held = held and (not first or is_whole(out, whole)) and first != (told[1].how == "returned")
            found.refused(str(refused[0])) if held else found.failed("; ".join(map(str, told)))


def test_a_report_while_a_study_runs_says_so_or_is_made(tmp_path):
    moments = chance("report")
    with trials("study report while the study runs") as found:
        for number in range(count(long=40, in_ci=1)):
            out = tmp_path / str(number)
            running = Child(run, out)
            moment = wait_for(out, running, moments)
            ended, ran = child(report, out, **LIMITS), running.wait()
            case = f"{moment}: {ended}; the study: {ran}"
            early = any(text in ended.output for text in ("wait until it ends", "no plan.json", "not solved yet"))
            if ran.how != "returned" or not (ended.how == "returned" or (ended.one_line and early)):
                found.failed(case)
            else:
                (found.survived if ended.how == "returned" else found.refused)(case)


def test_what_a_study_writes_is_old_or_new(tmp_path):
    inject("study_run", "study_run_again", "study_report", folder=tmp_path, in_ci=3, module="faults.study_targets")


# Damage of bytes.


def flip(path, random):
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def replace(path, make):
    path.unlink()
    make(path)


DAMAGE = {
    "one bit": flip,
    "half": lambda path, random: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, random: path.write_bytes(b""),
    "noise": lambda path, random: path.write_bytes(random.randbytes(1000)),
    "absent": lambda path, random: path.unlink(),
    "folder": lambda path, random: replace(path, lambda path: path.mkdir()),
    "pipe": lambda path, random: replace(path, os.mkfifo),
    "endless": lambda path, random: replace(path, lambda path: path.symlink_to("/dev/zero")),
    "itself": lambda path, random: replace(path, lambda path: path.symlink_to(path.name)),
    "socket": lambda path, random: replace(path, lambda path: socket.socket(socket.AF_UNIX).bind(path.name)),
}


def test_damaged_cells_are_found_and_done_again(tmp_path, whole):
    cases = [(name, kind, k) for k in range(4) for name in (*CONTENT, "hashes.json") for kind in DAMAGE]
    with trials("damaged cells") as found:
        for number, (name, kind, k) in enumerate(sample(cases, in_ci=6)):
            out = tmp_path / str(number)
            copied(out)
            cell = cells_of(read_plan(out), out)[k]
            with chdir(cell.folder):  # the name of a socket must be short
                DAMAGE[kind](cell.folder / name, chance(f"{name} {kind} {k}"))
            seen, ended = child(report, out, **LIMITS), child(run, out, **LIMITS)
            for other in ("report.html", "summary.csv"):
                (out / other).unlink()
            shutil.rmtree(out / "videos")
            held = seen.one_line and "cells of" in seen.output and ended.how == "returned" and is_whole(out, whole)
            found.check(held and ended.kept_limits, f"{name} of cell {k}, {kind}: {seen}; run: {ended}", ended)


def test_a_damaged_plan_or_damaged_scales_are_refused(tmp_path):
    cases = [(name, kind, k) for k in range(10) for name in ("plan.json", "scales.json") for kind in DAMAGE]
    with trials("damaged plans and scales") as found:
        for number, (name, kind, k) in enumerate(sample(cases, in_ci=6)):
            out = tmp_path / str(number)
            copied(out)
            with chdir(out):
                DAMAGE[kind](out / name, chance(f"{name} {kind} {k}"))
            for work in (report, run):
                judge(found, child(work, out, **LIMITS), f"{name}, {kind}, {work.__name__}", out)


def judge(found, ended, case, out):
    """Refused in one line; or done, which is right where the damage leaves the meaning: absent, or only layout."""
    if not ended.kept_limits or not (ended.one_line or ended.how == "returned"):
        found.failed(f"{case}: {ended}", ended)
    elif ended.how == "refused":
        found.refused(f"{case}: {ended}", ended)
    else:
        same = parts(out).items() >= {k: v for k, v in parts(finished()).items() if k.startswith("cells")}.items()
        found.check(same, f"{case}: {ended}", ended)


# Damage whose digests were made good by hand.


WRONG = [None, True, -1, 0, 10**30, 1.5, "x", "x" * 100_000, [], {}, [[[]]], float("nan"), {"a": {"a": 1}}, "\ud800"]


def places(values, path=()):
    """The path of every value inside plain data."""
    yield path
    if isinstance(values, dict | list):
        for key in values if isinstance(values, dict) else range(len(values)):
            yield from places(values[key], (*path, key))


def changed(values, path, new):
    """A copy of plain data with one value replaced, or deleted if ``new`` is Ellipsis."""
    copy = json.loads(json.dumps(values))
    if not path:
        return new
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copy


def every_change(values):
    return [(path, new) for path in places(values) for new in (*WRONG, ...) if path or new is not ...]


@pytest.mark.parametrize("name", ["plan.json", "scales.json"])
def test_a_plan_with_a_good_hash_and_odd_values_is_refused_or_read(tmp_path, name):
    out = tmp_path / "out"
    copied(out)
    values, scales = (unhashed(out / file) for file in (name, "scales.json"))
    with trials(f"{name} with odd values and a good hash") as found:
        for path, new in sample(every_change(values), in_ci=12):
            odd = changed(values, path, new)
            write_hashed(out / name, odd)
            if name == "plan.json":  # scales that go with it, so that they do not hide what is odd
                write_hashed(out / "scales.json", scales | {"plan": hash_settings(odd)})
            for work in (report, run):
                ended = child(work, out, **LIMITS)
                told = ended.one_line or ended.how == "returned"
                case = f"{path} = {str(new)[:40]!r}, {work.__name__}: {ended}"
                if not told or not ended.kept_limits:
                    found.failed(case, ended)
                else:
                    (found.refused if ended.how == "refused" else found.survived)(case, ended)


def unhashed(path):
    values = json.loads(path.read_text())
    del values["hash"]
    return values


def write_hashed(path, values):
    path.write_text(json.dumps(values | {"hash": hash_settings(values)} if isinstance(values, dict) else values))


def test_json_of_cells_with_good_hashes_and_odd_values_is_done_again(tmp_path, whole):
    out = tmp_path / "out"
    copied(out)
    cell = cells_of(read_plan(out), out)[2]
    files = {name: json.loads((cell.folder / name).read_text()) for name in ("manifest.json", "metrics.json")}
    cases = [(name, *change) for name, values in files.items() for change in every_change(values)]
    with trials("JSON of cells with odd values and good hashes") as found:
        for name, path, new in sample(cases, in_ci=20):
            (cell.folder / name).write_text(json.dumps(changed(files[name], path, new)))
            make_good(cell)
            ended = child(report, out, **LIMITS)
            case = f"{name} {path} = {str(new)[:40]!r}: {ended}"
            if not (ended.one_line or ended.how == "returned") or not ended.kept_limits:
                found.failed(case, ended)
            else:
                (found.refused if ended.how == "refused" else found.survived)(case, ended)
            (cell.folder / name).write_text(json.dumps(files[name], indent=1) + "\n")
            make_good(cell)
    assert child(run, out, **LIMITS).how == "returned"
    assert {k: v for k, v in tree(out).items() if k in whole} == whole


def make_good(cell):
    hashes = {name: hash_files(cell.folder / name) for name in CONTENT}
    (cell.folder / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n")


def save_png(path, size, mode="RGB"):
    from PIL import Image

    Image.new(mode, size).save(path)


def deflated(head, zeros):
    """A raw deflate stream of some bytes and many zeros, without the time that it takes to pack these."""
    packer, block = zlib.compressobj(wbits=-15), 1 << 20
    stream = packer.compress(head) + packer.flush(
        zlib.Z_FULL_FLUSH
    )  # a block after a full flush depends on none before
    stream += (packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)) * (zeros // block)
    return stream + packer.compress(bytes(zeros % block)) + packer.flush()


def large_png(path, side):
    """A black picture, all of which is there."""
    zeros = side * (3 * side + 1)
    rows = b"\x78\x9c" + deflated(b"", zeros) + struct.pack(">HH", zeros % 65521, 1)  # Adler-32 of zeros
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with path.open("ab") as file:
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
            (b"IDAT", rows),
            (b"IEND", b""),
        ):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def array_header(shape, dtype="<f8"):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": dtype, "fortran_order": False, "shape": shape})
    return head.getvalue()


def header_of(path, shape, dtype="<f8"):
    """An .npz whose array claims a shape that its bytes do not have."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("timestep.npy", array_header(shape, dtype) + bytes(80))
        archive.writestr("scale.npy", array_header(shape, dtype) + bytes(80))


def bomb(path):
    """An .npz of two arrays, all of which is there."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, shape in (("timestep", (1 << 27,)), ("scale", (1 << 20, 4))):
            head, zeros = array_header(shape), 8 * math.prod(shape)
            member = zipfile.ZipInfo(f"{name}.npy")
            archive.writestr(member, deflated(head, zeros))
            # What the reader trusts is written at the end: the member as it is, and not as it was given to zipfile.
            member.compress_type, member.file_size, member.CRC = (
                zipfile.ZIP_DEFLATED,
                len(head) + zeros,
                zlib.crc32(head),
            )
            for _ in range(zeros >> 20):
                member.CRC = zlib.crc32(bytes(1 << 20), member.CRC)


FILES = {
    "clip of another size": ("clip.png", lambda path: save_png(path, (64, 64))),
    "clip of 20000 x 20000": ("clip.png", lambda path: large_png(path, 20_000)),
    "clip without colour": ("clip.png", lambda path: save_png(path, (1024, 64), "L")),
    "clip that is a text": ("clip.png", lambda path: path.write_text("clip")),
    "clip without an end": ("clip.png", lambda path: path.write_bytes(path.read_bytes()[:60])),
    "trace that claims 8 TB": ("trace.npz", lambda path: header_of(path, (10**6, 10**6))),
    "trace with a negative shape": ("trace.npz", lambda path: header_of(path, (-1, 4))),
    "trace of objects": ("trace.npz", lambda path: header_of(path, (10,), "|O")),
    "trace that unpacks to a gigabyte": ("trace.npz", bomb),
    "trace of other arrays": ("trace.npz", lambda path: np.savez(path, other=np.zeros(3))),
    "trace of other shapes": ("trace.npz", lambda path: np.savez(path, timestep=np.zeros(3), scale=np.zeros((2, 2)))),
    "trace of texts": ("trace.npz", lambda path: np.savez(path, timestep=np.array(["a"]), scale=np.array([["b"]]))),
    "trace that is not finite": (
        "trace.npz",
        lambda path: np.savez(path, timestep=np.ones(1), scale=np.full((1, 4), np.nan)),
    ),
    "trace of no zip": ("trace.npz", lambda path: path.write_bytes(b"PK\3\4" + bytes(100))),
    "metrics of a list": ("metrics.json", lambda path: path.write_text("[1, 2]")),
    "metrics nested deeply": ("metrics.json", lambda path: path.write_text("[" * 100_000)),
    "metrics with a long number": ("metrics.json", lambda path: path.write_text('{"light": ' + "9" * 5000 + "}")),
}


def test_files_of_cells_with_good_hashes_are_refused_by_name_and_done_again(tmp_path, whole):
    with trials("files of cells of another form with good hashes") as found:
        for number, (case, (name, make)) in enumerate(FILES.items()):
            out = tmp_path / str(number)
            copied(out)
            cell = cells_of(read_plan(out), out)[2]
            make(cell.folder / name)
            make_good(cell)
            seen, ended = child(report, out, **LIMITS), child(run, out, **LIMITS)
            held = {k: v for k, v in tree(out).items() if k in whole} == whole and ended.how == "returned"
            named = seen.one_line and name in seen.output
            found.check(held and named and seen.kept_limits, f"{case}: {seen}; run: {ended}", seen)


# What is too large.


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"settings": [{"cfg_scale": 1}, {"grid": {k: list(range(1000)) for k in ("steps", "eta", "rotation")}}]}, "1,000,000,001 settings"),
        ({"prompts": 10**9}, "2,000,000,000 cells"),
        ({"seeds": 10**9}, "6,000,000,000 cells"),
        ({"tuning_prompts": 10**9}, "tuning_prompts is 1,000,000,000"),
    ],
)  # fmt: skip
def test_a_study_of_billions_is_refused_before_anything_is_expanded(tmp_path, change, count):
    import yaml

    from faults.study_work import place

    pipe()
    file = place() / f"{tmp_path.name}.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load((place() / "study.yaml").read_text()) | change))
    ended = child(run, tmp_path / "out", file.name, **LIMITS)
    with trials("studies of billions of cells") as found:
        held = ended.one_line and count in ended.output and ended.seconds < 2 and ended.memory < 100 << 20
        found.refused(str(ended), ended) if held else found.failed(f"{change}: {ended} in {ended.seconds:.1f} s", ended)
    assert not (tmp_path / "out").exists()
    assert f"{CELLS.value:,}" in ended.output or "settings" in count
