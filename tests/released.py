"""Small random stand-ins for released weights, saved as the real ones are: T5 and an autoencoder in hub layout."""

import io
import json

import torch

from guidon.models import TemporalVAE, TemporalVAEConfig, VideoVAE
from guidon.models.dit.network import DiT, DiTConfig
from guidon.models.pixart.network import PixArt, PixArtConfig
from guidon.models.stdit.network import STDiT, STDiTConfig
from guidon.models.stdit2.network import STDiT2, STDiT2Config
from guidon.models.stdit3.network import STDiT3, STDiT3Config

SMALL = {"hidden_size": 384, "depth": 1, "num_heads": 6, "mlp_ratio": 1.0}  # 384 wide: DiT-S, so its heads are known

SENTENCES = [
    "a lighthouse in a storm", "a red circle moves left on a white background", "waves roll over the rocks",
    "the camera pans slowly across a misty valley at dawn", "a corgi runs on the beach, tail wagging",
    "two boats drift apart; the sun sets behind them", "an aerial view of a winding coastal road",
]  # fmt: skip


def make_t5(folder, d_model=24, seed=0):
    """An encoder with a sentencepiece vocabulary, in the files of DeepFloyd/t5-v1_1-xxl."""
    import sentencepiece
    from transformers import T5Config, T5EncoderModel

    words = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=words, vocab_size=60, character_coverage=1.0,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=200, d_model=d_model, d_kv=8, d_ff=32, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(config).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(words.getvalue())
    return folder


def make_vae(folder, seed=0):
    """An autoencoder of Stable Diffusion's shape, in the files of stabilityai/sd-vae-ft-ema."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_video_vae(folder, seed=0):
    """Open-Sora 1.2's autoencoder, in the files of hpcai-tech/OpenSora-VAE-v1.2: 8 pixels, 4 frames."""
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    spatial = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    temporal = TemporalVAE(TemporalVAEConfig(filters=4, num_res_blocks=1, num_groups=2))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(VideoVAE(spatial, temporal).state_dict(), folder / "model.safetensors")
    parts = {"vae_2d": {"norm_num_groups": 4}, "vae_temporal": {"num_groups": 2}}
    (folder / "config.json").write_text(json.dumps(parts | {"micro_frame_size": 17}))
    return folder


def make_sized_checkpoints(folder):
    """The networks of Open-Sora 1.1 and 1.2 in the folders of their hub repositories, for captions of ``make_t5``."""
    from safetensors.torch import save_file

    small = {"hidden_size": 24, "depth": 1, "num_heads": 2, "caption_channels": 24}
    models = {
        "OpenSora-STDiT-v2-stage3": STDiT2(STDiT2Config(**small)),
        "OpenSora-STDiT-v3": STDiT3(STDiT3Config(**small)),
    }
    for name, model in models.items():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        (folder / name).mkdir()
        save_file(model.state_dict(), folder / name / "model.safetensors")
        stored = small | {"model_type": type(model).__name__, "input_sq_size": 512, "pred_sigma": True}
        stored |= {"input_size": [None, None, None], "patch_size": [1, 2, 2], "qk_norm": True, "drop_path": 0.0}
        (folder / name / "config.json").write_text(json.dumps(stored))
    return folder


def make_checkpoints(folder):
    """One of each architecture, for latents of 4 x 4 and captions of ``make_t5``."""
    captions = {"caption_channels": 24, "model_max_length": 120}
    models = {
        "video.pth": STDiT(STDiTConfig((2, 4, 4), space_scale=0.5, **SMALL, **captions)),
        "image.pth": PixArt(PixArtConfig(4, **SMALL, **captions)),
        "sizes.pth": PixArt(PixArtConfig(4, lewei_scale=2.0, micro_condition=True, **SMALL, **captions)),
        "class.pt": DiT(DiTConfig(4, **SMALL)),
    }
    for name, model in models.items():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05)
        weights = model.state_dict()
        torch.save({"state_dict": weights} if name == "image.pth" else weights, folder / name)
    return folder


def into_shards(file):
    """Write a safetensors file as an index and two shards, in its place: the index."""
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(weights)}
    for part in set(places.values()):
        save_file({name: weights[name] for name in weights if places[name] == part}, file.parent / part)
    file.unlink()
    index = file.with_name(f"{file.name}.index.json")
    index.write_text(json.dumps({"weight_map": places}))
    return index


def change_shard(index):
    """Change the weights in a shard of an index, which stays as it is."""
    from safetensors.torch import load_file, save_file

    shard = index.parent / "part-1.safetensors"
    save_file({name: value + 1 for name, value in load_file(shard).items()}, shard)
