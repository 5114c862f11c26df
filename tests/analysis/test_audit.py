"""``guidon audit`` finds every known form of sliced guidance, in any spelling, and nothing else."""

import ast
import builtins
import json
from pathlib import Path

import pytest

from audit_snippets import COMPLETE, FOUND, NOTHING, SUSPICIOUS
from guidon.analysis.audit import audit, audit_source
from guidon.analysis.audit.algebra import add, affine, difference, multiply, number, single
from guidon.core.errors import InputError

EXPECTED = {name: (channels, axis) for name, (channels, axis, _) in FOUND.items()}


def found(source):
    return {(finding.channels, finding.axis) for finding in audit_source(source)}


@pytest.mark.parametrize("name", FOUND)
def test_every_known_form_is_found_with_its_channels(name):
    findings = audit_source(FOUND[name][2])
    assert EXPECTED[name] in {(finding.channels, finding.axis) for finding in findings}
    assert all(finding.level in ("some", "chosen") and finding.suspicious is None for finding in findings)
    assert len({finding.line for finding in findings}) == len(findings)


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_a_cut_of_another_axis_is_suspicious(name):
    findings = audit_source(SUSPICIOUS[name])
    assert findings
    assert all(finding.suspicious for finding in findings)


@pytest.mark.parametrize("name", COMPLETE)
def test_all_latent_channels_are_no_finding(name):
    findings = audit_source(COMPLETE[name])
    assert [finding.level for finding in findings] == ["all"]
    assert findings[0].channels == '"all"'


@pytest.mark.parametrize("name", NOTHING)
def test_what_only_looks_like_it_is_not_found(name):
    assert audit_source(NOTHING[name]) == []


# mutations: the same program, spelled otherwise


class Renamed(ast.NodeTransformer):
    """Gives every local variable of a function a name that says nothing."""

    def visit_FunctionDef(self, node):
        parameters = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
        stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        names = {name: f"v{i}" for i, name in enumerate(sorted(stored - parameters - set(dir(builtins))))}
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and inner.id in names:
                inner.id = names[inner.id]
        return node


class Commuted(ast.NodeTransformer):
    """Swaps the sides of every sum and product."""

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if isinstance(node.op, ast.Add | ast.Mult) and not isinstance(node.left, ast.List):
            node.left, node.right = node.right, node.left
        return node


class Expanded(ast.NodeTransformer):
    """Writes a + s * (b - c) as a + s * b - s * c."""

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if isinstance(node.op, ast.Mult) and isinstance(node.right, ast.BinOp) and isinstance(node.right.op, ast.Sub):
            left = ast.BinOp(node.left, ast.Mult(), node.right.left)
            return ast.BinOp(left, ast.Sub(), ast.BinOp(node.left, ast.Mult(), node.right.right))
        return node


class InSteps(ast.NodeTransformer):
    """Gives every difference a variable of its own, on the line before."""

    def visit_Assign(self, node):
        before = []

        class Lift(ast.NodeTransformer):
            def visit_BinOp(self, inner):
                self.generic_visit(inner)
                if isinstance(inner.op, ast.Sub) and not isinstance(inner.right, ast.Constant):
                    name = f"step{inner.lineno}_{inner.col_offset}"
                    before.append(ast.Assign([ast.Name(name, ast.Store())], inner))
                    return ast.Name(name, ast.Load())
                return inner

        node.value = Lift().visit(node.value)
        return [*before, node]


class Walrus(ast.NodeTransformer):
    """Names every product where it is used."""

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if isinstance(node.op, ast.Mult) and isinstance(node.right, ast.BinOp):
            return ast.NamedExpr(ast.Name(f"part{node.lineno}_{node.col_offset}", ast.Store()), node)
        return node


class Swapped(ast.NodeTransformer):
    """Calls the conditional branch uncond, and the unconditional one cond."""

    @staticmethod
    def swap(name):
        other = {"cond": "uncond", "uncond": "cond"}
        return "_".join(other.get(word, word) for word in name.split("_"))

    def visit_Name(self, node):
        node.id = self.swap(node.id)
        return node

    def visit_arg(self, node):
        node.arg = self.swap(node.arg)
        return node


class Methods(ast.NodeTransformer):
    """Writes torch.cat(x, dim=1) with the axis by position, and torch.split(x, ...) as x.split(...)."""

    def visit_Call(self, node):
        self.generic_visit(node)
        if (
            isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "torch"
        ):
            if node.func.attr in ("split", "narrow", "lerp", "index_select"):
                first, *rest = node.args
                return ast.Call(ast.Attribute(first, node.func.attr, ast.Load()), rest, node.keywords)
            if node.func.attr == "cat" and node.keywords:
                return ast.Call(node.func, [*node.args, node.keywords[0].value], [])
        return node


