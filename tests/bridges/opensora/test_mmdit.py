import itertools
import math

import pytest
import torch

import guidon
from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.guidance import Guidance
from guidon.models import MMDiT, MMDiTConfig
from guidon.models.mmdit.network import pack

GOLDENS = "open_sora_1_1_to_2_0"
SCALES = ("guidance", "guidance_img", "text_osci", "image_osci", "scale_temporal_osci")
INPUTS = ("img", "img_ids", "txt", "txt_ids", "y_vec", "masks", "masked_ref")


@pytest.fixture(scope="module")
def net():
    numbers, case = golden(f"{GOLDENS}/mmdit/a_liger")
    network = MMDiT(MMDiTConfig(**case["config"])).eval().requires_grad_(False)
    network.load_state_dict({key[8:]: value for key, value in numbers.items() if key.startswith("weights.")})
    return network


def case(number=1):
    numbers, settings = golden(f"{GOLDENS}/sample/mmdit_a_liger_osci{number}")
    called_with = {name: numbers[name] for name in INPUTS} | {"timesteps": numbers["timesteps"].tolist()}
    return called_with | {name: settings[name] for name in SCALES}, numbers["sample"]


@pytest.mark.parametrize("number", [0, 1])
def test_the_numbers_of_the_original(net, number):
    called_with, expected = case(number)
    assert relative_error(guidon.rflow.sample_mmdit(net, **called_with), expected) < 1e-4


def test_the_scale_of_the_image_may_grow_over_the_frames(net):
    called_with, _ = case(0)
    for scale, grows in ((1.5, True), (1.0, False), (0.5, False)):  # only a scale above 1 does
        plain, ramp = (
            guidon.rflow.sample_mmdit(net, **called_with | {"guidance_img": scale, "scale_temporal_osci": grown})
            for grown in (False, True)
        )
        assert torch.equal(plain, ramp) != grows


def test_a_schedule_that_begins_a_rounding_above_1_is_taken_and_its_first_step_guided(net):
    assert guidon.rflow.mmdit_schedule(2, 3, 5)[0] > 1  # in fp32, as the original's
    called_with, _ = case(0)
    called_with |= {"text_osci": False, "image_osci": False, "timing": "interval:0,0.2"}
    rest = guidon.rflow.mmdit_schedule(4, 6, 3)[1:]
    above, exact = (
        guidon.rflow.sample_mmdit(net, **called_with | {"timesteps": [first, *rest]}) for first in (1 + 1.2e-7, 1.0)
    )
    assert relative_error(above, exact) < 1e-5
    with pytest.raises(InputError, match="timesteps do not fall from 1"):
        guidon.rflow.sample_mmdit(net, **called_with | {"timesteps": [1.001, *rest]})


@pytest.mark.parametrize(("text", "image"), [(True, False), (False, True), (False, False)])
def test_each_scale_oscillates_by_itself(net, text, image):
    """The formula, with every branch in a call of its own; 12 steps, of which the last one is lowered."""
    called_with, _ = case(0)
    steps, patch = guidon.rflow.mmdit_schedule(12, 6, 3), net.config.patch_size
    called_with |= {"timesteps": steps, "text_osci": text, "image_osci": image}
    called_with.pop("guidance"), called_with.pop("guidance_img")  # 7.5 and 3 unless given
    shown = pack(torch.cat([called_with["masks"], called_with["masked_ref"]], 1), patch)
    x = called_with["img"]
    for number, (t, after) in enumerate(itertools.pairwise(steps)):
        cond, uncond, neither = (
            net(
                img=x,
                timesteps=torch.tensor([t]),
                cond=shown * (row < 2),
                **{name: called_with[name][row : row + 1] for name in ("img_ids", "txt", "txt_ids", "y_vec")},
            )
            for row in range(3)
        )
        by_text, by_image = (1 if osci and number == 11 else s for osci, s in ((text, 7.5), (image, 3.0)))
        x = x + (after - t) * (neither + by_image * (uncond - neither) + by_text * (cond - uncond))
    assert relative_error(guidon.rflow.sample_mmdit(net, **called_with), x) < 1e-5
    if not (text or image):  # nothing oscillates unless asked for
        for name in ("text_osci", "image_osci", "scale_temporal_osci"):
            called_with.pop(name)
        assert relative_error(guidon.rflow.sample_mmdit(net, **called_with), x) < 1e-5


