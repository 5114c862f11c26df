"""The nodes in a checkout's own executor: the example workflow, and traces under its caches."""

import asyncio
import inspect
import json
from typing import Any, ClassVar

import pytest
import torch

from comfyui_stand_in import NODES

pytestmark = [pytest.mark.comfyui, pytest.mark.parametrize("comfy", ["checkout"], indirect=True)]
WORKFLOW = json.loads((NODES / "example_workflows" / "channel_guidance.json").read_text())


class Loader:
    """A model, prompts and decoder of nothing, in the place of CheckpointLoaderSimple."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "load", "tests"
    comfy: ClassVar[Any] = None

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"ckpt_name": ("STRING", {})}}

    def load(self, ckpt_name):
        return self.comfy.model(), self, self

    def tokenize(self, text):
        return 0.01 * len(text)

    def encode_from_tokens_scheduled(self, tokens):
        return [[torch.full((1, 1, 4), tokens), {}]]

    def decode(self, latent):
        return latent.movedim(1, -1)[..., :3].clamp(0, 1)


class Shown:
    """Keeps what a node gives, under a name."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "show", "tests", True
    kept: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"picture": ("IMAGE",), "latent": ("LATENT",), "name": ("STRING", {})}}

    def show(self, picture, latent, name):
        self.kept[name] = picture.clone(), latent["samples"].clone()
        return {}


class Server:
    """What the executor tells the page."""

    client_id = last_node_id = last_prompt_id = None

    def __init__(self):
        self.errors = []
        self.sockets_metadata = {}

    def send_sync(self, event, data, client=None):
        if event == "execution_error":
            self.errors.append(data["exception_message"].strip())


class Executor:
    """ComfyUI's own executor of prompts, with one kind of cache."""

    def __init__(self, cache):
        import execution

        self.execution, self.server, self.prompts = execution, Server(), 0
        known = inspect.signature(execution.PromptExecutor).parameters
        size = (
            {"cache_args": {"lru": 99, "ram": 0.1, "ram_inactive": 0.1}}
            if "cache_args" in known
            else {"cache_size": 99}
        )
        kind = execution.CacheType[cache]
        self.executor = execution.PromptExecutor(self.server, cache_type=kind, **size)

    def __call__(self, prompt):
        """Run a prompt; the error that its page would show, or None."""
        self.prompts += 1
        name = str(self.prompts)
        valid, error, outputs, problems = asyncio.run(self.execution.validate_prompt(name, prompt, None))
        assert valid, (error, problems)
        self.executor.execute(prompt, name, {"client_id": "tests"}, outputs)
        return self.server.errors.pop() if self.server.errors else None


@pytest.fixture
def mappings(comfy, monkeypatch, tmp_path):
    import folder_paths
    import nodes

    assert asyncio.run(nodes.load_custom_node(str(NODES)))
    monkeypatch.setattr(Loader, "comfy", comfy)
    monkeypatch.setattr(Shown, "kept", {})
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "CheckpointLoaderSimple", Loader)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Shown", Shown)
    folder_paths.set_output_directory(str(tmp_path / "output"))
    folder_paths.set_temp_directory(str(tmp_path / "temp"))
    if "PreviewAny" not in nodes.NODE_CLASS_MAPPINGS:
        asyncio.run(nodes.init_builtin_extra_nodes())
    return nodes.NODE_CLASS_MAPPINGS


