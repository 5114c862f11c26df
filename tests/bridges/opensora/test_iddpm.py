import warnings

import numpy as np
import pytest
import torch

from goldens import golden, relative_error
from guidon import IDDPM, iddpm
from guidon.core.errors import InputError
from guidon.guidance import Guidance
from guidon.models import STDiT2, STDiT2Config
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
        (IDDPM(3, cfg_channel=3), model),
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

    class Masked(Words):
        def encode(self, prompts):
            return super().encode(prompts) | {"mask": torch.tensor([5, 6])}

    def model(x, t, y, mask, strength, table):
        rows.append((len(x), t.dtype, y.tolist(), mask.tolist(), strength.tolist(), len(table)))
        return torch.cat([x, x], 1)

    strength, table = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.zeros(3)  # which has no row a sample
    args = {"additional_args": {"strength": strength, "table": table}}
    IDDPM(3, cfg_scale=2.0).sample(model, Masked(), (4, 2, 3, 3), ["a", "b"], **args)
    assert rows == [(4, torch.long, [1.0, 2.0, 0.0, 0.0], [5, 6, 5, 6], [0.1, 0.2, 0.1, 0.2], 3)] * 3
    rows.clear()
    IDDPM(3, cfg_scale=1.0).sample(model, Masked(), (4, 2, 3, 3), ["a", "b"], **args)
    assert rows == [(2, torch.long, [1.0, 2.0], [5, 6], [0.1, 0.2], 3)] * 3


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

    def toy(x, t, bias):
        scale = (1 + t.float() / 1000).view(-1, 1, 1, 1, 1)
        return torch.einsum("oc,bcthw->bothw", g["weight"], x) * scale + bias.view(-1, 1, 1, 1)

    result = scheduler.calc_bpd_loop(toy, g["x_start"], model_kwargs={"bias": g["bias"]})
    for name in ("vb", "xstart_mse", "mse", "prior_bpd", "total_bpd"):
        assert relative_error(result[name], g[name]) < 1e-5, name


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_loops_draw_noise_once_a_step_and_equal_single_steps(kind):
    scheduler = IDDPM(timestep_respacing="10", learn_sigma=False)
    shape = (2, 4, 3)

    weight = torch.nn.Parameter(torch.tensor(0.1))

    def model(x, t, shift):
        return weight * x * (1 + t.view(-1, 1, 1) / 1000) + shift

    options = {
        "clip_denoised": False,
        "denoised_fn": torch.tanh,
        "cond_fn": lambda x, t, shift: shift - x,
        "model_kwargs": {"shift": 0.2},
    } | ({} if kind == "ddpm" else {"eta": 0.5})
    loop = scheduler.p_sample_loop if kind == "ddpm" else scheduler.ddim_sample_loop
    torch.manual_seed(3)
    out = loop(model, shape, **options)
    assert not out.requires_grad
    torch.manual_seed(3)
    x = torch.randn(*shape)
    for step in reversed(range(10)):
        t = torch.full((2,), step)
        one = scheduler.p_sample if kind == "ddpm" else scheduler.ddim_sample
        x = one(model, x, t, **options)["sample"]
    assert torch.equal(out, x)


