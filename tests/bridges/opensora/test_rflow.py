"""RFlow against the numbers of Open-Sora 1.2's RFLOW, and what Guidon adds to it: channels, rules, timings."""

import itertools

import pytest
import torch

import guidon
from goldens import golden, relative_error
from guidon import rflow
from guidon.core.errors import InputError
from guidon.diffusion import FlowPath, clip_shift
from guidon.models import STDiT3, STDiT3Config
from toy_network import normal

GOLDENS = "open_sora_1_1_to_2_0"
SIZES = ("height", "width", "num_frames")


class Texts:
    """A text encoder whose prompts and null captions are given."""

    def __init__(self, y, mask=None, null=None):
        self.y, self.mask, self.empty = y, mask, torch.zeros_like(y) if null is None else null

    def encode(self, prompts):
        return {"y": self.y} if self.mask is None else {"y": self.y, "mask": self.mask}

    def null(self, n):
        return self.empty


class Toy:
    """A model whose velocity depends on x, t, the caption and the frames that move; it notes its calls."""

    def __init__(self):
        self.timesteps, self.masks = [], []

    def __call__(self, x, t, y=None, x_mask=None, **unused):
        self.timesteps.append(t)
        self.masks.append(x_mask)
        drift = 0 if y is None else y.mean((1, 2, 3)).view(-1, 1, 1, 1, 1)
        shown = 1 if x_mask is None else 1 - 0.3 * x_mask.logical_not()[:, None, :, None, None]
        v = torch.tanh(x.float() * (1 + t.view(-1, 1, 1, 1, 1) / 1000) * shown + drift)
        return torch.cat([v, v.flip(2) * 5], 1)


def toy_run(scheduler=None, *, z=None, scale=3.0, model=None, **options):
    z = normal(2, 4, 3, 2, 2, seed=3) if z is None else z
    scheduler = scheduler or guidon.RFlow(4, cfg_scale=scale)
    model, texts = model or Toy(), Texts(normal(2, 1, 5, 6), null=normal(2, 1, 5, 6, seed=1))
    return scheduler.sample(model, texts, z, ["a", "b"], progress=False, **options), model


# the original's numbers


@pytest.mark.parametrize(
    "name", ["a_even_mask0", "a_even_mask1", "a_shift_mask0", "a_shift_mask1", "a_disc_mask0", "b_shift_mask0"]
)
def test_samples_of_stdit3_are_the_originals(name):
    tensors, case = golden(f"{GOLDENS}/sample/stdit3_{name}")
    weights, made = golden(f"{GOLDENS}/{case['weights']}")
    model = STDiT3(STDiT3Config(**made["config"]))
    model.load_state_dict({k.removeprefix("weights."): v for k, v in weights.items() if k.startswith("weights.")})
    names = ("use_timestep_transform", "use_discrete_timesteps")
    settings = {key: case[key] for key in names if key in case}
    seen = []

    def watched(x, t, **keywords):
        seen.append(t)
        return model(x, t, **keywords)

    torch.manual_seed(case["seed"])
    torch.randn(tensors["z"].shape)  # the original drew z here
    found = guidon.RFlow(case["num_sampling_steps"], cfg_scale=case["cfg_scale"], **settings).sample(
        watched,
        Texts(tensors["y"], tensors["text_mask"], model.y_embedder.y_embedding[None, None].repeat(2, 1, 1, 1)),
        tensors["z"],
        ["a", "b"],
        "cpu",
        {key: tensors[key] for key in (*SIZES, "ar", "fps")},
        tensors["mask"] if case["use_mask"] else None,
        progress=False,
    )
    assert relative_error(found, tensors["sample"]) < 1e-5
    assert relative_error(torch.stack(seen), tensors["timesteps"]) < 1e-7


@pytest.mark.parametrize("row", range(6))
def test_the_transform_is_the_originals(row):
    tensors, case = golden(f"{GOLDENS}/rflow/transform")
    t = tensors["t"]
    for kind, options in (("fp32", {}), ("bf16", {}), ("scale2", {"scale": 2})):
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        sizes = {
            name: torch.tensor([float(value)], dtype=dtype)
            for name, value in zip(SIZES, case["rows"][row], strict=True)
        }
        found = rflow.timestep_transform(t, sizes, num_timesteps=1000, **options)
        assert relative_error(found, tensors[f"{row}.{kind}"]) < 1e-6