def prompt_of(workflow, mappings):
    """A saved workflow as the page sends it: widgets by name, bypassed nodes left out."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}

    def origin(number):
        _, source, slot, _, _, kind = links[number]
        node = nodes[source]
        if node["mode"] != 4:
            return [str(source), slot]
        return origin(next(given["link"] for given in node["inputs"] if given["type"] == kind))

    prompt = {}
    for node in nodes.values():
        if node["mode"] == 4:
            continue
        known = mappings[node["type"]].INPUT_TYPES()
        sockets = {given["name"]: origin(given["link"]) for given in node["inputs"]}
        names = [*known["required"], *known.get("optional", {})]
        values = [value for value in node["widgets_values"] if value != "fixed"]
        widgets = dict(zip([name for name in names if name not in sockets], values, strict=False))
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": widgets | sockets}
    return prompt


@pytest.mark.parametrize("rule_bypassed", [True, False])
def test_the_example_workflow_runs(mappings, tmp_path, rule_bypassed):
    workflow = json.loads(json.dumps(WORKFLOW))
    for node in workflow["nodes"]:
        if node["type"] == "GuidonGuidanceRule":
            assert node["mode"] == 4
            node["mode"] = 4 if rule_bypassed else 0
    assert Executor("CLASSIC")(prompt_of(workflow, mappings)) is None
    assert len(list((tmp_path / "output").glob("guidon*.png"))) == 1
    assert len(list((tmp_path / "temp").glob("*.png"))) == 1


def prompt(seeds, trace=True, **sampler):
    """A prompt with a sampler and a trace for every seed, on one patched model."""
    settings = {"steps": 4, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0} | sampler
    given = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "none"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a long prompt", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "no", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {
            "class_type": "GuidonChannelGuidance",
            "inputs": {"model": ["1", 0], "channels": "2", "start_percent": 0.0, "end_percent": 0.6},
        },
    }
    for seed in seeds:
        drawn = {"model": ["5", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": seed}
        given[f"{seed}0"] = {"class_type": "KSampler", "inputs": drawn | settings}
        given[f"{seed}1"] = {
            "class_type": "GuidonGuidanceTrace",
            "inputs": {"model": ["5", 0], "latent": [f"{seed}0", 0]},
        }
        picture = [f"{seed}1", 0] if trace else ["7", 0]
        shown = {"picture": picture, "latent": [f"{seed}0", 0], "name": str(seed)}
        given[f"{seed}2"] = {"class_type": "Shown", "inputs": shown}
    if not trace:
        blank = {"width": 64, "height": 64, "batch_size": 1, "color": 0}
        given["7"] = {"class_type": "EmptyImage", "inputs": blank}
    return given


@pytest.mark.parametrize("cache", ["CLASSIC", "LRU"])
def test_every_latent_gets_its_own_trace_whatever_is_cached(mappings, cache):
    run = Executor(cache)
    assert run(prompt((1, 2, 3))) is None
    own = {seed: Shown.kept[str(seed)][0] for seed in (1, 2, 3)}
    assert not torch.equal(own[1], own[2])
    # one at a time, in another order: whatever is cached, the picture is the latent's own
    for seed in (2, 3, 1):
        assert run(prompt((seed,))) is None
        assert torch.equal(Shown.kept[str(seed)][0], own[seed])
    # a trace that is added to a prompt whose sampler is cached and does not run again
    fresh = Executor(cache)
    assert fresh(prompt((1,), trace=False)) is None
    assert fresh(prompt((1, 2), trace=False)) is None
    Shown.kept.clear()
    assert fresh(prompt((1,))) is None
    assert torch.equal(Shown.kept["1"][0], own[1])


@pytest.mark.parametrize(
    "sampler", ["euler_ancestral", "heun", "heunpp2", "dpmpp_2m", "uni_pc", "euler_cfg_pp", "dpm_adaptive"]
)
def test_samplers_of_every_kind_run_and_are_traced(mappings, sampler):
    assert Executor("CLASSIC")(prompt((5,), sampler_name=sampler)) is None
    picture, latent = Shown.kept["5"]
    assert latent.isfinite().all()
    assert picture.max() > 0.5


def test_bad_channels_stop_the_prompt_with_one_line(mappings):
    wrong = prompt((1,))
    wrong["5"]["inputs"]["channels"] = "only:9"
    message = Executor("CLASSIC")(wrong)
    assert message.startswith("Channel guidance: channels 'only:9' names channel 9")
    assert "\n" not in message