def test_with_a_generator_of_its_own_the_global_one_is_left_alone():
    scheduler = IDDPM(timestep_respacing="5", learn_sigma=False, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(9)
    expected = torch.randn(2)
    torch.manual_seed(9)
    scheduler.p_sample_loop(lambda x, t: x, (1, 4, 2))
    scheduler.sample(lambda x, t, y: x, Words(), (4, 2, 2, 2), ["a"])
    iddpm.SpeeDiffusion(generator=torch.Generator()).t_sample(4, "cpu")
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


# what scripts of Open-Sora 1.1, DiT and PixArt ask of it, against their own numbers

SERIES = "open_sora_1_1_to_2_0"


def dropin_model(g, channels=8):
    """The toy model of the golden ``iddpm/dropin``."""

    def model(x, t, y=None, x_mask=None):
        ones = [1] * (x.ndim - 2)
        mixed = torch.einsum("oc,bc...->bo...", g["weight"][:channels], x.float()).contiguous()
        mixed = mixed * (1 + t.float().view(-1, 1, *ones) / 1000) + g["bias"][:channels].view(-1, *ones)
        out = torch.tanh(mixed if y is None else mixed + y.view(-1, 1, *ones))
        return out if x_mask is None else torch.where(x_mask[:, None, :, None, None], out, out / 2)

    return model


def towards_zero(x, t, **keywords):
    """The gradient of a classifier."""
    return -(x.float() * 0.3 + t.view(-1, 1, 1, 1, 1) / 2000)


def in_other_strides(x):
    return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize("channels", [3, None])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_samples_through_stdit2_are_open_soras(channels, masked):
    g, run = golden(f"{SERIES}/sample/stdit2_a_ch{channels}_mask{int(masked)}")
    weights, case = golden(f"{SERIES}/{run['weights']}")
    model = STDiT2(STDiT2Config(**case["config"])).eval()
    model.load_state_dict({k.removeprefix("weights."): v for k, v in weights.items() if k.startswith("weights.")})
    settings = {"version": "1.1"} if channels is None else {"cfg_channel": channels}
    scheduler = IDDPM(run["num_sampling_steps"], cfg_scale=run["cfg_scale"], **settings)
    torch.manual_seed(run["seed"])
    torch.randn(g["z"].shape)  # the original drew z here
    sizes = {name: g[name] for name in ("num_frames", "height", "width", "ar", "fps")}
    mask = g["mask"] if masked else None
    text = Encoder(model, g["y"], g["text_mask"])
    out = scheduler.sample(model, text, g["z"], ["a", "b"], "cpu", sizes, mask)
    assert relative_error(out, g["sample"]) < 1e-4


@pytest.mark.parametrize("version", [None, "1.1"])
def test_losses_with_frame_masks_and_weights_are_open_soras(version):
    g, _ = golden(f"{SERIES}/loss_1_1/masked")
    seen = []

    def model(x, t, **keywords):
        seen.append(keywords)
        mixed = torch.einsum("oc,bcthw->bothw", g["weight"], x) * (1 + t.view(-1, 1, 1, 1, 1) / 1000)
        return torch.tanh(mixed + g["bias"].view(-1, 1, 1, 1))

    scheduler, mask = IDDPM(version=version), g["mask"]
    given = (model, g["x_start"], g["t"])
    for kind, terms in {
        "plain": scheduler.training_losses(*given, noise=g["noise"], mask=None),  # named, so of 1.1 on
        "mask": scheduler.training_losses(*given, {"x_mask": mask}, g["noise"], mask),
        "weights": scheduler.training_losses(*given, None, g["noise"], None, g["weights_table"]),
    }.items():
        for key, value in terms.items():
            assert relative_error(value, g[f"out.{kind}.{key}"]) < 1e-5, (kind, key)
    assert [sorted(keywords) for keywords in seen] == [[], ["x_mask"], []]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_single_steps_by_position_with_a_classifier_are_the_originals(version):
    g, case = golden("iddpm/dropin")
    scheduler, x, t = IDDPM(timestep_respacing="10", version=version), g["x"].bfloat16(), torch.tensor([0, 1, 9])
    for name, more in (("p_sample", ()), ("ddim_sample", (0.6,)), ("ddim_reverse_sample", ())):
        torch.manual_seed(case["seed"])
        out = getattr(scheduler, name)(dropin_model(g), x, t, False, torch.tanh, towards_zero, {}, *more)
        assert relative_error(out["sample"], g[f"{version}.{name}"]) < 1e-6, name
        assert relative_error(out["pred_xstart"], g[f"{version}.{name}.x0"]) < 1e-6, name


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_loops_by_position_follow_the_strides_of_the_noise(version):
    g, case = golden("iddpm/dropin")
    scheduler, x = IDDPM(timestep_respacing="10", version=version), in_other_strides(g["x"].bfloat16())
    for name, loop, more in (
        ("loop", scheduler.p_sample_loop, ()),
        ("ddim_loop", scheduler.ddim_sample_loop, (0.5,)),
    ):
        torch.manual_seed(case["seed"])
        out = loop(dropin_model(g), x.shape, x, False, None, None, {}, "cpu", False, *more)
        assert relative_error(out, g[f"{version}.{name}"]) < 1e-6, name


def test_frame_masks_of_single_steps_and_loops_are_the_originals():
    g, case = golden("iddpm/dropin")
    scheduler, model, x = IDDPM(timestep_respacing="10", version="1.1"), dropin_model(g), g["x"].bfloat16()
    keywords = {}
    torch.manual_seed(case["seed"])
    out = scheduler.p_sample(model, x, torch.tensor([0, 1, 9]), False, None, None, keywords, g["mask"])
    assert relative_error(out["sample"], g["1.1.p_sample.mask"]) < 1e-6
    assert keywords == {}  # the original writes x_mask into the caller's
    torch.manual_seed(case["seed"])
    x = in_other_strides(x)
    out = scheduler.p_sample_loop(model, x.shape, x, False, None, None, None, "cpu", False, g["mask"])
    assert relative_error(out, g["1.1.loop.mask"]) < 1e-6
    # the model's own keywords reach it beside the mask
    seen = []
    scheduler.p_sample(
        lambda x, t, **told: seen.append(told) or x.repeat(1, 2, 1, 1, 1),
        g["x"], torch.full((3,), 5), model_kwargs={"y": 7}, mask=g["mask"],
    )  # fmt: skip
    assert seen[0].keys() == {"y", "x_mask"}
    # fewer rows are those of every branch
    halves = [torch.cat([part, part]) for part in (g["x"], g["mask"])]
    found = []
    for mask in (g["mask"], halves[1]):
        torch.manual_seed(0)
        found.append(scheduler.p_sample(model, halves[0], torch.full((6,), 5), mask=mask)["sample"])
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["1.1.sample", "1.1.sample.mask"])
def test_latents_in_bf16_are_sampled_as_in_open_sora_1_1(name):
    g, case = golden("iddpm/dropin")

    class Text:
        def encode(self, prompts):
            return {"y": torch.linspace(0.5, 1, len(prompts))}

        def null(self, rows):
            return torch.zeros(rows)

    torch.manual_seed(case["seed"])
    mask = g["mask"] if name.endswith("mask") else None
    scheduler = IDDPM(8, cfg_scale=3.0, version="1.1")
    out = scheduler.sample(dropin_model(g), Text(), g["x"].bfloat16(), ["a"] * 3, "cpu", None, mask)
    assert relative_error(out, g[name]) < 1e-6


