import numpy as np
import pytest
import torch

from goldens import golden, relative_error
from guidon import IDDPM
from guidon.core.errors import InputError
from guidon.guidance import Guidance
from guidon.models.stdit.network import STDiT, STDiTConfig
from toy_network import normal


class Encoder:
    """Stands in for Open-Sora's text encoder: recorded features, and the model's own null caption."""

    def __init__(self, model, y, mask):
        self.model, self.y, self.mask = model, y, mask

    def encode(self, prompts):
        return {"y": self.y, "mask": self.mask}

    def null(self, rows):
        return self.model.y_embedder.y_embedding[None].repeat(rows, 1, 1)[:, None]


def released(name):
    weights, case = golden(f"stdit/{name}")
    model = STDiT(STDiTConfig(**case["config"]))
    model.load_state_dict(
        {key.removeprefix("weights."): value for key, value in weights.items() if key.startswith("weights.")}
    )
    return model.eval(), case["config"]


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("name", ["a", "b"])
@torch.no_grad()
def test_sample_reproduces_open_sora_from_its_seed(name, steps):
    model, config = released(name)
    g, run = golden(f"sample/stdit_{name}_{steps}")
    scheduler = IDDPM(num_sampling_steps=steps, cfg_scale=run["cfg_scale"])
    torch.manual_seed(run["seed"])
    out = scheduler.sample(
        model, Encoder(model, g["y"], g["mask"]), z_size=(4, *config["input_size"]), prompts=["a", "b"], device="cpu"
    )
    assert relative_error(out, g["sample"]) < 1e-4


@torch.no_grad()
def test_a_model_may_give_a_dict_and_cfg_channel_is_another_name_for_cfg_channels():
    model, config = released("a")
    g, _ = golden("sample/stdit_a_8")
    encoder, size = Encoder(model, g["y"], g["mask"]), (4, *config["input_size"])
    z = normal(2, *size)
    results = []
    for scheduler, network in (
        (IDDPM(3, cfg_channels="all"), model),
        (IDDPM(3, cfg_channel=None), lambda *a, **k: {"x": model(*a, **k)}),
        (IDDPM(3), model),
    ):
        torch.manual_seed(0)
        results.append(scheduler.sample(network, encoder, prompts=["a", "b"], z=z))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", ["ch3_mask0", "ch3_mask1", "chNone_mask0", "chNone_mask1"])
def test_sample_reproduces_open_sora_1_1_and_its_masked_frames(name):
    g, run = golden(f"sample/toy_1_1_{name}")
    seen = []

    def model(x, t, y, x_mask=None):
        seen.append(x_mask)
        mixed = torch.einsum("oc,bcthw->bothw", g["weight"], x) * (1 + t.float().view(-1, 1, 1, 1, 1) / 1000)
        shift = g["bias"] + y @ g["y_weight"].T
        out = torch.tanh(mixed + shift[:, :, None, None, None])
        return out if x_mask is None else torch.where(x_mask[:, None, :, None, None], out, out / 2)

    class Text:
        def encode(self, prompts):
            return {"y": g["y"]}

        def null(self, rows):
            return g["null"].expand(rows, -1)

    scheduler = IDDPM(run["num_sampling_steps"], cfg_scale=run["cfg_scale"], cfg_channel=run["cfg_channel"])
    torch.manual_seed(run["seed"])
    z = torch.randn(g["z"].shape)
    mask = g["mask"] if run["use_mask"] else None
    out = scheduler.sample(model, Text(), z, ["a", "b"], "cpu", mask=mask)
    assert relative_error(out, g["sample"]) < 1e-5
    if run["use_mask"]:
        known = mask == 0
        kept = relative_error(out.movedim(1, 2)[known], z.movedim(1, 2)[known])
        assert 0 < kept < 0.05  # the last step changes them a little, as in Open-Sora 1.1
        assert seen[0].shape == (4, z.shape[2])
    with pytest.raises(InputError, match=r"mask is \(2, 3\), expected one value a frame: \(2, 6\)"):
        scheduler.sample(model, Text(), z, ["a", "b"], "cpu", mask=torch.ones(2, 3))


