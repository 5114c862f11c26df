"""A stand-in for ComfyUI: its node API, its MODEL and the order of its sampling, as far as Guidon's nodes use them.

It is our own short statement of ComfyUI's behaviour. ``comfyui_checkout`` runs the same tests on the real one.
"""

import copy
import importlib.util
import math
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

NODES = Path(__file__).resolve().parent.parent / "integrations" / "comfyui"


def prediction(x, sigma, prompt):
    """x_0 of a network, element by element, so that batching changes no bit; prompts differ in every channel."""
    channel = torch.arange(x.shape[1], dtype=x.dtype).view(-1, *[1] * (x.ndim - 2))
    return torch.sin(x * (0.7 + 0.1 * channel) / (1 + sigma) + prompt * (1 + channel)) + 0.2 * prompt


# noise levels


class Eps:
    """x = x_0 + sigma noise, whose logarithm of sigma falls linearly."""

    def percent_to_sigma(self, percent):
        if percent <= 0 or percent >= 1:
            return 999999999.9 if percent <= 0 else 0.0
        return float(math.exp(math.log(14.6) + percent * (math.log(0.03) - math.log(14.6))))

    def calculate_input(self, sigma, noise):
        return noise / (sigma**2 + 1) ** 0.5


class Flow:
    """x = (1 - sigma) x_0 + sigma noise, with ComfyUI's shift of the levels."""

    shift = 3.0

    def percent_to_sigma(self, percent):
        if percent <= 0 or percent >= 1:
            return 1.0 if percent <= 0 else 0.0
        return self.shift * (1 - percent) / (1 + (self.shift - 1) * (1 - percent))

    def calculate_input(self, sigma, noise):
        return noise


SAMPLINGS = {"eps": Eps, "flow": Flow}


# the model


class Model:
    """A MODEL. As older versions of ComfyUI do, a clone deep-copies the options."""

    def __init__(self, kind):
        self.model = SimpleNamespace(model_sampling=SAMPLINGS[kind](), latent_shapes=None)
        self.model_options = {"transformer_options": {}}
        self.wrappers = {}

    def clone(self):
        other = copy.copy(self)
        other.model_options = copy.deepcopy(self.model_options)
        other.wrappers = {key: list(value) for key, value in self.wrappers.items()}
        return other

    def get_model_object(self, name):
        return getattr(self.model, name)

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers.setdefault(kind, []).append(wrapper)

    def _add(self, name, function, disable_cfg1_optimization):
        self.model_options[name] = [*self.model_options.get(name, []), function]
        if disable_cfg1_optimization:
            self.model_options["disable_cfg1_optimization"] = True

    def set_model_sampler_pre_cfg_function(self, pre_cfg_function, disable_cfg1_optimization=False):
        self._add("sampler_pre_cfg_function", pre_cfg_function, disable_cfg1_optimization)

    def set_model_sampler_post_cfg_function(self, post_cfg_function, disable_cfg1_optimization=False):
        self._add("sampler_post_cfg_function", post_cfg_function, disable_cfg1_optimization)


# sampling


def denoised(model, x, sigma, conds, cfg):
    """One call of a guided model: predictions, pre-CFG functions, the sampler's formula, post-CFG functions."""
    options = model.model_options
    if math.isclose(cfg, 1.0) and not options.get("disable_cfg1_optimization", False):
        conds = [conds[0], None]
    sigmas = torch.full((len(x),), sigma)
    out = [torch.zeros_like(x) if c is None else packed_prediction(model.model, x, sigma, c) for c in conds]
    shared = {"cond_scale": cfg, "input": x, "sigma": sigmas, "timestep": sigmas, "model": model.model}
    for function in options.get("sampler_pre_cfg_function", []):
        out = function({"conds": conds, "conds_out": out, "model_options": options, **shared})
    cond, uncond = out[0], out[1]
    result = uncond + (cond - uncond) * cfg
    for function in options.get("sampler_post_cfg_function", []):
        result = function({"denoised": result, "cond_denoised": cond, "uncond_denoised": uncond, **shared})
    return result