def test_the_bound_next_to_noise_keeps_its_digits():
    g, case = golden("iddpm/dropin")
    torch.manual_seed(case["seed"])
    terms = IDDPM(use_kl=True, version="1.1").training_losses(dropin_model(g), g["x"] / 8, g["kl.t"])
    assert ((terms["loss"] - g["1.1.kl"]) / g["1.1.kl"]).abs().max() < 1e-5


@pytest.mark.parametrize("predicts", ["eps", "x0"])
def test_pixarts_weights_by_snr_are_its_own(predicts):
    g, _ = golden("iddpm/dropin")
    scheduler = IDDPM("1000", snr=True, predict_xstart=predicts == "x0")
    terms = scheduler.training_losses(dropin_model(g), g["snr.x"], g["snr.t"], {}, g["snr.noise"])
    assert ((terms["loss"] - g[f"snr.{predicts}"]) / g[f"snr.{predicts}"]).abs().max() < 1e-4
    weights = torch.full((1000,), 2.0)
    twice_as_much = scheduler.training_losses(
        dropin_model(g), g["snr.x"], g["snr.t"], {}, g["snr.noise"], weights=weights
    )
    assert relative_error(twice_as_much["mse"], 2 * terms["mse"]) < 1e-4


def test_speeds_timesteps_and_weights_are_open_soras():
    g, case = golden(f"{SERIES}/speed/tables")
    scheduler = iddpm.SpeeDiffusion()
    assert scheduler.meaningful_steps == case["meaningful_steps"]
    assert relative_error(scheduler.p, g["p"]) < 1e-6
    assert relative_error(scheduler.weights, g["weights_table"]) < 1e-6
    torch.manual_seed(case["seed"])
    assert torch.equal(scheduler.t_sample(4000, "cpu"), g["t_sampled"])