def test_sizes_in_fp16_do_not_overflow():
    """The originals compute in bf16. The pixels of a clip are more than fp16 holds."""
    t, size = torch.tensor([1000.0, 500.0]), (720, 1280, 51)
    of_half, of_single = (
        rflow.timestep_transform(
            t, {name: torch.tensor([float(n)], dtype=dtype) for name, n in zip(SIZES, size, strict=True)}, 1.0, 1000
        )
        for dtype in (torch.float16, torch.float32)
    )
    assert torch.equal(of_half, of_single)
    assert clip_shift(*size, torch.float16) == clip_shift(*size, torch.float32)
    path = FlowPath(steps=2, by_size=True)
    half, single = (path.for_clip(*size, dtype).levels for dtype in (torch.float16, torch.float32))
    assert [level.timestep for level in half] == [level.timestep for level in single]
    assert half[1].timestep == pytest.approx(float(of_single[1]))


def test_noising_is_the_originals():
    tensors, _ = golden(f"{GOLDENS}/rflow/add_noise")
    for scheduler in (guidon.RFlow(), guidon.RFlow().scheduler):
        assert torch.equal(scheduler.add_noise(tensors["x"], tensors["noise"], tensors["t"]), tensors["out"])


def test_losses_are_the_originals():
    tensors, case = golden(f"{GOLDENS}/rflow/loss")
    seen = []

    def model(x, t, **unused):
        seen.append((x, t))
        out = torch.einsum("oc,bcthw->bothw", tensors["weight"], x) * (1 + t.view(-1, 1, 1, 1, 1) / 1000)
        return torch.tanh(out + tensors["bias"].view(1, -1, 1, 1, 1))

    def loss(scheduler, model_kwargs=None, **options):
        return scheduler.training_losses(model, tensors["x_start"], model_kwargs, tensors["noise"], **options)["loss"]

    plain = guidon.RFlow()
    assert relative_error(loss(plain, t=tensors["t"]), tensors["out.given"]) < 1e-6
    assert torch.equal(seen[-1][0], tensors["x_t.given"])
    assert relative_error(loss(plain, t=tensors["t"], mask=tensors["mask"]), tensors["out.mask"]) < 1e-6
    assert torch.equal(seen[-1][0], tensors["x_t.mask"])
    weighted = loss(plain, t=tensors["t_weights"], weights=tensors["weights_table"])
    assert relative_error(weighted, tensors["out.weights"]) < 1e-6
    sizes = {name: tensors[name] for name in SIZES}
    for name, settings in case["draws"].items():
        torch.manual_seed(case["seeds"][name])
        assert relative_error(loss(rflow.RFLOW(**settings), sizes), tensors[f"out.{name}"]) < 1e-6, name
        assert relative_error(seen[-1][1], tensors[f"t.{name}"]) < 1e-6, name


def test_what_is_left_out_has_the_originals_values():
    t, sizes = torch.tensor([0.1, 0.9]), {"height": 240, "width": 426, "num_frames": 51}
    assert torch.equal(rflow.timestep_transform(t, sizes), rflow.timestep_transform(t * 1000, sizes, 1.0, 1000) / 1000)
    halved = rflow.timestep_transform(t, sizes, base_num_frames=4)
    assert torch.allclose(halved, rflow.timestep_transform(t, sizes, 0.5))
    image = rflow.timestep_transform(t, sizes | {"num_frames": 1})
    assert torch.equal(rflow.timestep_transform(t, sizes | {"num_frames": torch.tensor([1.0, 51.0])}), image)
    scheduler = guidon.RFlow()
    assert (scheduler.num_sampling_steps, scheduler.num_timesteps, scheduler.cfg_scale) == (10, 1000, 4.0)


def test_noising_and_losses_are_computed_in_fp32():
    x, noise, t = normal(2, 4, 3, 2, 2), normal(2, 4, 3, 2, 2, seed=1), torch.tensor([301.0, 7.0])
    scheduler, frames = guidon.RFlow(), torch.tensor([[0, 1, 1], [1, 0, 0]])
    rounded = t.bfloat16()
    assert torch.equal(scheduler.add_noise(x, noise, rounded), scheduler.add_noise(x, noise, rounded.float()))

    def loss(**options):
        return scheduler.training_losses(Toy(), x, None, noise, t=t.long(), **options)["loss"]

    weights = torch.linspace(0, 2, 1000)
    assert loss(weights=weights.double()).dtype == torch.float32
    assert torch.equal(loss(mask=frames), loss(mask=frames.bool()))  # numbers tell frames apart, too