MUTATIONS = [Renamed, Commuted, Expanded, InSteps, Walrus, Swapped, Methods]


def spelled(names):
    """Every program in every spelling, where CI tries each program in two spellings, and so each spelling on many."""
    turns = len(MUTATIONS)
    return pytest.mark.parametrize(
        ("name", "mutation"),
        [
            pytest.param(name, mutation, marks=() if (k - number) % turns < 2 else pytest.mark.long)
            for number, name in enumerate(names)
            for k, mutation in enumerate(MUTATIONS)
        ],
    )


def mutate(source, *mutations):
    tree = ast.parse(source)
    for mutation in mutations:
        tree = ast.parse(ast.unparse(ast.fix_missing_locations(mutation().visit(tree))))
    return ast.unparse(tree)


@spelled(FOUND)
def test_another_spelling_of_the_same_is_found(name, mutation):
    channels, axis = EXPECTED[name]
    for finding_channels, finding_axis in found(mutate(FOUND[name][2], mutation)):
        if mutation is Renamed and channels not in ("3", "4"):
            assert finding_axis == axis  # a choice is shown by its name
        else:
            assert (finding_channels, finding_axis) in {(channels, axis), (channels, 1)}
    assert found(mutate(FOUND[name][2], mutation))


@pytest.mark.parametrize("name", FOUND)
def test_all_spellings_at_once_are_found(name):
    assert found(mutate(FOUND[name][2], Expanded, Commuted, InSteps, Methods))


@spelled(NOTHING)
def test_another_spelling_of_something_else_is_not_found(name, mutation):
    assert audit_source(mutate(NOTHING[name], mutation)) == []


@spelled(COMPLETE)
def test_another_spelling_of_all_channels_is_no_finding(name, mutation):
    source = mutate(COMPLETE[name], mutation)
    if mutation is Renamed and "latent_channels =" in source:
        return
    assert all(finding.level == "all" for finding in audit_source(source))


# what is said of a finding


FORMS = {
    "u + s * (c - u)": ("uncond + s (cond - uncond)", "s"),
    "c + s * (c - u)": ("cond + s (cond - uncond)", "1 + s"),
    "c + (s - 1) * (c - u)": ("cond + (s - 1) (cond - uncond)", "s"),
    "(1 + s) * c - s * u": ("s cond + (1 - s) uncond", "1 + s"),
    "s * c + (1 - s) * u": ("s cond + (1 - s) uncond", "s"),
    "torch.lerp(u, c, s)": ("uncond + s (cond - uncond)", "s"),
    "u + 7.5 * (c - u)": ("uncond + s (cond - uncond)", "7.5"),
}


@pytest.mark.parametrize("order", ["cond", "uncond"])
@pytest.mark.parametrize("form", FORMS)
def test_formula_scale_and_order_are_named(form, order):
    halves = "c, u" if order == "cond" else "u, c"
    source = f"""
def guide(out, s):
    eps, rest = out[:, :3], out[:, 3:]
    {halves} = eps.chunk(2)
    half = {form}
    return torch.cat([torch.cat([half, half]), rest], dim=1)
"""
    (finding,) = audit_source(source, "there.py")
    formula, scale = FORMS[form]
    assert (finding.formula, finding.scale) == (formula, scale)
    assert finding.branches == f"one batch, {order} first"
    assert finding.call == f"guidon.Guidance({scale}, channels=3)"
    assert (finding.file, finding.line, finding.function, finding.joined) == ("there.py", 3, "guide", 6)


def test_the_call_that_is_printed_is_valid_guidance():
    import guidon

    for _, (_, _, source) in FOUND.items():
        for finding in audit_source(source):
            if finding.level == "some":
                call = eval(finding.call.replace(finding.scale, "3.0", 1), {"guidon": guidon, "channels": 4})
                assert call.scales_for(4).guided


def test_the_function_is_named_with_those_around_it():
    (finding,) = audit_source(FOUND["model_fn"][2])
    assert finding.function == "sampler.model_fn"
    (finding,) = audit_source(FOUND["lumina"][2])
    assert finding.function == "Pipeline.__call__"


def test_a_choice_names_its_default():
    (finding,) = audit_source(FOUND["opensora"][2])
    assert finding.level == "chosen"
    assert "None" in finding.guided
    (finding,) = audit_source(FOUND["attribute"][2])
    assert "by default 3" in finding.guided


