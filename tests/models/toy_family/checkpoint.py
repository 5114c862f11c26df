"""How its checkpoints are read, and where the stages of its model come from."""

from guidon.checkpoints import read_tensors, refuse_misfit
from guidon.core.hashing import hash_files
from guidon.diffusion import NoiseSchedule, Process
from guidon.models.family import Checkpoint, Description, Reader
from guidon.models.model import Model
from guidon.models.stages import Stage

from . import NAME
from .network import Pixels, ToyNetwork, WordCounter


class ToyReader(Reader):
    def recognise(self, file):
        return Checkpoint(file, file.tensors) if "words.weight" in file.tensors else None

    def describe(self, checkpoint, known):
        width = len(checkpoint.tensors["words.weight"])
        return Description(NAME, {"width": width}, sum(t.numel() for t in checkpoint.tensors.values()), False)

    def load(self, checkpoint, known, assumed, dtype):
        network = ToyNetwork(len(checkpoint.tensors["words.weight"]))
        refuse_misfit(network.state_dict(), checkpoint.tensors, f"{checkpoint.file.path} does not fit {NAME}")
        network.load_state_dict(checkpoint.tensors)
        return network.to(dtype)


def find_model(preset, facts, sources, device):
    path = preset.weights or sources.checkpoint
    checkpoint = ToyReader().recognise(read_tensors(path))
    keep = sources.offload != "stages"
    return Model(
        text=Stage(WordCounter, keep),
        network=Stage(lambda dtype: ToyReader().load(checkpoint, {}, {}, dtype).to(device).eval(), keep),
        vae=Stage(Pixels, keep),
        schedule=NoiseSchedule.named("squaredcos_cap_v2", facts.timesteps),
        process=Process("v", "fixed_small"),
        facts=facts,
        hashes={"checkpoint": hash_files(path)},
    )