def test_speed_trains_at_its_own_timesteps_with_its_own_weights():
    scheduler, x, seen = iddpm.SpeeDiffusion(), normal(4, 4, 2, 2, 2), []

    def model(x, t, flag):
        seen.append(t)
        return torch.cat([x, x], 1) * flag

    for call in ((x, torch.zeros(4, dtype=torch.long), {"flag": 0.5}), (x, {"flag": 0.5})):
        torch.manual_seed(2)
        terms = scheduler.training_losses(model, *call)
    torch.manual_seed(2)
    t = scheduler.t_sample(4, "cpu")
    assert torch.equal(seen[0], t)
    assert torch.equal(seen[1], t)
    torch.manual_seed(2)
    scheduler.t_sample(4, "cpu")
    expected = IDDPM(version="1.1").training_losses(model, x, t, {"flag": 0.5}, weights=scheduler.weights)
    assert torch.equal(terms["loss"], expected["loss"])
    with pytest.raises(InputError, match="for training only"):
        scheduler.sample(None, None)
    with pytest.raises(InputError, match="weights of its own"):
        scheduler.training_losses(model, x, t, weights=scheduler.weights)


def test_the_version_decides_channels_and_tables():
    assert IDDPM().cfg_channel == IDDPM(version="1.0").cfg_channel == 3
    assert IDDPM(version="1.2").cfg_channel is None
    assert IDDPM(version=1.1).version == "1.1"
    assert IDDPM(version="1.1", cfg_channel=2).cfg_channel == 2
    assert IDDPM(cfg_channels="0,2").cfg_channel == "0,2"
    assert IDDPM(cfg_scale=[1, 2, 3, 4]).cfg_channel is None
    old, new = IDDPM("50", version="1.0"), IDDPM(50, version="1.1")
    assert old.betas.dtype == np.float64
    assert new.betas.dtype == torch.float32
    assert new.betas.device == new.map_tensor.device == new.device
    assert old.timestep_map == new.map_tensor.tolist() == sorted(new.use_timesteps)
    g, _ = golden("schedule_1_1/linear_100")
    later = IDDPM(100, version="1.3")
    for name in g:
        assert relative_error(torch.as_tensor(getattr(later, name)), g[name]) < 1e-6, name


def test_what_the_model_is_has_the_originals_names():
    plain = IDDPM()
    assert plain.model_mean_type is iddpm.ModelMeanType.EPSILON
    assert plain.model_var_type is iddpm.ModelVarType.LEARNED_RANGE
    assert plain.loss_type is iddpm.LossType.MSE
    assert not plain.loss_type.is_vb()
    assert IDDPM(predict_xstart=True).model_mean_type is iddpm.ModelMeanType.START_X
    assert IDDPM(learn_sigma=False).model_var_type is iddpm.ModelVarType.FIXED_LARGE
    assert IDDPM(pred_sigma=False, sigma_small=True).model_var_type is iddpm.ModelVarType.FIXED_SMALL
    assert IDDPM(rescale_learned_sigmas=True).loss_type is iddpm.LossType.RESCALED_MSE
    assert IDDPM(use_kl=True).loss_type.is_vb()


def test_called_with_the_noise_it_says_that_the_version_decides_the_channels():
    def model(x, t, y):
        return torch.cat([x, x], 1)

    def run(**settings):
        IDDPM(2, cfg_scale=2.0, **settings).sample(model, Words(), normal(1, 4, 2, 2, 2), ["a"])

    with pytest.warns(UserWarning, match="give version='1.1', or cfg_channel"):
        run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(version="1.0")
        run(version="1.1")
        run(cfg_channel=None)