def test_what_guides_is_one_guidance():
    assert IDDPM().guidance == Guidance(4.0)
    assert IDDPM(cfg_scale=7, cfg_channels="0-2").guidance == Guidance(7.0, [0, 1, 2])
    assert IDDPM(cfg_channel=None).guidance == IDDPM(cfg_channels="all").guidance == Guidance(4.0, "all")
    per_channel = IDDPM(cfg_scale=[4, 1, 2, 1])
    assert per_channel.guidance == Guidance([4, 1, 2, 1])
    assert per_channel.cfg_scale == (4.0, 1.0, 2.0, 1.0)


class Words:
    """A text encoder of one number a prompt."""

    def encode(self, prompts):
        return {"y": torch.linspace(1.0, 2.0, len(prompts))}

    def null(self, rows):
        return torch.zeros(rows)


def test_both_branches_run_in_one_batch_and_none_is_wasted():
    rows = []

    def model(x, t, y, strength):
        rows.append((len(x), t.dtype, y.tolist(), strength.tolist()))
        return torch.cat([x, x], 1)

    args = {"additional_args": {"strength": torch.tensor([0.1, 0.2], dtype=torch.float64)}}
    IDDPM(3, cfg_scale=2.0).sample(model, Words(), (4, 2, 3, 3), ["a", "b"], **args)
    assert rows == [(4, torch.long, [1.0, 2.0, 0.0, 0.0], [0.1, 0.2, 0.1, 0.2])] * 3
    rows.clear()
    IDDPM(3, cfg_scale=1.0).sample(model, Words(), (4, 2, 3, 3), ["a", "b"], **args)
    assert rows == [(2, torch.long, [1.0, 2.0], [0.1, 0.2])] * 3


def test_channels_that_the_latents_do_not_have_are_refused_before_the_model_runs():
    def model(x, t, y):
        raise AssertionError("the model ran")

    for scheduler, message in (
        (IDDPM(3, cfg_channels=5), "cfg_channels '5' asks for more channels than the model has"),
        (IDDPM(3, cfg_scale=[1, 2]), "cfg_scale has 2 values, but this model has 4 latent channels"),
    ):
        with pytest.raises(InputError, match=message):
            scheduler.sample(model, Words(), (4, 2, 3, 3), ["a"])


def test_tables_have_their_usual_names():
    tensors, case = golden("schedule/linear_1000_100")
    scheduler = IDDPM(timestep_respacing=case["timestep_respacing"])
    for name, expected in tensors.items():
        assert np.allclose(getattr(scheduler, name), expected.numpy(), rtol=1e-12), name
    assert (scheduler.num_timesteps, scheduler.original_num_steps) == (100, 1000)
    with pytest.raises(AttributeError, match="no attribute 'bettas'"):
        _ = scheduler.bettas


@pytest.mark.parametrize(
    "name", ["step/learned_range_50", "step/fixed_large_50", "step/predict_xstart_50", "step/fixed_small_full"]
)
def test_single_steps_equal_the_originals(name, monkeypatch):
    g, case = golden(name)
    x0 = case["variance"] == "predict_xstart"
    scheduler = IDDPM(
        timestep_respacing=case["timestep_respacing"],
        predict_xstart=x0,
        learn_sigma=case.get("learn_sigma", True),
        sigma_small=case.get("sigma_small", False),
    )
    seen = []

    def model(x, t, flag):
        seen.append((t, flag))
        return g["model_output"]

    monkeypatch.setattr(scheduler, "_noise", lambda x: g["noise"])
    for clip in (False, True):
        options = {"clip_denoised": clip, "model_kwargs": {"flag": 5}}
        prefix = f"clip{int(clip)}."
        for key, value in scheduler.p_mean_variance(model, g["x"], g["t"], **options).items():
            assert relative_error(value, g[prefix + key]) < 1e-5, key
        assert (
            relative_error(scheduler.p_sample(model, g["x"], g["t"], **options)["sample"], g[prefix + "p_sample"])
            < 1e-5
        )
        assert (
            relative_error(
                scheduler.ddim_sample(model, g["x"], g["t"], **options, eta=0.5)["sample"], g[prefix + "ddim_eta0.5"]
            )
            < 1e-5
        )
        assert (
            relative_error(
                scheduler.ddim_reverse_sample(model, g["x"], g["t"], **options)["sample"], g[prefix + "ddim_reverse"]
            )
            < 1e-5
        )
    assert relative_error(scheduler.q_sample(g["x_start"], g["t"]), g["q_sample"]) < 1e-5
    assert (
        relative_error(scheduler.q_posterior_mean_variance(g["x_start"], g["x"], g["t"])[0], g["posterior_mean"]) < 1e-5
    )
    assert relative_error(scheduler.q_mean_variance(g["x_start"], g["t"])[0], g["q_mean"]) < 1e-5
    assert torch.equal(seen[0][0], torch.as_tensor(scheduler.timestep_map)[g["t"]])
    assert seen[0][1] == 5