@pytest.mark.parametrize("loc", [-200.0, 200.0])
def test_timesteps_of_a_normal_distribution_lie_inside(loc):
    model = Toy()
    guidon.RFlow(sample_method="logit-normal", loc=loc).training_losses(model, normal(2, 4, 3, 2, 2))
    assert bool(((model.timesteps[0] > 0) & (model.timesteps[0] < 1000)).all())


# what is Guidon's own


def test_all_channels_are_guided_unless_told_otherwise():
    default, _ = toy_run()
    for channels in ("all", None, 4, [0, 1, 2, 3]):
        assert torch.equal(toy_run(guidon.RFlow(4, cfg_scale=3, cfg_channels=channels))[0], default)
    assert torch.equal(toy_run(guidon.RFlow(4, cfg_scale=3, cfg_channel=None))[0], default)
    assert not torch.equal(toy_run(guidon.RFlow(4, cfg_scale=3, cfg_channel=3))[0], default)


def test_it_is_plain_guidance_of_the_velocity():
    """v_u + s (v_c - v_u), and x + v dt, written out."""
    z, y, null = normal(2, 4, 3, 2, 2, seed=3), normal(2, 1, 5, 6), normal(2, 1, 5, 6, seed=1)
    x, times = z, [1000.0, 750.0, 500.0, 250.0, 0.0]
    for t, after in itertools.pairwise(times):
        c, u = (Toy()(x, torch.full((2,), t), y=each)[:, :4] for each in (y, null))
        x = x + (u + 3 * (c - u)) * (t - after) / 1000
    assert relative_error(toy_run(z=z)[0], x) < 1e-6


@pytest.mark.parametrize(("chosen", "guided"), [(3, (0, 1, 2)), ("only:2", (2,)), ("0,3", (0, 3))])
def test_channels_that_are_not_guided_are_bit_for_bit_conditional(chosen, guided):
    """One step of a network whose channels do not mix."""
    conditional, _ = toy_run(guidon.RFlow(1, cfg_scale=1))
    everything, _ = toy_run(guidon.RFlow(1, cfg_scale=3))
    found, _ = toy_run(guidon.RFlow(1, cfg_scale=3, cfg_channels=chosen))
    for channel in range(4):
        expected = everything if channel in guided else conditional
        assert torch.equal(found[:, channel], expected[:, channel])
        assert not torch.equal(everything[:, channel], conditional[:, channel])


def test_scales_may_differ_by_channel_and_by_call():
    found, _ = toy_run(guidon.RFlow(1, cfg_scale=[3, 1, 2, 0]))
    for channel, scale in ((0, 3), (1, 1), (2, 2), (3, 0)):
        expected, _ = toy_run(guidon.RFlow(1), guidance_scale=scale)
        assert relative_error(found[:, channel], expected[:, channel]) < 1e-6
    with pytest.raises(InputError, match="give one number or 4"):
        toy_run(guidon.RFlow(1, cfg_scale=[3, 1]))


def test_a_rule_and_a_timing_act_on_the_flow():
    plain, _ = toy_run()
    apg, _ = toy_run(guidon.RFlow(4, cfg_scale=3, guidance="apg"))
    late, model = toy_run(guidon.RFlow(4, cfg_scale=3, timing="interval:0.5,1"))
    assert relative_error(apg, plain) > 1e-3
    assert [len(t) for t in model.timesteps] == [2, 2, 4, 4]
    assert relative_error(late, plain) > 1e-3


def test_a_timing_from_0_guides_the_first_step_where_the_transform_rounds_it_up():
    sizes = {"height": torch.tensor([32.0] * 2), "width": torch.tensor([64.0] * 2), "num_frames": torch.ones(2)}
    scheduler = guidon.RFlow(4, cfg_scale=3, use_timestep_transform=True, timing="interval:0,0.1")
    _, model = toy_run(scheduler, additional_args=sizes)
    assert model.timesteps[0][0] > 1000
    assert [len(t) for t in model.timesteps] == [4, 2, 2, 2]


