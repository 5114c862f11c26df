"""A checkout of ComfyUI under the interface of ``comfyui_stand_in.StandIn``: its own sampling code runs, on the CPU.

Libraries that its modules import but its sampling does not use are replaced where they are not installed.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch

from comfyui_stand_in import load_nodes, prediction

UNUSED = ("torchsde", "torchvision", "torchaudio", "kornia", "spandrel", "comfy_kitchen", "comfy_aimdo")
GIGABYTE = 2**30


class _Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the libraries that are not used, after everybody else has failed to."""

    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in UNUSED else None

    def create_module(self, spec):
        module = MagicMock()
        module.__name__, module.__path__, module.__spec__ = spec.name, [], spec
        return module

    def exec_module(self, module):
        return


def _memory():
    return SimpleNamespace(total=16 * GIGABYTE, available=16 * GIGABYTE, free=16 * GIGABYTE, used=0)


class Network(torch.nn.Module):
    """A diffusion model of one weight. It is never called: a model function answers in its place."""

    dtype = torch.float32

    def __init__(self, device=None, operations=None, **settings):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


class Checkout:
    """ComfyUI of the folder that COMFYUI names."""

    name = "checkout"
    samplings = ("eps", "v", "flow", "flux", "edm", "cosmos")

    def __init__(self):
        sys.path.insert(0, os.environ["COMFYUI"])
        sys.meta_path.append(_Unused())
        try:
            import psutil  # noqa: F401
        except ImportError:
            sys.modules["psutil"] = SimpleNamespace(virtual_memory=_memory, swap_memory=_memory)
        from comfy.cli_args import args

        args.cpu = True
        import comfy.conds
        import comfy.model_base
        import comfy.model_patcher
        import comfy.samplers
        import comfy.supported_models_base

        self.comfy = comfy
        self.packs = importlib.util.find_spec("comfy.nested_tensor") is not None
        if self.packs:
            importlib.import_module("comfy.nested_tensor")
        self.nodes = load_nodes("guidon_nodes_of_the_checkout", {})

    def _base(self, kind):
        types, constant = self.comfy.model_base.ModelType, self.comfy.conds.CONDConstant
        kinds = {
            "eps": types.EPS, "v": types.V_PREDICTION, "flow": types.FLOW, "flux": types.FLUX, "edm": types.EDM,
            "cosmos": types.FLOW_COSMOS,
        }  # fmt: skip

        class Streams(self.comfy.model_base.BaseModel):
            """A model that is told the shapes of a packed latent's streams, as LTX-2's is."""

            def extra_conds(self, **given):
                shapes = given.get("latent_shapes")
                more = {} if shapes is None else {"latent_shapes": constant(shapes)}
                return super().extra_conds(**given) | more

        config = self.comfy.supported_models_base.BASE({})
        config.unet_config = {}
        config.sampling_settings = {"shift": 3.0} if kind == "flow" else {}
        return Streams(config, kinds[kind], device="cpu", unet_model=Network)

    def model(self, kind="eps"):
        cpu = torch.device("cpu")
        model = self.comfy.model_patcher.ModelPatcher(self._base(kind), cpu, cpu)
        utils = self.comfy.utils

        def answer(apply_model, call):
            """The model function: x_0 of every row of a batch, each at its own prompt."""
            x, context, shapes = call["input"], call["c"]["c_crossattn"], call["c"].get("latent_shapes")
            rows = []
            for k, row in enumerate(x.split(1)):
                streams = [row]
                if shapes is not None and len(shapes) > 1:
                    streams = utils.unpack_latents(row, [(1, *shape[1:]) for shape in shapes])
                level, prompt = float(call["timestep"][k]), float(context[k, 0, 0])
                answers = [prediction(stream, level, prompt) for stream in streams]
                rows.append(answers[0] if len(answers) == 1 else utils.pack_latents(answers)[0])
            return torch.cat(rows)

        model.set_model_unet_function_wrapper(answer)
        return model

    def sampling(self, kind):
        return self._base(kind).model_sampling

    def run(self, model, visit, cfg, prompts=(0.8, -0.5), shapes=((2, 4, 3, 4),), guider=None):
        """A run of ComfyUI's guider whose sampler is ``visit``."""

        def sampler(denoiser, x, sigmas, extra_args, callback=None, disable=None):
            return visit(lambda x, sigma: denoiser(x, x.new_full((len(x),), sigma), **extra_args))

        conditionings = [[[torch.full((1, 1, 4), float(prompt)), {}]] for prompt in prompts]
        if guider is None:
            guider = self.comfy.samplers.CFGGuider(model)
            guider.inner_set_conds(dict(zip(("positive", "negative"), conditionings, strict=False)))
            guider.set_cfg(cfg)
        zeros = [torch.zeros(shape) for shape in shapes]
        latent = zeros[0] if len(zeros) == 1 else self.comfy.nested_tensor.NestedTensor(zeros)
        sampled = self.comfy.samplers.KSAMPLER(sampler)
        return guider.sample(latent, latent, sampled, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