# the test for guidance


def test_an_affine_combination_of_branches_is_guidance():
    c, u, s = single("c"), single("u"), single("s")
    guided = add(u, multiply(s, add(c, u, -1)))
    assert list(affine(guided)) == [{"c": {("s",): 1.0}, "u": {("s",): -1.0, (): 1.0}}]
    assert difference(multiply(s, add(c, u, -1)))
    assert not list(affine(add(c, u)))
    assert not list(affine(add(multiply(number(0.5), c), multiply(number(0.5), u))))
    assert not difference(guided)


# files


DIT = FOUND["dit"][2]


def test_folders_are_searched_and_counted(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "dit.py").write_text(DIT)
    (tmp_path / "a" / "other.py").write_text("x = 1\n")
    for skipped in (".git", "__pycache__"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "dit.py").write_text(DIT)
    (tmp_path / "a" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "notes.txt").write_text(DIT)
    steps = []
    result = audit([tmp_path, tmp_path / "a" / "b" / "dit.py"], lambda done, total: steps.append((done, total)))
    assert [finding.file for finding in result.findings] == [str(tmp_path / "a" / "b" / "dit.py")]
    assert (result.files, result.unreadable) == (2, ())
    assert steps == [(1, 2), (2, 2)]


def test_what_cannot_be_parsed_is_counted_and_named(tmp_path):
    begin = "import torch\nx = y[:, :3] * 2\n"
    (tmp_path / "syntax.py").write_text(DIT + "\ndef (:\n")
    (tmp_path / "null.py").write_bytes(DIT.encode() + b"\x00")
    (tmp_path / "bytes.py").write_bytes(DIT.encode() + b"# \xff\n")
    (tmp_path / "coding.py").write_text("# coding: nothing\n" + begin)
    (tmp_path / "deep.py").write_text(DIT + "x = " + "(" * 5000 + ")" * 5000)
    (tmp_path / "python2.py").write_text(DIT + "\nprint 'x'\n")
    (tmp_path / "empty.py").write_text("")
    result = audit([tmp_path])
    assert result.files == 7
    named = {file.rsplit("/", 1)[1] for file, _ in result.unreadable}
    assert named == {"syntax.py", "null.py", "bytes.py", "coding.py", "deep.py", "python2.py"}
    assert result.findings == ()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux has such files")
def test_a_file_of_the_system_is_not_read(tmp_path):
    (tmp_path / "link.py").symlink_to("/proc/self/maps")
    ((_, why),) = audit([tmp_path]).unreadable
    assert "does not tell its size" in why


def test_other_encodings_and_long_sums_are_read(tmp_path):
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\n# caf\xe9\n" + DIT.encode())
    (tmp_path / "mark.py").write_bytes(b"\xef\xbb\xbf" + DIT.encode())
    (tmp_path / "lines.py").write_bytes(DIT.replace("\n", "\r\n").encode())
    (tmp_path / "long.py").write_text(
        DIT + "\ndef f(a):\n    return a[:, :3].chunk(2) * (" + " - ".join(["a"] * 900) + ")\n"
    )
    result = audit([tmp_path])
    assert (len(result.findings), result.unreadable) == (4, ())


def test_notebooks_are_read(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# " + DIT]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "!pip install torch\n", "import torch"]},
        {"cell_type": "code", "source": DIT.splitlines(keepends=True)},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "b.ipynb").write_text("torch [:, :3]")
    result = audit([tmp_path])
    assert [finding.channels for finding in result.findings] == ["3"]
    assert [file for file, _ in result.unreadable] == [str(tmp_path / "b.ipynb")]


def test_a_path_that_is_no_python_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        audit([tmp_path / "nothing"])
    (tmp_path / "text.md").write_text("")
    with pytest.raises(InputError, match="no Python file"):
        audit([tmp_path / "text.md"])


@pytest.mark.parametrize(
    "others",
    [
        ("dit", "pixart_alpha", "flux2"),
        pytest.param(("dit", "pixart_alpha", "latte", "flux2", "cosmos", "deepfloyd_if"), marks=pytest.mark.long),
    ],
)
def test_the_pipelines_of_diffusers_hold_one_sliced_guidance(others):
    from importlib.util import find_spec
    from pathlib import Path

    pipelines = Path(find_spec("diffusers").origin).parent / "pipelines"
    result = audit([pipelines / name for name in ("lumina", *others)])
    assert [Path(finding.file).name for finding in result.findings] == ["pipeline_lumina.py"]
    assert "pipeline_dit.py" in {Path(finding.file).name for finding in result.complete}