def packed_prediction(inner, x, sigma, prompt):
    """The prediction of every stream of a packed latent, or of the one latent."""
    if len(inner.latent_shapes) == 1:
        return prediction(x, sigma, prompt)
    sizes = [math.prod(shape[1:]) for shape in inner.latent_shapes]
    parts = zip(x.split(sizes, -1), inner.latent_shapes, strict=True)
    return torch.cat(
        [prediction(p.reshape(len(x), *s[1:]), sigma, prompt).reshape(len(x), 1, -1) for p, s in parts], -1
    )


class StandIn:
    """ComfyUI, as the tests call it."""

    name = "stand-in"
    samplings = tuple(SAMPLINGS)
    packs = True
    """Whether it has latents of several streams."""

    def __init__(self):
        self.nodes = load_nodes(
            "guidon_nodes_of_the_stand_in", {"comfy_api": ModuleType("comfy_api"), "comfy_api.latest": api()}
        )

    def model(self, kind="eps"):
        return Model(kind)

    def sampling(self, kind):
        return SAMPLINGS[kind]()

    def run(self, model, visit, cfg, prompts=(0.8, -0.5), shapes=((2, 4, 3, 4),)):
        """A run of a sampler: ``visit(call)`` calls ``call(x, sigma)`` for x_0 and gives the latent that it makes.

        ``prompts`` are the positive and the negative one, or the positive one alone. Latents of several ``shapes`` are
        packed.
        """

        def sample():
            model.model.latent_shapes = shapes
            return visit(lambda x, sigma: denoised(model, x, sigma, [*prompts, None][:2], cfg))

        for wrapper in reversed(model.wrappers.get("outer_sample", [])):
            sample = lambda wrapper=wrapper, inner=sample: wrapper(inner)  # noqa: E731
        return sample()


# the node API


def api():
    """A stand-in for ``comfy_api.latest``."""
    module = ModuleType("comfy_api.latest")

    class Input:
        def __init__(self, id, display_name=None, optional=False, tooltip=None, default=None, **more):
            self.id, self.optional, self.tooltip, self.default, self.more = id, optional, tooltip, default, more

    class Output:
        def __init__(self, id=None, display_name=None, tooltip=None):
            self.id, self.display_name = id, display_name

    class Schema:
        def __init__(
            self,
            node_id,
            display_name=None,
            category="sd",
            inputs=(),
            outputs=(),
            description="",
            is_experimental=False,
        ):
            self.node_id, self.display_name, self.category = node_id, display_name, category
            self.inputs, self.outputs, self.description = list(inputs), list(outputs), description

    class NodeOutput:
        def __init__(self, *args, ui=None):
            self.args, self.result = args, args

    class ComfyNode:
        @classmethod
        def GET_SCHEMA(cls):
            return cls.define_schema()

    def kind(io_type):
        parts = {part.__name__: type(part.__name__, (part,), {"io_type": io_type}) for part in (Input, Output)}
        return type(io_type, (), {"io_type": io_type, **parts})

    kinds = {name.title(): kind(name) for name in ("MODEL", "LATENT", "IMAGE", "STRING", "FLOAT", "COMBO")}
    module.io = SimpleNamespace(ComfyNode=ComfyNode, Schema=Schema, NodeOutput=NodeOutput, **kinds)
    module.ComfyExtension = type("ComfyExtension", (), {})
    return module


@contextmanager
def modules(replaced):
    """Put modules in the place of installed ones for a while."""
    before = {name: sys.modules.get(name) for name in replaced}
    sys.modules.update(replaced)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def load_nodes(name, replaced):
    """The folder of nodes, loaded from its path as ComfyUI does."""
    spec = importlib.util.spec_from_file_location(name, NODES / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    with modules(replaced):
        spec.loader.exec_module(module)
    return module