@pytest.mark.parametrize(
    ("name", "settings"),
    [("mse", {}), ("rescaled_mse", {"rescale_learned_sigmas": True}), ("rescaled_kl", {"use_kl": True}), ("mse_fixed", {"learn_sigma": False}), ("mse_xstart", {"predict_xstart": True})],
)  # fmt: skip
def test_training_losses_equal_the_originals(name, settings):
    g, _ = golden(f"loss/{name}")
    terms = IDDPM(**settings).training_losses(lambda x, t: g["model_output"], g["x_start"], g["t"], noise=g["noise"])
    for key, value in terms.items():
        assert relative_error(value, g[f"out.{key}"]) < 1e-5, key


def test_bits_per_dimension_equal_the_originals(monkeypatch):
    g, case = golden("bpd/toy25")
    scheduler, draws = IDDPM(timestep_respacing=case["timestep_respacing"]), iter(g["noise"])
    monkeypatch.setattr(scheduler, "_noise", lambda x: next(draws))

    def toy(x, t):
        scale = (1 + t.float() / 1000).view(-1, 1, 1, 1, 1)
        return torch.einsum("oc,bcthw->bothw", g["weight"], x) * scale + g["bias"].view(-1, 1, 1, 1)

    result = scheduler.calc_bpd_loop(toy, g["x_start"])
    for name in ("vb", "xstart_mse", "mse", "prior_bpd", "total_bpd"):
        assert relative_error(result[name], g[name]) < 1e-5, name


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_loops_draw_noise_once_a_step_and_equal_single_steps(kind):
    scheduler = IDDPM(timestep_respacing="10", learn_sigma=False)
    shape = (2, 4, 3)

    def model(x, t):
        return 0.1 * x * (1 + t.view(-1, 1, 1) / 1000)

    loop = scheduler.p_sample_loop if kind == "ddpm" else scheduler.ddim_sample_loop
    torch.manual_seed(3)
    out = loop(model, shape, clip_denoised=False)
    torch.manual_seed(3)
    x = torch.randn(*shape)
    for step in reversed(range(10)):
        t = torch.full((2,), step)
        one = scheduler.p_sample if kind == "ddpm" else scheduler.ddim_sample
        x = one(model, x, t, clip_denoised=False)["sample"]
    assert torch.equal(out, x)


def test_with_a_generator_of_its_own_the_global_one_is_left_alone():
    scheduler = IDDPM(timestep_respacing="5", learn_sigma=False, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(9)
    expected = torch.randn(2)
    torch.manual_seed(9)
    scheduler.p_sample_loop(lambda x, t: x, (1, 4, 2))
    assert torch.equal(torch.randn(2), expected)


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="one setting"):
        IDDPM(cfg_channels=3, cfg_channel=4)
    with pytest.raises(InputError, match="cfg_channels '0,x' cannot be read"):
        IDDPM(cfg_channels="0,x")
    with pytest.raises(InputError, match="cfg_scale -1 is not valid"):
        IDDPM(cfg_scale=-1)
    with pytest.raises(InputError, match="at most 1000"):
        IDDPM(num_sampling_steps=2000)
    with pytest.raises(InputError, match="only the deterministic path"):
        IDDPM(10).ddim_reverse_sample(lambda x, t: x, torch.zeros(1, 4, 2), torch.tensor([1]), eta=0.5)
    with pytest.raises(InputError, match="z_size"):
        IDDPM(10).sample(None, None, prompts=["a"])


def test_sampling_takes_no_gradients_and_leaves_the_models_output_alone():
    network = torch.nn.Conv3d(4, 8, 1)
    torch.nn.init.constant_(network.weight, 0.1)
    kept = normal(2, 8, 2, 2, 2)
    for model in (
        lambda x, t, y: network(x),
        lambda x, t, y: kept if len(x) == 2 else kept[:1].expand(2, -1, -1, -1, -1),
    ):
        before = kept.clone()
        sample = IDDPM(3, cfg_scale=2.0).sample(model, Words(), (4, 2, 2, 2), ["one"], "cpu")
        assert not sample.requires_grad
        assert torch.equal(kept, before)
