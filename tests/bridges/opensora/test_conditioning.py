"""Open-Sora's conditioning: its own results, and the refusal of what it would read as something else."""

import json
from pathlib import Path

import pytest
import torch

import guidon
from guidon import InputError, conditioning

NOISE = torch.zeros(1, 1, 8, 1, 1)
GOLDEN = json.loads((Path(__file__).parents[2] / "goldens" / "open_sora_1_1_to_2_0" / "conditioning.json").read_text())


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_mask_strategies_are_those_of_open_sora(version: str) -> None:
    cases = [case for case in GOLDEN["mask_strategies"] if case["version"] == version]
    assert len(cases) > 12
    for case in cases:
        frames = case["frames"]
        z = (-1.0 - torch.arange(frames)).view(1, 1, frames, 1, 1).clone()
        refs = [
            (100.0 * number + torch.arange(count)).view(1, count, 1, 1)
            for number, count in enumerate(case["reference_frames"])
        ]
        mask = conditioning.apply_mask_strategy(
            z, [refs], [case["strategy"]], case["loop"], align=case["align"], version=version
        )
        assert z.flatten().tolist() == case["z"], case
        assert mask is not None
        assert torch.equal(mask, torch.tensor([case["mask"]])), case
        if "parsed" in case:
            assert conditioning.parse_mask_strategy(case["strategy"]) == case["parsed"]


def test_prompts_sizes_and_lengths_are_those_of_open_sora() -> None:
    for value, unit, end, nearest in GOLDEN["find_nearest_point"]:
        assert conditioning.find_nearest_point(value, unit, end) == nearest
    for case in GOLDEN["prompts_by_loop"]:
        assert conditioning.extract_prompts_loop([case["prompt"]], case["loop"]) == [case["text"]]
    for case in GOLDEN["scores"]:
        scores = case["aes"], case["flow"], case["camera_motion"]
        assert conditioning.append_score_to_prompts([case["prompt"]], *scores) == [case["text"]]
    assert conditioning.append_score_to_prompts(["a motion score"], flow=0.0) == ["a motion score motion score: 0.0."]
    for case in GOLDEN["json_prompts"]:
        expected = [case["text"]], [case["reference_path"]], [case["mask_strategy"]]
        assert conditioning.extract_json_from_prompts([case["prompt"]], [""], [""]) == expected
    for resolution, sizes in GOLDEN["image_sizes"].items():
        for ratio, size in sizes.items():
            assert list(conditioning.get_image_size(resolution, ratio)) == size
    for name, frames in GOLDEN["num_frames"].items():
        assert conditioning.get_num_frames(name) == frames


def test_size_tensors_are_those_of_open_sora() -> None:
    for name, tensors in GOLDEN["multi_resolution"].items():
        frames, fps = map(int, name.split("@"))
        found = conditioning.prepare_multi_resolution_info("STDiT2", 2, (240, 426), frames, fps, "cpu", torch.float32)
        assert {key: value.tolist() for key, value in found.items()} == tensors
    assert conditioning.prepare_multi_resolution_info(None, 2, (240, 426), 16, 24, "cpu", torch.float32) == {}
    found = conditioning.prepare_multi_resolution_info("PixArtMS", 2, (4, 8), 1, 24, "cpu", torch.bfloat16)
    assert {key: value.tolist() for key, value in found.items()} == {"ar": [[0.5]] * 2, "hw": [[4, 8]] * 2}
    assert found["hw"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (";", "has no number"),
        ("0;", "'' in '0;' has no number"),
        ("0,0,0,0,1,0,0", "has 7 numbers: give one to six"),
        ("a", "holds 'a': give whole numbers"),
        ("0,0.5", "holds '0.5'"),
        ("0,0,0,0,0", "has the length 0"),
        ("0,0,0,0,1,2", "has the edit '2': give a number from 0"),
        ("0,0,0,0,1,nan", "has the edit 'nan'"),
        ("-1", "is for loop -1"),
        ("0,2", "names reference 2, and references are numbered 0 to 1"),
        ("0,0,-7", "begins at frame -7 of a reference of 6: give -6 to 5"),
        ("0,0,0,8", "begins at frame 8 of a clip of 8: give -8 to 7"),
    ],
)
def test_a_bad_strategy_is_refused_and_changes_nothing(strategy: str, said: str) -> None:
    z = torch.zeros(1, 1, 8, 1, 1)
    refs = [torch.ones(1, 6, 1, 1), torch.ones(1, 3, 1, 1)]
    with pytest.raises(InputError, match="mask_strategy") as error:
        conditioning.apply_mask_strategy(z, [refs], [strategy], 0)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not z.any()


