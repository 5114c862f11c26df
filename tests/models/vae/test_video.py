import numpy as np
import pytest
import torch

from goldens import golden, relative_error
from guidon.core.devices import autocast
from guidon.core.errors import InputError
from guidon.models import TemporalVAE, TemporalVAEConfig, VideoVAE
from guidon.models.stages import Stage
from guidon.models.vae.video import SpatialVAE
from guidon.pipeline import generation

from .test_temporal import GOLDENS, original


def small(**settings):
    torch.manual_seed(0)
    temporal = TemporalVAE(TemporalVAEConfig(4, 1, (1, 2, 2), (True, True), 2))
    return VideoVAE(temporal=temporal, **settings).eval()


def frames_vae():
    """A tiny AutoencoderKL of diffusers, 2 pixels to a latent pixel."""
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    shape = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=2, **shape).eval()


@pytest.mark.parametrize("spatial", [None, frames_vae], ids=["temporal alone", "both parts"])
def test_decoding_in_bf16_is_close_to_fp32(spatial):
    vae = small(**({} if spatial is None else {"spatial": spatial()}))
    z = torch.randn(1, 4, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = vae.reconstruct(z, 17)
    with autocast("bf16", z.device):
        rounded = vae.reconstruct(z, 17).float()
    assert 0 < (rounded - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()


def test_the_numbers_of_the_original():
    numbers, case = golden(f"{GOLDENS}/pipeline_a")
    temporal, _, _ = original(case["weights"].rpartition("/")[2])
    vae = VideoVAE(
        temporal=temporal, micro_frame_size=case["micro_frame_size"], shift=case["shift"], scale=case["scale"]
    )
    for frames, seed in case["seeds"].items():
        torch.manual_seed(seed)
        assert relative_error(vae.encode(numbers[f"{frames}.x"]), numbers[f"{frames}.latent"]) < 1e-5
        decoded = vae.decode(numbers[f"{frames}.z"], num_frames=int(frames))
        assert relative_error(decoded, numbers[f"{frames}.out"]) < 1e-5
    for frames, size in case["latent_sizes"].items():
        assert vae.get_latent_size([int(frames), 30, 53]) == size


def test_parts_of_17_frames_do_not_see_each_other():
    vae = small(posterior="mean")
    x = torch.randn(1, 4, 22, 2, 2)
    assert torch.equal(vae.encode(x)[:, :, :5], vae.encode(x[:, :, :17]))
    assert torch.equal(vae.encode(x)[:, :, 5:], vae.encode(x[:, :, 17:]))
    z = vae.encode(x)
    assert z.shape[2] == vae.latent_frames(22) == 7
    whole, rest = vae.decode(z[:, :, :5], frames=17), vae.decode(z[:, :, 5:], frames=5)
    assert torch.equal(vae.decode(z, frames=22), torch.cat([whole, rest], 2))


def test_the_originals_call_alone_draws_from_the_global_generator():
    x, vae, means = torch.randn(1, 4, 5, 2, 2), small(), small(posterior="mean")
    torch.manual_seed(3)
    first, second = vae.encode(x), vae.encode(x)
    torch.manual_seed(3)
    assert torch.equal(vae.encode(x), first)
    assert not torch.equal(first, second)

    def drawn():
        generator = torch.Generator().manual_seed(5)
        return vae.encode(x, draws=lambda mean: torch.randn(mean.shape, generator=generator))

    state = torch.get_rng_state()
    assert torch.equal(drawn(), drawn())
    assert not torch.equal(drawn(), first)
    assert torch.equal(vae.encode(x, draws=torch.zeros_like), means.encode(x))
    means.decode(first, frames=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_single_frames_are_coded_by_diffusers_autoencoder():
    kl = frames_vae()
    vae = VideoVAE(spatial=kl, temporal=small().temporal_vae, posterior="mean")
    x = torch.rand(1, 3, 5, 8, 12) * 2 - 1
    with torch.no_grad():
        means = torch.stack([kl.encode(x[:, :, k]).latent_dist.mean for k in range(5)], 2) * 0.18215
        z = vae.temporal_vae.encode(means).mean
        shown = vae.temporal_vae.decode(z, num_frames=5) / 0.18215
        shown = torch.stack([kl.decode(shown[:, :, k]).sample for k in range(5)], 2)
    found = vae.encode(x)
    assert torch.allclose(found, (z - vae.shift) / vae.scale, atol=1e-5)
    assert torch.allclose(vae.decode(found, num_frames=5), shown, atol=1e-5)
    assert torch.allclose(vae.decode(found, micro_batch=2, frames=5), shown.clamp(-1, 1), atol=1e-5)
    assert vae.get_latent_size([17, 240, 426]) == [5, 120, 213]
    image = vae.encode(x[:, :, 0])
    assert image.shape == (1, 4, 4, 6)
    assert torch.equal(image, vae.encode(x[:, :, :1])[:, :, 0])
    assert vae.decode(image).shape == (1, 3, 8, 12)
    names = {name.split(".")[0] + "." + name.split(".")[1] for name in vae.state_dict() if "." in name}
    assert names > {"spatial_vae.module", "temporal_vae.encoder"}


@pytest.mark.parametrize(("latent_frames", "frames"), [(1, 1), (2, 8), (5, 17), (6, 21), (15, 51)])
def test_the_longest_clip_of_latents_where_no_length_is_given(latent_frames, frames):
    vae = small()
    assert vae.frames_of(latent_frames) == frames
    assert vae.latent_frames(frames) == latent_frames
    assert vae.decode(torch.zeros(1, 4, latent_frames, 2, 2)).shape[2] == frames


def test_where_memory_runs_out_fewer_frames_pass_together(monkeypatch):
    vae = VideoVAE(spatial=frames_vae(), temporal=small().temporal_vae).requires_grad_(False)
    latents, seen, whole = torch.randn(1, 4, 6, 4, 4), [], SpatialVAE.decode

    def decode(self, x, together):
        seen.append(together)
        if together > 1:
            raise MemoryError
        return whole(self, x, together)

    expected = ((vae.decode(latents, 1, 20)[0] + 1) * 127.5).round().permute(1, 2, 3, 0).numpy()
    monkeypatch.setattr(SpatialVAE, "decode", decode)
    (frames,), together = generation.decode(Stage(lambda: vae, True), [latents], 20, 32, torch.device("cpu"))
    assert (together, seen[0], seen[-1]) == (1, 4, 1)
    assert np.array_equal(frames, expected)


def test_bad_settings_are_refused_in_one_line():
    with pytest.raises(InputError, match=r"frames 16 are 4 latent frames, and 5 were given: .* such as 17"):
        small().decode(torch.zeros(1, 4, 5, 2, 2), frames=16)
    with pytest.raises(InputError, match="shift has 3 values for 4 latent channels"):
        small(shift=(0, 1, 2))
    with pytest.raises(InputError, match="micro_frame_size is 0"):
        small(micro_frame_size=0)
    with pytest.raises(InputError, match="posterior is 'mode'"):
        small(posterior="mode")
