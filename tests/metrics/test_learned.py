"""Learned metrics on tiny random networks: their definitions, and what needs no training to be seen."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

import judges
from guidon import world
from guidon.core.errors import InputError
from guidon.metrics import networks
from guidon.metrics.bench import BENCHES, find_bench, open_bench
from guidon.metrics.choice import BenchChoice
from guidon.metrics.learned import consistency
from guidon.metrics.video import STILL

CAPTIONS = ["a red circle moves left", "a blue square"]
CLIPS = np.stack([(world.clip("L0", 5, k).frames() * 255).round().astype(np.uint8) for k in range(2)])


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return judges.make_all(tmp_path_factory.mktemp("judges"))


@pytest.fixture(scope="module")
def bench(parts):
    return open_bench(BenchChoice(**parts), "video")


@pytest.fixture(scope="module")
def truth(bench):
    return bench.measure(CLIPS, CAPTIONS)


def test_a_bench_measures_all_its_metrics_in_their_range(bench, truth):
    assert bench.name == "video+clip+dino+lpips+aesthetic"
    assert set(truth) == set(bench.metrics) == set(find_bench(bench.name).metrics)
    assert "dynamics" in truth
    assert {bench.primary, *bench.shown, *itertools.chain(*bench.fronts)} <= set(bench.metrics)
    for name, metric in bench.metrics.items():
        low, high = metric.range
        assert truth[name].shape == (2,)
        assert ((truth[name] >= low) & (truth[name] <= high)).all(), name


def test_a_clip_is_measured_as_if_it_were_alone(bench, truth):
    for k in range(2):
        alone = bench.measure(CLIPS[k : k + 1], CAPTIONS[k : k + 1])
        assert all(np.array_equal(alone[name], truth[name][k : k + 1], equal_nan=True) for name in truth)


def test_a_frozen_clip_is_perfectly_consistent_and_shown_to_be_still(bench):
    frozen = bench.measure(np.repeat(CLIPS[:, :1], 16, axis=1), CAPTIONS)
    for name in ("subject_consistency", "background_consistency"):
        assert frozen[name] == pytest.approx([1, 1], abs=1e-6)
    assert frozen["lpips_next"] == pytest.approx([0, 0], abs=1e-6)
    assert frozen["text_alignment"] == pytest.approx(frozen["text_alignment_worst"], abs=1e-6)
    assert (frozen["dynamics"] < STILL).all()


@pytest.mark.parametrize("fault", ["shuffled", "flicker", "cut"])
def test_faults_are_ranked_below_truth_by_random_networks(bench, truth, fault):
    frames = {
        "shuffled": CLIPS[:, np.random.default_rng(0).permutation(16)],
        "flicker": np.where(np.arange(16)[:, None, None, None] % 2, CLIPS // 2, CLIPS),
        "cut": np.concatenate((CLIPS[:, :8], CLIPS[::-1, 8:]), axis=1),  # the second half is another clip's
    }[fault]
    found = bench.measure(frames, CAPTIONS)
    assert (found["lpips_next"] > 1.2 * truth["lpips_next"]).all()
    if fault != "flicker":  # random networks look at contrast, not at brightness
        assert (found["subject_consistency"] < truth["subject_consistency"]).all()
    if fault == "shuffled":
        assert (found["background_consistency"] < truth["background_consistency"]).all()


def test_one_frame_has_no_consistency_and_no_caption_no_fit(bench):
    found = bench.measure(CLIPS[:, :1], ["", "207"])
    for name in ("subject_consistency", "background_consistency", "lpips_next", "lpips_first", "text_alignment"):
        assert np.isnan(found[name]).all(), name
    assert np.isfinite(found["aesthetic"]).all()


def test_consistency_is_vbenchs():
    a, b = (1.0, 0.0), (0.6, 0.8)
    opposite = (-1.0, 0.0)
    features = np.array([a, b, a, opposite]) * np.array([[1], [2], [3], [4]])
    # to the first frame: 0.6, 1, -1 which counts as 0; to the one before: 0.6, 0.6, -1
    assert consistency(features) == pytest.approx((0.6 + 1 + 0 + 0.6 + 0.6 + 0) / 6)
    assert math.isnan(consistency(features[:1]))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_of_frames_and_texts_are_those_of_transformers(tmp_path, kind):
    import transformers

    folder = judges.make_clip(tmp_path, kind=kind)
    encoder = networks.FrameTextEncoder.load(folder)
    frames = CLIPS[0, :3, :, :50]  # wide frames are cropped, or squeezed
    processor = _processor(transformers, kind)
    pixels = torch.as_tensor(np.asarray(processor(list(frames), return_tensors="np")["pixel_values"]))
    assert encoder.prepare(frames) == pytest.approx(pixels, abs=1e-5)
    model = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}[kind].from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)(
        ["a circle"], padding="max_length", max_length=24, return_tensors="pt"
    )
    mask = {"attention_mask": words.attention_mask} if kind == "clip" else {}
    with torch.inference_mode():
        out = model.eval()(input_ids=words.input_ids, pixel_values=pixels, **mask)
    assert encoder.frames(frames) == pytest.approx(out.image_embeds.numpy(), abs=1e-5)
    assert encoder.text("a circle") == pytest.approx(out.text_embeds[0].numpy(), abs=1e-5)


def _processor(transformers, kind):
    """The preparation of transformers that needs no torchvision, with the values of ``judges.make_clip``."""
    side = {"height": judges.SIDE, "width": judges.SIDE}
    name, given = {
        "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": judges.SIDE}, "crop_size": side}),
        "siglip": ("SiglipImageProcessor", {"size": side, "resample": 3}),
    }[kind]
    return getattr(transformers, f"{name}Pil")(**given)


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(bench):
    with pytest.warns(UserWarning, match="tokens beyond the 24"):
        bench.measure(CLIPS[:1], ["a very long caption of many many words that goes on"])


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
def test_dino_sees_whole_frames_of_any_proportions(tmp_path, kind):
    encoder = networks.FrameEncoder.load(judges.make_dino(tmp_path, kind=kind))
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 120, 3), np.uint8)
    assert encoder.prepare(frames).shape == (2, 3, 32, 96)
    found = encoder.frames(frames)
    frames[:, :, -8:] = 0  # at the edge
    assert found.shape == (2, judges.WIDTH)
    assert not np.allclose(found, encoder.frames(frames))


def test_lpips_is_that_of_the_paper(tmp_path):
    """Against modules of torch, one by one. The numbers of the package lpips are the same to 2e-8."""
    folder = judges.make_lpips(tmp_path)
    ours = networks.Lpips.load(folder)
    tensors, heads = torch.load(folder / "alexnet-owt-7be5be79.pth"), torch.load(folder / "alex.pth")
    layers, widths = [], (3, *judges.CHANNELS)
    for k, (side, stride, padding) in enumerate(((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))):
        layers += [nn.Conv2d(widths[k], widths[k + 1], side, stride, padding), nn.ReLU()] + [nn.MaxPool2d(3, 2)] * (
            k < 2
        )
    net = nn.Sequential(*layers)
    net.load_state_dict({name.removeprefix("features."): value for name, value in tensors.items()})
    a, b = CLIPS[0, :5], CLIPS[1, :5]

    def stages(frames):
        x = torch.from_numpy(frames).float().permute(0, 3, 1, 2) / 255 * 2 - 1
        x = (x - torch.tensor(networks.SHIFT).view(3, 1, 1)) / torch.tensor(networks.RANGE).view(3, 1, 1)
        found = []
        for number, layer in enumerate(net):
            x = layer(x)
            if number in (1, 4, 7, 9, 11):
                found.append(x / x.norm(dim=1, keepdim=True).clamp_min(1e-10))
        return found

    with torch.no_grad():
        pairs = zip(stages(a), stages(b), range(5), strict=True)
        wanted = sum(((x - y) ** 2 * heads[f"lin{k}.model.1.weight"]).sum(1).mean((1, 2)) for x, y, k in pairs)
    assert ours.distance(a, b) == pytest.approx(wanted.numpy(), rel=1e-5)
    clip = CLIPS[0]  # of two batches
    following = ours.distance(clip[1:], clip[:-1]).mean(), ours.distance(clip[1:], np.repeat(clip[:1], 15, 0)).mean()
    assert ours.changes(clip) == pytest.approx(following, rel=1e-5)
    with pytest.raises(InputError, match="20x64 are too small for LPIPS: it needs sides of at least 31"):
        ours.changes(clip[:, :, :20])


@pytest.mark.parametrize("sizes", [(judges.WIDTH, 1), (judges.WIDTH, 8, 4, 1)])
@pytest.mark.parametrize("name", ["head.pth", "head.safetensors"])
def test_the_aesthetic_head_is_linear_layers_in_their_order(tmp_path, sizes, name):
    head = networks.AestheticHead.load(judges.make_aesthetic(tmp_path / name, sizes=sizes))
    features = np.random.default_rng(0).normal(size=(3, judges.WIDTH))
    wanted = torch.from_numpy(features).float()
    for weight, bias in head.layers:
        wanted = wanted @ weight.T + bias
    assert [weight.shape[0] for weight, _ in head.layers] == list(sizes[1:])
    assert head.score(features) == pytest.approx(wanted[:, 0].numpy(), rel=1e-5)
    with pytest.raises(InputError, match="is for a CLIP with 16 features, clip has 7"):
        head.score(features[:, :7])


def test_a_head_with_activations_is_refused(tmp_path):
    path = judges.make_aesthetic(tmp_path / "relu.pth", sizes=(judges.WIDTH, 8, 4, 1))
    apart = {name.replace("s.2.", "s.3.").replace("s.4.", "s.6."): value for name, value in torch.load(path).items()}
    torch.save(apart, path)
    with pytest.raises(InputError, match="holds an aesthetic head with activations"):
        networks.AestheticHead.load(path)


def test_names_of_benches_are_joined_in_one_order():
    assert BenchChoice().full_name("world") == "world"
    assert BenchChoice(name="dino+clip").full_name("world") == "world+clip+dino"
    assert BenchChoice(name="learned").full_name("video") == "video+clip+dino+lpips+aesthetic"
    assert BenchChoice(name="video", lpips="x").full_name("world") == "video+lpips"
    assert BenchChoice(aesthetic="x").full_name("video") == "video+clip+aesthetic"  # it reads CLIP's features
    with pytest.raises(InputError, match=r"the bench 'clib' does not exist \(did you mean 'clip'\?\)"):
        BenchChoice(name="video+clib")
    with pytest.raises(InputError, match="names world and video: name one"):
        BenchChoice(name="video+world").full_name("video")


@pytest.mark.parametrize("base", [name for name in BENCHES if BENCHES[name].goal is None])
def test_the_goal_of_fit_lowers_metrics_that_the_bench_has(base):
    bench = find_bench(f"{base}+clip")
    assert bench.goal is not None
    lowered = bench.goal.lower
    assert set(lowered) == {"clipped", "interpolation_error"} & bench.metrics.keys()
    values = {name: np.ones(2) for name in bench.metrics}
    assert all(np.array_equal(of(values), np.ones(2)) for of in lowered.values())
    assert lowered
    assert find_bench(base).goal is None


def test_a_bench_without_its_weights_refuses_to_measure():
    with pytest.raises(InputError, match=r"needs weights: open it with guidon.metrics.bench.open_bench"):
        find_bench("video+clip").measure(CLIPS, CAPTIONS)


def test_missing_weights_are_named_in_one_line(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = "misses weights: give clip, a CLIP or SigLIP such as openai/clip-vit-large-patch14 .*; lpips, a folder with alexnet.*; aesthetic, .*; or set download"
    with pytest.raises(InputError, match=message) as caught:
        open_bench(BenchChoice(name="learned", dino=parts["dino"]), "video")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="holds a 'dinov2' model, clip takes a CLIP or SigLIP"):
        open_bench(BenchChoice(clip=parts["dino"]), "video")
    with pytest.raises(InputError, match="does not hold the two files of LPIPS: give a folder with alexnet-owt"):
        open_bench(BenchChoice(lpips=parts["dino"]), "video")


def test_weights_are_fetched_only_if_asked_and_only_the_files_that_are_read(parts, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repository, allow_patterns, local_files_only):
        asked.append((repository, allow_patterns, local_files_only))
        if local_files_only:
            raise OSError("it is not in the cache")
        return str({"openai/clip-vit-large-patch14": parts["clip"], "facebook/dinov2-base": parts["dino"]}[repository])

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(InputError, match="misses weights"):
        open_bench(BenchChoice(name="video+clip"), "video")
    assert asked == []
    (tmp_path / "models--openai--clip-vit-large-patch14").mkdir()  # something of it is in the cache
    with pytest.raises(InputError, match="misses weights"):
        open_bench(BenchChoice(name="video+clip"), "video")
    assert [local for *_, local in asked] == [True]
    bench = open_bench(BenchChoice(name="video+clip+dino", download=True), "video")
    assert {name: own.name for name, own in bench.weights.items()} == {
        "clip": "openai/clip-vit-large-patch14",
        "dino": "facebook/dinov2-base",
    }
    assert "model.safetensors" in asked[-1][1]
    assert not any("*" in pattern for pattern in asked[-1][1])  # not the same weights in other formats
    with pytest.raises(InputError, match="misses weights: give lpips, a folder with alexnet") as caught:
        open_bench(BenchChoice(name="video+lpips", download=True), "video")
    assert "set download" not in str(caught.value)


@pytest.mark.gpu
def test_a_gpu_measures_the_same(parts, bench, truth):
    on_gpu = open_bench(BenchChoice(**parts), "video", device="cuda").measure(CLIPS, CAPTIONS)
    for name, values in truth.items():
        assert on_gpu[name] == pytest.approx(values, abs=2e-3, nan_ok=True), name


def test_another_networks_weights_are_refused(parts, tmp_path):
    other = judges.make_lpips(tmp_path / "other", widths=(4, 4, 4, 4, 4))
    (other / "alex.pth").write_bytes((parts["lpips"] / "alex.pth").read_bytes())
    with pytest.raises(InputError, match=r"they are for \[8, 12, 16, 12, 8\] channels, the backbone has \[4, 4"):
        open_bench(BenchChoice(lpips=other), "video")
    with pytest.raises(InputError, match="holds no aesthetic head: expected linear layers"):
        networks.AestheticHead.load(parts["lpips"] / "alex.pth")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    import safetensors.torch

    path = judges.make_dino(tmp_path) / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["layernorm.bias"][0] = math.nan
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match="give values that are not finite"):
        open_bench(BenchChoice(dino=tmp_path), "video")


def test_the_hash_of_weights_follows_the_files_and_not_the_folder(parts, tmp_path):
    moved, changed = tmp_path / "moved", tmp_path / "changed"
    for folder, seed in ((moved, 0), (changed, 1)):
        judges.make_dino(folder, seed=seed)
    hashes = [open_bench(BenchChoice(dino=d), "video").weights["dino"].hash for d in (parts["dino"], moved, changed)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_networks_stay_or_go_after_use(parts, monkeypatch):
    loads = []
    read = networks.FrameEncoder.load
    monkeypatch.setattr(networks.FrameEncoder, "load", lambda *given: loads.append(1) or read(*given))
    for keep, count in ((True, 1), (False, 1 + 3)):  # opening reads them too
        bench = open_bench(BenchChoice(dino=parts["dino"]), "video", keep=keep)
        for _ in range(2):
            bench.measure(CLIPS[:1, :2], CAPTIONS[:1])
        assert len(loads) == count


def test_a_library_that_is_not_installed_is_named_with_its_extra(parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = r"the part dino of a bench needs transformers, which is not installed: pip install 'guidon-diffusion\[metrics\]'"
    with pytest.raises(InputError, match=message):
        open_bench(BenchChoice(dino=parts["dino"]), "video")
    assert open_bench(BenchChoice(lpips=parts["lpips"]), "video").name == "video+lpips"


def test_a_head_for_another_clip_is_refused_before_anything_is_measured(parts, tmp_path):
    head = judges.make_aesthetic(tmp_path / "head.pth", sizes=(12, 1))
    with pytest.raises(InputError, match="is for a CLIP with 12 features, clip has 16"):
        open_bench(BenchChoice(clip=parts["clip"], aesthetic=head), "video")