def test_1_1_repeats_a_picture_and_refuses_another_misfit() -> None:
    picture, video = torch.full((1, 1, 1, 1), 7.0), torch.full((1, 3, 1, 1), 7.0)
    for refs, version, ones in (([picture], "1.1", 4), ([picture], "1.2", 1), ([video], "1.2", 3)):
        z = torch.zeros(1, 1, 8, 1, 1)
        mask = conditioning.apply_mask_strategy(z, [refs], ["0,0,0,2,4"], 0, version=version)
        assert mask is not None
        assert int((mask == 0).sum()) == int((z == 7).sum()) == ones
    with pytest.raises(InputError, match="asks for 4 frames, the reference has 3 from there"):
        conditioning.apply_mask_strategy(torch.zeros(1, 1, 8, 1, 1), [[video]], ["0,0,0,2,4"], 0, version="1.1")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("|0|a cat|2", "in turn"),
        ("|0|a cat|x|a dog", "in turn"),
        ("|0|a cat|2|a dog|1|a cow", "do not grow"),
        ("|0|a cat|0|a dog", "do not grow"),
        ('a cat {"reference": "a.png"}', "did you mean 'reference_path'"),
        ('a cat {"reference_path": 3}', "reference_path 3: give a text"),
        ("a cat {", "does not end in JSON"),
    ],
)
def test_a_bad_prompt_is_refused(prompt: str, said: str) -> None:
    read = conditioning.extract_json_from_prompts if "{" in prompt else conditioning.extract_prompts_loop
    with pytest.raises(InputError) as error:
        read([prompt], [""] if "{" in prompt else 0)  # type: ignore[arg-type]
    assert said in str(error.value)


def test_a_generated_clip_is_the_last_reference_of_the_next_loop() -> None:
    class Doubling:
        def encode(self, video: torch.Tensor) -> torch.Tensor:
            return video * 2

    refs, strategies = conditioning.append_generated(
        Doubling(), torch.ones(2, 3, 4, 1, 1), [[torch.zeros(3, 1, 1, 1)], None], ["0", None], 1, 4, 0.25
    )
    assert [len(each) for each in refs] == [2, 1]
    assert bool((refs[0][1] == 2).all())
    assert [conditioning.parse_mask_strategy(each) for each in strategies] == [
        [[0, 0, 0, 0, 1, 0.0], [1, 1, -4, 0, 4, 0.25]],
        [[1, 0, -4, 0, 4, 0.25]],
    ]
    assert conditioning.dframe_to_frame(5) == 17
    with pytest.raises(InputError, match="no multiple of 5"):
        conditioning.dframe_to_frame(4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: conditioning.get_image_size("241p", "9:16"), "did you mean '240p'"),
        (lambda: conditioning.get_image_size("240p", "9:15"), "does not exist at 240p"),
        (lambda: conditioning.get_num_frames("3s"), "no length"),
        (lambda: conditioning.get_num_frames(0), "0 is no length"),
        (lambda: conditioning.apply_mask_strategy(NOISE, [[]], [""], 0, align=0), "align is 0: give a whole number"),
        (lambda: conditioning.apply_mask_strategy(NOISE, [[]], [""], 0, 5, version="1.1"), "1.1 does not align"),
        (lambda: conditioning.extract_json_from_prompts(["a"], ["", ""]), "reference holds 2 values for 1 prompts"),
        (lambda: conditioning.prepare_multi_resolution_info("STDiT", 1, (1, 1), 1, 1, "cpu", torch.float32), "STDiT2"),
    ],
)
def test_what_does_not_exist_or_fit_is_refused(call: object, said: str) -> None:
    with pytest.raises(InputError) as error:
        call()  # type: ignore[operator]
    assert said in str(error.value)


def test_the_names_are_reached_from_guidon() -> None:
    assert guidon.conditioning.apply_mask_strategy is conditioning.apply_mask_strategy


def test_what_the_json_of_a_prompt_does_not_name_is_what_was_given_or_nothing():
    read = conditioning.extract_json_from_prompts
    assert read(["a cat", "a dog"]) == (["a cat", "a dog"], ["", ""], ["", ""])
    both = ["a cat", 'a dog{"mask_strategy": "1"}']
    assert read(both, ["a.png", None], ["0", "0"]) == (["a cat", "a dog"], ["a.png", None], ["0", "1"])


def test_each_row_has_its_own_references_and_strategy():
    z, refs = torch.zeros(2, 1, 4, 1, 1), [[torch.full((1, 1, 1, 1), value)] for value in (7.0, 9.0)]
    mask = conditioning.apply_mask_strategy(z, refs, ["0", "0,0,0,2"], 0)
    assert z.flatten(1).tolist() == [[7, 0, 0, 0], [0, 0, 9, 0]]
    assert mask.tolist() == [[0, 1, 1, 1], [1, 1, 0, 1]]


def test_aligning_to_single_frames_changes_nothing():
    made = []
    for align in (None, 1):
        z = torch.zeros(1, 2, 6, 1, 1)
        mask = conditioning.apply_mask_strategy(z, [[torch.ones(2, 4, 1, 1)]], ["0,0,1,2,2,0.5"], 0, align=align)
        made.append((z.flatten().tolist(), mask.tolist()))
    assert made[0] == made[1]
