import pytest
import torch

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.models import TemporalVAE, TemporalVAEConfig
from guidon.models.vae.temporal import Posterior

GOLDENS = "open_sora_1_1_to_2_0/vae_1_2"


def original(name):
    """A temporal autoencoder with the weights of a golden, its numbers and its settings."""
    numbers, case = golden(f"{GOLDENS}/{name}")
    vae = TemporalVAE(TemporalVAEConfig(**case["config"])).eval().requires_grad_(False)
    vae.load_state_dict({key.removeprefix("weights."): numbers[key] for key in numbers if key.startswith("weights.")})
    return vae, numbers, case


@pytest.mark.parametrize("name", ["temporal_a", "temporal_b"])
def test_the_numbers_of_the_original(name):
    vae, numbers, case = original(name)
    lengths = {int(key.partition(".")[0]) for key in numbers if key.endswith(".mean")}
    assert lengths
    for frames in lengths:
        posterior = vae.encode(numbers[f"{frames}.x"])
        assert relative_error(posterior.mean, numbers[f"{frames}.mean"]) < 1e-5
        assert relative_error(posterior.logvar, numbers[f"{frames}.logvar"]) < 1e-5
        assert relative_error(vae.decode(numbers[f"{frames}.z"], num_frames=frames), numbers[f"{frames}.out"]) < 1e-5
    for frames, size in case["latent_sizes"].items():
        assert vae.get_latent_size([int(frames), 30, 53]) == size
    assert vae.get_latent_size((None, 30, None)) == [None, 30, None]


def test_no_frame_sees_a_later_one_and_the_log_variance_is_bounded():
    torch.manual_seed(0)
    vae = TemporalVAE(TemporalVAEConfig(4, 1, (1, 2), (True,), 2)).eval()
    for norm in vae.modules():
        if isinstance(norm, torch.nn.GroupNorm):  # its statistics are over all frames: the one look ahead
            norm.forward = lambda x: x
    x = torch.randn(1, 4, 8, 3, 2)
    changed = x.clone()
    changed[:, :, 5:] += 100
    with torch.no_grad():
        before, after = vae.encode(x), vae.encode(changed)
    assert torch.equal(before.mean[:, :, :2], after.mean[:, :, :2])
    assert not torch.equal(before.mean[:, :, 2:], after.mean[:, :, 2:])
    assert after.logvar.max() <= 20
    assert after.logvar.min() >= -30
    assert after.sample(torch.zeros_like).equal(after.mean)
    assert torch.allclose(before.sample(torch.ones_like), before.mean + before.logvar.exp().sqrt())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channel_multipliers": [1, 2], "temporal_downsample": [True, True]}, "2 levels .* says 2 times"),
        ({"channel_multipliers": [], "temporal_downsample": []}, "0 levels"),
        ({"num_groups": 3}, "128 channels .* 3 groups"),
        ({"filters": 0}, "filters 0 cannot be made"),
    ],
)
def test_shapes_that_cannot_be_made_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TemporalVAEConfig(**settings)


def test_a_number_of_frames_that_was_not_encoded_is_refused():
    vae = TemporalVAE(TemporalVAEConfig(4, 1, (1, 2), (True,), 2))
    with pytest.raises(InputError, match="frames 9 are 5 latent frames, and 4 were given: 7 to 8 frames"):
        vae.decode(torch.zeros(1, 4, 4, 2, 2), num_frames=9)


def test_log_variances_are_kept_from_extremes():
    posterior = Posterior.of(torch.tensor([[5.0, -99.0, 3.0, 99.0]]).reshape(2, 2, 1, 1, 1))
    assert posterior.mean.flatten().tolist() == [5.0, 3.0]
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]