def test_names_of_dit_and_improved_diffusion():
    from guidon.iddpm import SpeeDiffusion  # as a script writes it

    assert SpeeDiffusion is iddpm.SpeeDiffusion
    diffusion = iddpm.create_diffusion("25", learn_sigma=False)
    assert diffusion.num_timesteps == 25
    assert diffusion.model_var_type is iddpm.ModelVarType.FIXED_LARGE
    assert iddpm.create_diffusion("").num_timesteps == iddpm.create_diffusion(None).num_timesteps == 1000
    plain = iddpm.create_diffusion(None)
    kinds = (plain.loss_type, plain.model_mean_type, plain.model_var_type)
    assert kinds == (iddpm.LossType.MSE, iddpm.ModelMeanType.EPSILON, iddpm.ModelVarType.LEARNED_RANGE)
    assert iddpm.create_diffusion(None, "linear", True).loss_type is iddpm.LossType.RESCALED_KL
    assert iddpm.space_timesteps(300, [10, 15, 20]) == set(
        iddpm.create_diffusion([10, 15, 20], diffusion_steps=300).timestep_map
    )
    assert iddpm.get_named_beta_schedule("linear", 1000)[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    with pytest.raises(InputError, match="noise schedule 'linea' does not exist"):
        iddpm.get_named_beta_schedule("linea", 1000)


def test_the_steps_may_be_left_out_as_in_open_sora_1_2():
    scheduler, x, seen = IDDPM(version="1.2"), normal(3, 4, 2, 2, 2), []

    def model(x, t, flag=None):
        seen.append((t, flag))
        return torch.cat([x, x], 1)

    torch.manual_seed(4)
    terms = scheduler.training_losses(model, x, {"flag": 1})
    torch.manual_seed(4)
    t = torch.randint(0, 1000, (3,))
    assert torch.equal(seen[0][0], t)
    assert seen[0][1] == 1
    # what the original overwrites is used here
    assert torch.equal(scheduler.training_losses(model, x, t, noise=torch.randn_like(x))["loss"], terms["loss"])


def test_a_model_may_give_more_than_its_prediction():
    def model(x, t):
        return torch.cat([x, x], 1), "more"

    x = normal(1, 4, 2)
    out = IDDPM(5).p_mean_variance(model, x, torch.tensor([2]))
    assert out["extra"] == "more"
    fixed = IDDPM(5, learn_sigma=False).p_mean_variance(lambda x, t: x, x, torch.tensor([2]))
    assert all(value.shape == x.shape for value in fixed.values())


def twice(x, t, **keywords):
    return torch.cat([x, x], 1)


STEP = torch.tensor([1, 2])
FRAMES = torch.tensor([[True, True, True], [True, True, True]])
KEPT = torch.tensor([[True], [False]])  # the second clip alone


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: IDDPM(10, "20"), "num_sampling_steps 10 and timestep_respacing '20' are one setting"),
        (lambda x: IDDPM(10, [20]), "are one setting"),
        (lambda x: IDDPM(version="2.0"), "Open-Sora 2.0 has no IDDPM: version is 1.0, 1.1, 1.2, 1.3"),
        (lambda x: IDDPM(3).sample(None, None, x, ["a"]), "z has 2 rows, there are 1 prompts"),
        (lambda x: IDDPM(use_kl=True).training_losses(None, x, STEP, mask=FRAMES), "given with use_kl"),
        (lambda x: IDDPM().training_losses(None, x, STEP, mask=FRAMES[:, :1]), r"mask is \(2, 1\) of torch.bool"),
        (lambda x: IDDPM().training_losses(None, x, STEP, mask=FRAMES.float()), "expected one bool a frame"),
        (lambda x: IDDPM().training_losses(None, x, STEP, mask=FRAMES & KEPT), "keeps all frames of a clip"),
        (lambda x: IDDPM().training_losses(None, x, {}, {}), "model_kwargs twice"),
        (lambda x: IDDPM().training_losses(twice, x, STEP, weights=torch.ones(9)), "weights has 9 values"),
        (lambda x: IDDPM(9).training_losses(twice, x, STEP, weights=torch.ones(10)), "weights has 10 values"),
        (lambda x: IDDPM(9).p_sample(twice, x, STEP, mask=torch.ones(3, 3)), "mask has 3 rows"),
        (lambda x: IDDPM(9).p_sample(twice, x, STEP, mask=torch.full((2, 3), 2)), r"one value in \[0, 1\]"),
    ],
)  # fmt: skip
def test_bad_calls_are_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make(torch.zeros(2, 4, 3, 2, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["p_mean_variance", "p_sample", "ddim_sample", "ddim_reverse_sample"])
def test_a_step_clips_the_clean_sample_unless_told_not_to(name):
    scheduler, x = IDDPM("10"), 5 * normal(2, 4, 3, 2)

    def clean(**options):
        return getattr(scheduler, name)(lambda x, t: torch.cat([x, x], 1), x, STEP, **options)["pred_xstart"]

    assert float(clean().abs().max()) == 1
    assert torch.equal(clean(), clean(clip_denoised=True))
    assert float(clean(clip_denoised=False).abs().max()) != 1