def test_rows_of_different_sizes_have_timesteps_of_their_own_under_every_rule():
    sizes = {
        "height": torch.tensor([512.0, 256.0]), "width": torch.tensor([512.0, 512.0]), "num_frames": torch.ones(2)
    }  # fmt: skip
    z = normal(2, 4, 3, 2, 2, seed=3)
    for rule in ("cfg", "rescale", "apg", "cfg-zero", "cfg++", "tcfg", "mambo-g", "momentum", "samg", "renorm"):
        scale = 0.6 if rule == "cfg++" else 3
        scheduler = guidon.RFlow(4, cfg_scale=scale, use_timestep_transform=True, guidance=rule)
        both, model = toy_run(scheduler, z=z, additional_args=sizes)
        assert not torch.equal(*model.timesteps[1][:2])
        for row in (0, 1):
            own = {name: value[row].repeat(2) for name, value in sizes.items()}
            alone, _ = toy_run(scheduler, z=z, additional_args=own)
            assert relative_error(both[row], alone[row]) < 1e-6, rule


def test_frames_that_are_kept_come_back_exactly_and_the_model_is_told():
    z, mask = normal(2, 4, 3, 2, 2, seed=3), torch.tensor([[0, 1, 0.5], [1, 1, 0]])
    torch.manual_seed(0)
    found, model = toy_run(z=z, mask=mask)
    assert torch.equal(found[0, :, 0], z[0, :, 0])
    assert torch.equal(found[1, :, 2], z[1, :, 2])
    assert (found != z).flatten(3).any(3).any(1).tolist() == [[False, True, True], [True, True, False]]
    moving = [m[:2].tolist() for m in model.masks]
    assert moving == [[[False, True, late], [True, True, False]] for late in (False, False, True, True)]
    assert all(torch.equal(m[:2], m[2:]) for m in model.masks)


def test_a_mask_of_ones_changes_nothing():
    z = normal(2, 4, 3, 2, 2, seed=3)
    assert torch.equal(toy_run(z=z, mask=torch.ones(2, 3))[0], toy_run(z=z)[0])


def test_only_the_first_noise_is_drawn_in_the_order_of_the_latents_strides(monkeypatch):
    """What the original's noising gives is contiguous, and later draws follow it."""
    z, drawn = normal(2, 3, 4, 2, 2, seed=3).transpose(1, 2), []
    noise = guidon.RFlow._noise
    monkeypatch.setattr(guidon.RFlow, "_noise", lambda self, x: drawn.append(x.stride()) or noise(self, x))
    toy_run(z=z, mask=torch.tensor([[0, 1, 0.5]] * 2))
    assert drawn == [z.stride(), *[z.contiguous().stride()] * 3]


def test_latents_in_bf16_are_computed_in_fp32():
    z = normal(2, 4, 3, 2, 2, seed=3).bfloat16()
    found, _ = toy_run(z=z)
    assert found.dtype == torch.float32
    assert torch.equal(found, toy_run(z=z.float())[0])


def test_whole_timesteps_are_given_as_whole_numbers():
    _, model = toy_run(guidon.RFlow(7, use_discrete_timesteps=True))
    assert [int(t[0]) for t in model.timesteps] == [1000, 857, 714, 571, 429, 286, 143]
    assert not model.timesteps[0].is_floating_point()


def test_a_generator_takes_the_place_of_the_global_one():
    x, mask = normal(3, 4, 3, 2, 2), torch.tensor([[0.5, 1, 0.3]] * 2)
    for settings in ({}, {"sample_method": "logit-normal"}, {"use_discrete_timesteps": True}):
        losses = []
        for seed in (0, 0, 1):
            scheduler = guidon.RFlow(**settings, generator=torch.Generator().manual_seed(seed))
            losses.append(scheduler.training_losses(Toy(), x)["loss"])
        assert torch.equal(losses[0], losses[1])
        assert not torch.equal(losses[0], losses[2])
    runs = [toy_run(guidon.RFlow(3, generator=torch.Generator().manual_seed(5)), mask=mask)[0] for _ in range(2)]
    assert torch.equal(*runs)


SQUARE = {"height": torch.tensor([512.0] * 2), "width": torch.tensor([512.0] * 2), "num_frames": torch.ones(2)}