def test_the_schedule_and_the_oscillation_of_the_original():
    numbers, settings = golden(f"{GOLDENS}/mmdit/schedule")
    rows = {str(number): row for number, row in enumerate(settings["rows"])}
    for name, row in rows.items():
        assert guidon.rflow.mmdit_schedule(*row) == pytest.approx(numbers[name].tolist(), rel=1e-6)
    even = guidon.rflow.mmdit_schedule(len(numbers["noshift"]) - 1, 448, 33, shift=False)
    assert even == pytest.approx(numbers["noshift"].tolist(), rel=1e-6)
    for scale, step, expected in settings["oscillation"]:
        assert guidon.rflow.oscillate(scale, step) == expected
    assert [guidon.rflow.oscillate(5.0, step, start=3) for step in range(6)] == [5, 5, 5, 1, 5, 1]


def test_a_choice_of_channels_leaves_the_others_conditional(net):
    """Each step of a run is that of its channels: the first one alone shows it."""
    called_with, _ = case(0)
    called_with["timesteps"] = called_with["timesteps"][:2]
    size = tuple(called_with["masked_ref"].shape[2:])
    found = {
        channels: guidon.models.mmdit.network.unpack(
            guidon.rflow.sample_mmdit(net, **called_with, cfg_channels=channels), size
        )
        for channels in ("all", 3, "none")
    }
    assert torch.equal(found[3][:, :3], found["all"][:, :3])
    assert torch.allclose(found[3][:, 3:], found["none"][:, 3:], atol=1e-6)  # which ran in a batch of its own
    assert not torch.allclose(found["all"], found["none"], atol=1e-3)


def test_clips_of_a_batch_do_not_see_each_other(net):
    first, _ = case(1)
    first["timesteps"] = first["timesteps"][-4:]
    second = first | {name: first[name].flip(1) for name in ("img", "txt")} | {"y_vec": -first["y_vec"]}
    both = dict(first)
    for name in INPUTS:  # rows are prompts, then negative prompts twice
        pairs = zip(first[name], second[name], strict=True)
        both[name] = torch.stack([row for pair in pairs for row in pair])
    found = guidon.rflow.sample_mmdit(net, **both)
    for row, alone in enumerate((first, second)):
        assert relative_error(found[row : row + 1], guidon.rflow.sample_mmdit(net, **alone)) < 1e-5


def test_without_an_image_it_is_guidance_by_text(net):
    called_with, _ = case(0)
    for name in ("masks", "masked_ref"):
        called_with[name] = torch.zeros_like(called_with[name])
    called_with |= {"txt": called_with["txt"][[0, 1, 1]], "y_vec": called_with["y_vec"][[0, 1, 1]]}
    both = [guidon.rflow.sample_mmdit(net, **called_with | {"guidance_img": scale}) for scale in (1.0, 3.0)]
    assert relative_error(*both) < 1e-5


