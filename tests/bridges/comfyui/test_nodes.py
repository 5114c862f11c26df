"""The folder of nodes: what ComfyUI reads of it, and what it says to bad input."""

import asyncio
import json
import re
import sys
import tomllib

import pytest
import torch

from comfyui_stand_in import NODES
from forks import in_fork
from guidon import InputError
from guidon.bridges.comfyui import UNOFFERED, offered_rules
from guidon.core.version import VERSION
from guidon.guidance import RULES

WORKFLOW = json.loads((NODES / "example_workflows" / "channel_guidance.json").read_text())
IDS = {"GuidonChannelGuidance", "GuidonGuidanceRule", "GuidonGuidanceTrace"}
WIDGETS = ("STRING", "FLOAT", "INT", "BOOLEAN", "COMBO")


def node_list(comfy):
    return asyncio.run(asyncio.run(comfy.nodes.comfy_entrypoint()).get_node_list())


def schemas(comfy):
    return {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in node_list(comfy))}


def in_order(schema):
    """A node's inputs as ComfyUI's page orders them: the required ones first."""
    return sorted(schema.inputs, key=lambda given: bool(given.optional))


def test_comfyui_finds_the_three_nodes(comfy):
    found = schemas(comfy)
    assert found.keys() == IDS
    assert [schema.display_name for schema in found.values()] == [
        "Channel guidance", "Guidance rule", "Guidance trace",
    ]  # fmt: skip
    for schema in found.values():
        assert schema.description
        for given in schema.inputs:
            assert given.optional or given.io_type not in WIDGETS or given.default is not None


def test_the_defaults_of_a_node_can_be_executed(comfy):
    model = comfy.model()
    for node in node_list(comfy)[:2]:
        defaults = {given.id: given.default for given in node.GET_SCHEMA().inputs if given.id != "model"}
        patched = node.execute(model, **defaults).args[0]
        assert len(patched.model_options["sampler_pre_cfg_function"]) == 1


def test_every_rule_is_offered_or_sent_elsewhere(comfy):
    assert {*offered_rules()} | UNOFFERED.keys() == RULES.keys()
    x = torch.randn(1, 4, 4, 4)
    for rule in offered_rules():
        patched = comfy.nodes.GuidanceRule.execute(comfy.model(), rule, 2.0).args[0]
        assert comfy.run(patched, lambda call: call(x, 0.5), 7.0, shapes=(x.shape,)).isfinite().all()
    for rule, elsewhere in UNOFFERED.items():
        with pytest.raises(InputError, match=re.escape(f"Guidance rule: {rule} is not offered here: {elsewhere}")):
            comfy.nodes.GuidanceRule.execute(comfy.model(), rule, 0.5)


BAD = [
    ("ChannelGuidance", {"channels": "three"}, "channels 'three' cannot be read"),
    ("ChannelGuidance", {"channels": ""}, "channels '' cannot be read"),
    ("ChannelGuidance", {"channels": "3", "scales": "7,x"}, "scales '7,x' cannot be read: give one number, or one per channel"),
    ("ChannelGuidance", {"channels": "3", "scales": "-1"}, "scales -1.0 is not valid"),
    ("ChannelGuidance", {"channels": "3", "scales": "inf"}, "scales inf is not valid"),
    ("ChannelGuidance", {"channels": "3", "start_percent": 0.8, "end_percent": 0.2}, "start_percent, end_percent: the interval 0.8,0.2 runs backwards"),
    ("GuidanceRule", {"rule": "agp", "scale": 4.0}, "guidance rule 'agp' does not exist (did you mean 'apg'?)"),
    ("GuidanceRule", {"rule": "apg", "scale": 4.0, "settings": "phi=1"}, "guidance apg: 'phi' is not a setting"),
    ("GuidanceRule", {"rule": "cfg", "scale": -4.0}, "scale -4.0 is not valid"),
    ("GuidanceRule", {"rule": "cfg", "scale": 4.0, "timing": "later"}, "timing 'later' does not exist"),
    ("GuidanceRule", {"rule": "cfg", "scale": 4.0, "channels": ""}, "channels '' cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("node", "given", "message"), BAD)
def test_bad_input_is_refused_in_one_line_under_the_nodes_name(comfy, node, given, message):
    with pytest.raises(InputError) as refused:
        getattr(comfy.nodes, node).execute(comfy.model(), **given)
    name = "Channel guidance" if node == "ChannelGuidance" else "Guidance rule"
    assert str(refused.value).startswith(f"{name}: {message}")
    assert "\n" not in str(refused.value)


def test_the_logic_imports_no_comfyui_and_no_optional_library():
    others = ("comfy", "comfy_api", "diffusers", "transformers", "pydantic", "yaml", "matplotlib", "PIL")

    def import_it():
        import guidon.bridges.comfyui

        assert guidon.bridges.comfyui.__file__
        assert not {name.partition(".")[0] for name in sys.modules} & set(others)

    in_fork(import_it, without=("guidon", *others))


def test_the_registrys_project_and_the_requirements_agree():
    project = tomllib.loads((NODES / "pyproject.toml").read_text())
    assert "comfyui" not in project["project"]["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert (NODES / "requirements.txt").read_text().split() == project["project"]["dependencies"]
    (needed,) = project["project"]["dependencies"]
    floor = needed.removeprefix("guidon-diffusion>=")
    assert [int(part) for part in floor.split(".")] <= [int(part) for part in VERSION.split(".")]
    assert project["tool"]["comfy"]["DisplayName"]


# the workflow


def test_the_workflows_links_fit_its_nodes():
    nodes = {node["id"]: node for node in WORKFLOW["nodes"]}
    links = {link[0]: link for link in WORKFLOW["links"]}
    assert len(nodes) == len(WORKFLOW["nodes"])
    assert len(links) == len(WORKFLOW["links"])
    assert WORKFLOW["last_node_id"] == max(nodes)
    assert WORKFLOW["last_link_id"] == max(links)
    for number, source, slot, target, place, kind in links.values():
        output, given = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert number in output["links"]
        assert given["link"] == number
        assert output["type"] == kind
        assert given["type"] in (kind, "*")
    ends = [number for node in nodes.values() for output in node["outputs"] for number in output["links"]]
    starts = [given["link"] for node in nodes.values() for given in node["inputs"]]
    assert sorted(ends) == sorted(starts) == sorted(links)


def test_our_nodes_in_the_workflow_are_those_of_the_schema(comfy):
    ours = [node for node in WORKFLOW["nodes"] if node["type"] in IDS]
    assert {node["type"] for node in ours} == IDS
    for node in ours:
        schema = schemas(comfy)[node["type"]]
        widgets = [given for given in in_order(schema) if given.io_type in WIDGETS]
        sockets = [given for given in in_order(schema) if given.io_type not in WIDGETS]
        assert [(given["name"], given["type"]) for given in node["inputs"]] == [(s.id, s.io_type) for s in sockets]
        assert [output["type"] for output in node["outputs"]] == [output.io_type for output in schema.outputs]
        assert len(node["widgets_values"]) == len(widgets)
        for value, widget in zip(node["widgets_values"], widgets, strict=True):
            assert isinstance(value, float if widget.io_type == "FLOAT" else str)