@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        (
            {"sample_method": "logitnormal"},
            {},
            "sample_method 'logitnormal' does not exist (did you mean 'logit-normal'",
        ),
        ({"sample_method": "logit-normal", "use_discrete_timesteps": True}, {}, "leave out sample_method"),
        ({"sample_method": "logit-normal", "scale": 0.0}, {}, "give scale > 0"),
        ({"sample_method": "logit-normal", "loc": float("inf")}, {}, "of loc inf and scale 1 does not exist"),
        ({"num_sampling_steps": 0}, {}, "steps is 0: give a whole number"),
        ({"num_timesteps": 0}, {}, "timesteps is 0: give a whole number"),
        ({"cfg_channels": 5}, {}, "asks for more channels than the model has"),
        ({"cfg_channels": 3, "cfg_channel": 2}, {}, "cfg_channel"),
        ({"guidance": "autoguidance"}, {}, "needs a weaker prediction"),
        ({"guidance": "apgg"}, {}, "did you mean 'apg'"),
        ({}, {"guidance_scale": -1}, "cfg_scale -1"),
        ({}, {"mask": torch.ones(2, 4)}, "mask is (2, 4), expected one value a frame: (2, 3)"),
        ({}, {"mask": torch.full((2, 3), 1.5)}, "one value in [0, 1]"),
        ({}, {"z": torch.zeros(3, 4, 3, 2, 2)}, "z holds 3 samples for 2 prompts"),
        ({"use_timestep_transform": True}, {"additional_args": SQUARE | {"width": "wide"}}, "needs width of the clips"),
        ({"use_timestep_transform": True}, {}, "needs height, width, num_frames of the clips"),
        ({"use_timestep_transform": True}, {"additional_args": SQUARE | {"width": torch.ones(3)}}, "width of 3"),
        (
            {"use_timestep_transform": True},
            {"additional_args": SQUARE | {"num_frames": torch.tensor([16.0, 16.0])}},
            "num_frames is 16: the timestep transform is for 1 frame, or at least 17",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(settings, call, message):
    with pytest.raises(InputError) as error:
        toy_run(guidon.RFlow(**settings), **call)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": torch.ones(1000), "t": torch.tensor([0.5, 3])}, "give whole timesteps t"),
        ({"weights": torch.ones(1000), "t": torch.tensor([5, 1000])}, "from 0 to 999"),
        ({"mask": torch.ones(2, 2).bool()}, "mask is (2, 2), expected one value a frame: (2, 3)"),
        ({"noise": torch.zeros(2, 4, 3, 2, 1)}, "give the same"),
        ({"noise": torch.zeros(1, 4, 3, 2, 2)}, "give the same"),
    ],
)
def test_losses_that_cannot_be_computed_are_refused(given, message):
    with pytest.raises(InputError) as error:
        guidon.RFlow().training_losses(Toy(), normal(2, 4, 3, 2, 2), **given)
    assert message in str(error.value)


def test_the_names_that_scripts_import():
    assert rflow.RFLOW is guidon.RFlow
    scheduler = guidon.RFlow(30, 1000, 7.0, True, True)
    assert (scheduler.num_sampling_steps, scheduler.num_timesteps, scheduler.cfg_scale) == (30, 1000, 7.0)
    assert (scheduler.use_discrete_timesteps, scheduler.use_timestep_transform) == (True, True)


class Watching(Toy):
    """A toy whose frames see each other."""

    def __call__(self, x, t, y=None, **told):
        return super().__call__(x, t, y, **told) + x.mean(2, keepdim=True).repeat(1, 2, 1, 1, 1)


def test_three_way_guidance_leaves_the_kept_frames_out():
    mask = torch.tensor([[0.0, 1.0, 1.0]] * 2)

    def run(rule, **options):
        return toy_run(guidon.RFlow(4, cfg_scale=3.0, guidance=rule), **options)

    plain, _ = run("cfg", mask=mask)
    found, model = run("three-way:image=2", mask=mask)
    assert len(model.masks) == 2 * 4
    assert [shown is None for shown in model.masks] == [False, True] * 4  # all frames, then those that move
    assert torch.equal(found[:, :, 0], plain[:, :, 0])
    assert torch.equal(run("three-way:image=1", mask=mask)[0], plain)
    assert torch.allclose(found, plain, atol=1e-6)  # no frame of this model sees another
    apart = [run(rule, mask=mask, model=Watching())[0] for rule in ("cfg", "three-way:image=2")]
    assert not torch.allclose(*apart, atol=1e-2)
    nothing_kept, _ = run("three-way:image=2", mask=torch.ones(2, 3))
    assert torch.equal(nothing_kept, run("cfg", mask=torch.ones(2, 3))[0])
    with pytest.raises(InputError, match="needs an image to guide by, and none was given"):
        run("three-way")