def test_noise_of_all_three_rows_gives_the_same_and_the_dtype_stays(net):
    called_with, _ = case(0)
    again, told = called_with | {"img": called_with["img"].repeat(3, 1, 1)}, set()

    def watched(**given):
        told.update(given["guidance"].tolist())
        return net(**given)

    a, b = (guidon.rflow.sample_mmdit(watched, **each) for each in (called_with, again))
    assert torch.equal(a, b)
    assert told == {called_with["guidance"]} != {called_with["guidance_img"]}
    half = {name: value.bfloat16() if isinstance(value, torch.Tensor) else value for name, value in called_with.items()}
    assert guidon.rflow.sample_mmdit(net.bfloat16(), **half).dtype == torch.bfloat16
    net.float()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"txt": torch.zeros(2, 5, 14)}, "txt has 2 rows, expected 3 for 1 clips"),
        ({"img": torch.zeros(1, 17, 16)}, "img has 17 tokens, the latents of masked_ref are 18"),
        ({"img": torch.zeros(1, 18, 12)}, "img has tokens of 12 values, those of masked_ref are of 16"),
        ({"masks": torch.zeros(1, 4, 3, 4, 6)}, "expected .1, 1, 3, 4, 6."),
        ({"timesteps": [0.0, 1.0]}, "timesteps do not fall from 1"),
        ({"timesteps": [1.0]}, "timesteps do not fall from 1"),
        ({"timesteps": [1.5, 0.0]}, "timesteps do not fall from 1"),
        ({"timesteps": [1.0, 0.5, 0.5, 0.0]}, "timesteps do not fall from 1"),
        ({"guidance_img": -1.0}, "image is -1"),
        ({"cfg_channels": 5}, "asks for more channels than the model has"),
        ({"text_osci": True, "image_osci": True, "timing": "linear"}, "are a timing already"),
    ],
)
def test_bad_arguments_are_refused(net, change, message):
    with pytest.raises(InputError, match=message):
        guidon.rflow.sample_mmdit(net, **case(0)[0] | change)
    for row, text in (
        ((0, 448, 33), "num_steps is 0"),
        ((2, 448, 33, 0.0), "shift_alpha is 0"),
        ((2, 1, 1, math.inf), "is inf"),
    ):
        with pytest.raises(InputError, match=text):
            guidon.rflow.mmdit_schedule(*row)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("t2v", []),
        ("i2v_head", [0]),
        ("i2v_tail", [19]),
        ("i2v_loop", [0, 19]),
        ("v2v_head", range(9)),
        ("v2v_tail", range(11, 20)),
        ("v2v_head_easy", range(17)),
        ("v2v_tail_easy", range(3, 20)),
    ],
)
def test_given_frames_are_put_at_the_ends(kind, given):
    z, first, last = torch.zeros(2, 4, 20, 2, 3), torch.randn(4, 20, 2, 3), torch.randn(4, 20, 2, 3)
    masks, shown = guidon.rflow.mmdit_condition(z, kind, [[first] if "v2v" in kind else [first, last], None])
    expected = torch.zeros(20)
    expected[list(given)] = 1
    assert torch.equal(masks[0, 0, :, 0, 0], expected)
    source = {"i2v_tail": last, "i2v_loop": torch.cat([first[:, :10], last[:, 10:]], 1)}.get(kind, first)
    assert torch.equal(shown[0], source * expected[:, None, None])
    assert not masks[1].any()
    assert not shown[1].any()


def test_a_clip_may_be_given_whole_but_a_picture_is_given_nothing():
    frames = torch.randn(4, 9, 2, 3)
    masks, shown = guidon.rflow.mmdit_condition(torch.zeros(1, 4, 9, 2, 3), "v2v_tail", [[frames]])
    assert bool(masks.all())
    assert torch.equal(shown[0], frames)
    for kind in ("i2v_head", "i2v_loop", "v2v_head", "v2v_tail_easy"):
        masks, shown = guidon.rflow.mmdit_condition(torch.zeros(1, 4, 1, 2, 3), kind, [[frames]])
        assert not masks.any()
        assert not shown.any()


@pytest.mark.parametrize(("kind", "count"), [("i2v_head", 1), ("v2v_head", 8), ("v2v_head_easy", 16)])
def test_an_autoencoder_that_is_not_causal_has_no_first_frame_alone(kind, count):
    masks, _ = guidon.rflow.mmdit_condition(torch.zeros(1, 4, 20, 2, 3), kind, [[torch.ones(4, 20, 2, 3)]], False)
    assert int(masks[0, 0, :, 0, 0].sum()) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("i2v", None), "mask_cond 'i2v' does not exist"),
        (("v2v_head", None), "v2v_head gives 9 latent frames, and the clips have 5"),
        (("i2v_head", [[torch.zeros(4, 1, 2, 2)]]), "needs .4, 1, 2, 3., or more frames"),
        (("i2v_head", [None, None]), "ref_list is of 2 clips, z of 1"),
    ],
)
def test_given_frames_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        guidon.rflow.mmdit_condition(torch.zeros(1, 4, 5, 2, 3), *arguments)


def test_the_settings_of_the_original_as_guidance():
    """What the docs say that 2.0's defaults are, in the pipeline's words."""
    guidance = Guidance(7.5, "all", "three-way:image=3,ramp=1", "oscillation:10")
    assert guidance.to_settings() == {
        "cfg_scale": 7.5,
        "cfg_channels": "all",
        "guidance": "three-way:image=3,oscillate=none,start=10,ramp=1",
        "timing": "oscillation:10",
    }
