"""DiT and PixArt of a diffusers pipeline through Guidon's networks: the same numbers, and the frequencies that differ."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import guidon
from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule
from guidon.guidance import Guidance, GuidedDenoiser
from guidon.models.dit.checkpoint import BLOCK, JOINED, LAYERS
from guidon.models.dit.network import DiTConfig
from guidon.models.parts.layers import timestep_embedding
from guidon.models.text.features import save_features
from guidon.samplers import LegacyNoise, sample_ddim, sample_ddpm
from released import make_t5, make_vae
from tiny_pipelines.contract import shaken

TIMESTEPS = (0, 1, 10, 100, 300, 600, 999)
PAGE = (Path(__file__).resolve().parents[3] / "docs/dit.md").read_text()
PROMPT = "waves roll over the rocks"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """An autoencoder and a T5 as a user has them after downloading."""
    root = tmp_path_factory.mktemp("hub")
    make_vae(root / "vae"), make_t5(root / "t5")
    return root


@pytest.fixture
def vae(hub):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(hub / "vae")


def make_dit_network(own_embedders=False, **config):
    """A random DiT of diffusers, all of its weights shaken.

    Its blocks hold one embedder, as those of converted weights do, or embedders of their own, as after training.
    """
    from diffusers import DiTTransformer2DModel

    shape = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8, "num_layers": 2}
    network = shaken(lambda: DiTTransformer2DModel(**shape | {"sample_size": 8, "norm_eps": 1e-6} | config))
    first = network.transformer_blocks[0].norm1.emb.state_dict()
    for block in () if own_embedders else network.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return network


def make_dit(vae, network=None, scheduler=None, **labels):
    from diffusers import DDIMScheduler, DiTPipeline

    scheduler = scheduler or DDIMScheduler(clip_sample=False)
    pipe = DiTPipeline(network or make_dit_network(), vae, scheduler, **labels)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_pixart(vae, hub=None, sigma=False, **config):
    """A random PixArt-alpha or -Sigma, all of its weights shaken, with the T5 of a folder."""
    import diffusers
    from transformers import T5EncoderModel, T5TokenizerFast

    shape = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8, "num_layers": 2}
    shape |= {"cross_attention_dim": 24, "caption_channels": 24, "sample_size": 8}
    network = shaken(lambda: diffusers.PixArtTransformer2DModel(**shape | config))
    kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    words = hub and T5TokenizerFast.from_pretrained(hub / "t5")
    encoder = hub and T5EncoderModel.from_pretrained(hub / "t5")
    return kind(words, encoder, vae, network, diffusers.DPMSolverMultistepScheduler())


def network_of(pipe, dtype=torch.float32, **how):
    with guidon.from_diffusers(pipe, **how).model.network.in_use(dtype) as network:
        return network


def in_diffusers(released, config):
    """The released tensors of a DiT in diffusers' ``DiTTransformer2DModel``: what its conversion does."""
    network = make_dit_network(
        num_attention_heads=config.num_heads, attention_head_dim=config.hidden_size // config.num_heads,
        in_channels=config.in_channels, out_channels=2 * config.in_channels, num_layers=config.depth,
        sample_size=config.input_size, patch_size=config.patch_size, num_embeds_ada_norm=config.num_classes,
    )  # fmt: skip
    names = {theirs: ours for theirs, ours in LAYERS.items() if theirs != "pos_embed.pos_embed"}
    parts = {}
    for k in range(config.depth):
        names |= {f"transformer_blocks.{k}.{theirs}": f"blocks.{k}.{ours}" for theirs, ours in BLOCK.items()}
        for ours, theirs in JOINED.items():
            parts |= {f"transformer_blocks.{k}.{name}": (f"blocks.{k}.{ours}", n) for n, name in enumerate(theirs)}
    converted = {}
    for name in network.state_dict():
        stem, _, leaf = name.rpartition(".")
        if ".norm1.emb." in stem:  # every block has a copy of the first one's
            stem = "transformer_blocks.0" + stem[stem.index(".norm1") :]
        if stem in parts:
            ours, number = parts[stem]
            converted[name] = released[f"{ours}.{leaf}"].chunk(3)[number]
        else:
            converted[name] = released[f"{names[stem]}.{leaf}"]
    network.load_state_dict(converted)
    return network


@torch.no_grad()
@pytest.mark.parametrize("name", ["a", "b"])
def test_the_originals_weights_in_diffusers_give_the_originals_numbers(vae, name):
    g, case = golden(f"dit/{name}")
    config = DiTConfig(**case["config"])
    theirs = in_diffusers({k.removeprefix("weights."): v for k, v in g.items() if k.startswith("weights.")}, config)
    pipe = make_dit(vae, theirs)
    model = network_of(pipe)
    assert model.config == config
    assert relative_error(model(g["x"], g["t"], g["y"]), g["out"]) < 1e-5
    # diffusers itself computes something else with the same weights, because its timestep embedding has other frequencies
    late = g["t"] > 100
    assert late.any()
    wrong = theirs(g["x"], timestep=g["t"], class_labels=g["y"]).sample
    assert relative_error(wrong[late], g["out"][late]) > 1e-3
    assert relative_error(network_of(pipe, frequencies="diffusers")(g["x"], g["t"], g["y"]), wrong) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["dit_a_ddpm10", "dit_b_ddim10"])
def test_whole_runs_are_the_originals(vae, name):
    g, case = golden(f"sample/{name}")
    weights, made = golden(case["weights"])
    config = DiTConfig(**made["config"])
    weights = {k.removeprefix("weights."): v for k, v in weights.items() if k.startswith("weights.")}
    model = network_of(make_dit(vae, in_diffusers(weights, config)))
    rows = len(g["z"])
    torch.manual_seed(case["seed"])
    noise = LegacyNoise(2)
    z = noise.initial(g["z"].shape)
    guidance = Guidance(case["cfg_scale"], case["cfg_channels"])
    denoiser = GuidedDenoiser(model, guidance, model.prepare(g["y"][:rows]), model.null(rows))
    sample = sample_ddpm if case["sampler"] == "ddpm" else sample_ddim
    schedule = NoiseSchedule.named("linear", 1000).respaced(case["respacing"])
    assert relative_error(sample(denoiser, schedule, z, noise), g["sample"]) < 1e-4


def calls_of(pipe, classes=(1, 500)):
    """What the pipeline gives its network in a run of its own, and what it gets: (latents, t, y, output) each."""
    calls = []
    hook = pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, out: calls.append((*args, kwargs["timestep"], kwargs["class_labels"], out[0])),
        with_kwargs=True,
    )
    pipe(list(classes), guidance_scale=4.0, num_inference_steps=7, output_type="pt", generator=torch.Generator())
    hook.remove()
    assert len(calls) == 7
    return calls


@torch.no_grad()
def test_with_diffusers_frequencies_every_call_of_its_own_dit_pipeline_is_reproduced(vae):
    pipe = make_dit(vae)
    same, original = network_of(pipe, frequencies="diffusers"), network_of(pipe)
    for x, t, y, expected in calls_of(pipe):
        assert relative_error(same(x, t, y), expected) < 1e-6
        assert t[0] < 100 or relative_error(original(x, t, y), expected) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_a_dit_that_was_trained_in_diffusers_is_reproduced_with_no_option(vae, epsilon):
    pipe = make_dit(vae, make_dit_network(own_embedders=True, num_layers=3, norm_eps=epsilon))
    network = network_of(pipe)
    assert network.config.own_embedders
    original = network_of(pipe, frequencies="original")
    for x, t, y, expected in calls_of(pipe):
        assert relative_error(network(x, t, y), expected) < 1e-6
        assert t[0] < 100 or relative_error(original(x, t, y), expected) > 1e-3
    # guidance and sampling are on it as on any other
    pipe.transformer.requires_grad_(False)
    assert guidon.from_diffusers(pipe)("1", steps=2, cfg_channels=3, seed=0).frames.shape == (1, 64, 64, 3)


@torch.no_grad()
def test_the_frequencies_are_the_only_difference_but_for_an_epsilon(vae):
    x, y = torch.randn(len(TIMESTEPS), 4, 8, 8), torch.arange(len(TIMESTEPS))
    t = torch.tensor(TIMESTEPS)
    network = make_dit_network()
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    assert relative_error(network_of(make_dit(vae, network))(x, t, y), network(x, t, y).sample) < 1e-6
    # 1e-5 in the second norm of every block is diffusers' default, DiT has 1e-6
    network = make_dit_network(norm_eps=1e-5)
    same = network_of(make_dit(vae, network), frequencies="diffusers")
    assert relative_error(same(x, t, y), network(x, t, y).sample) < 1e-6


def test_at_timestep_0_both_formulas_agree_and_they_part_as_it_grows():
    t = torch.tensor(TIMESTEPS)
    ours, theirs = timestep_embedding(t), timestep_embedding(t, shift=1)
    parted = (ours - theirs).norm(dim=1) / ours.norm(dim=1)
    assert parted[0] == 0
    assert (parted.diff() > 0).all()
    # the last frequency is 1e-4 in diffusers and 1e-4^(127/128) in DiT
    assert torch.allclose(theirs[:, 127], (t * 1e-4).cos(), atol=1e-6)
    assert torch.allclose(ours[:, 127], (t * 1e-4 ** (127 / 128)).cos(), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("sigma", [False, True])
@pytest.mark.parametrize("micro", [False, True])
def test_pixart_is_diffusers_own_with_no_option(vae, hub, sigma, micro):
    pipe = make_pixart(vae, hub, sigma, use_additional_conditions=micro, interpolation_scale=2 if sigma else None)
    assert network_of(pipe).config.micro_condition == micro
    x, t = torch.randn(len(TIMESTEPS), 4, 8, 12 if sigma or micro else 8), torch.tensor(TIMESTEPS)
    y, mask = torch.randn(len(t), 6, 24), torch.ones(len(t), 6)
    mask[::2, 3:] = 0
    size = torch.tensor([[8.0 * side for side in x.shape[-2:]]]).expand(len(t), -1)
    more = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
    more = more if micro else {"resolution": None, "aspect_ratio": None}
    expected = pipe.transformer(
        x, encoder_hidden_states=y, timestep=t, encoder_attention_mask=mask, added_cond_kwargs=more
    ).sample
    assert relative_error(network_of(pipe)(x, t, y, mask), expected) < 1e-6
    with pytest.raises(InputError, match="PixArt has the same frequencies in diffusers: leave out frequencies"):
        guidon.from_diffusers(pipe, frequencies="diffusers")


@pytest.mark.filterwarnings("ignore:.*makes latents of")
def test_a_pipeline_object_and_its_saved_folder_make_the_same_image(vae, hub, tmp_path):
    pipe = make_dit(vae, id2label={207: "golden retriever", 1: "goldfish, Carassius auratus"})
    pipe.save_pretrained(tmp_path / "dit")
    ours = guidon.from_diffusers(pipe)
    saved = guidon.load("dit-xl-2-256", checkpoint=tmp_path / "dit/transformer", vae=hub / "vae", device="cpu")
    expected = saved("207", steps=3, seed=5, exact="dit").frames
    image = ours("golden retriever", steps=3, seed=5, exact="dit")
    assert np.array_equal(image.frames, expected)
    assert np.array_equal(ours("Carassius auratus", steps=3).frames, ours("1", steps=3).frames)
    assert not np.array_equal(ours("1", steps=3).frames, ours("1", steps=3, cfg_channels="all").frames)
    with pytest.raises(
        InputError, match=r"'golden retreiver' is not a class.*0 to 999, or a name such as golden retri"
    ):
        ours("golden retreiver", steps=1)
    learnt_in_diffusers = guidon.load_checkpoint(tmp_path / "dit/transformer", frequency_shift=1)
    assert learnt_in_diffusers.t_embedder.frequency_shift == 1
    manifest = image.manifest
    assert manifest["generation"]["model"] == "DiTPipeline"
    assert manifest["weights"].keys() == {"checkpoint", "vae"}

    pipe = make_pixart(vae, hub)
    pipe.save_pretrained(tmp_path / "pixart")
    parts = {"checkpoint": tmp_path / "pixart/transformer", "vae": hub / "vae", "text_encoder": hub / "t5"}
    saved = guidon.load("pixart-xl-2-256", **parts, device="cpu")
    expected = saved(PROMPT, steps=3, negative_prompt="").frames
    image = guidon.from_diffusers(pipe)(PROMPT, steps=3)
    assert np.array_equal(image.frames, expected)
    assert image.manifest["generation"]["negative_prompt"] == ""
    assert image.manifest["weights"].keys() == {"checkpoint", "vae", "text", "text_dtype"}


@torch.no_grad()
def test_the_table_in_the_docs_is_what_the_embedding_gives():
    known = torch.arange(0, 1100, 0.1)
    rows = [line.split("|")[1:5] for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rows) >= 5
    for row in rows:
        t, *written = (float(cell.strip(" %")) for cell in row)
        ours, theirs = (timestep_embedding(torch.tensor([t]), shift=shift) for shift in (0, 1))
        distances = (timestep_embedding(known) - theirs).norm(dim=1) / theirs.norm()
        found = [100 * (theirs - ours).norm() / ours.norm(), known[distances.argmin()], 100 * distances.min()]
        assert written == pytest.approx([float(number) for number in found], abs=0.11)


def test_the_snippet_in_the_docs_runs(vae, monkeypatch):
    from diffusers import DiTPipeline

    pipe = make_dit(vae, id2label={207: "golden retriever"}).to(torch.bfloat16)
    monkeypatch.setattr(DiTPipeline, "from_pretrained", lambda name, torch_dtype: pipe)
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {"DiTPipeline": DiTPipeline, "guidon": guidon, "torch": torch}
    exec(snippet.replace('"cuda"', '"cpu"').replace("seed=0", "seed=0, steps=2"), names)
    assert names["image"].manifest["generation"]["dtype"] == "bf16"


def test_weights_are_shared_and_the_pipeline_stays_as_it_was(vae, hub):
    for pipe in (make_dit(vae), make_pixart(vae, hub)):
        pipe.transformer.train().requires_grad_(True)
        before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
        theirs = {value.data_ptr() for value in pipe.transformer.state_dict().values()}
        ours = guidon.from_diffusers(pipe)
        ours("1" if "DiT" in ours.preset.name else PROMPT, steps=1)
        with ours.model.network.in_use(torch.float32) as network:
            copied = {name for name, value in network.state_dict().items() if value.data_ptr() not in theirs}
        joined = {name for name in copied if ".qkv." in name or ".kv_linear." in name}
        assert copied - joined <= {"pos_embed", "y_embedder.y_embedding"}
        assert len(joined) == (8 if "PixArt" in ours.preset.name else 4)
        after = pipe.transformer.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert {value.data_ptr() for value in after.values()} == theirs
        assert pipe.transformer.training
        assert all(parameter.requires_grad for parameter in pipe.transformer.parameters())


def test_the_pipelines_precision_is_kept_unless_another_is_asked_for(vae, hub):
    for pipe, prompt in ((make_dit(vae), "3"), (make_pixart(vae, hub), PROMPT)):
        ours = guidon.from_diffusers(pipe.to(torch.bfloat16))
        assert ours.plan([prompt]).dtype == "bf16"
        assert ours.device == torch.device("cpu")
        with ours.model.network.in_use(torch.bfloat16) as network:
            assert network.dtype == torch.bfloat16
        half, single = ours(prompt, steps=2).frames, ours(prompt, steps=2, dtype="fp32").frames
        assert half.shape == single.shape == (1, 64, 64, 3)
        assert not np.array_equal(half, single)
        assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {torch.bfloat16}


def test_images_go_through_the_pipelines_own_autoencoder(vae):
    vae.register_to_config(scaling_factor=0.13025)
    adopted = guidon.from_diffusers(make_dit(vae)).model
    latents, frames = torch.randn(2, 4, 8, 8), torch.rand(1, 3, 2, 64, 64) * 2 - 1
    with adopted.vae.in_use() as ours, torch.no_grad():
        expected = vae.decode(latents / 0.13025).sample.clamp(-1, 1)
        assert torch.allclose(ours.decode(latents), expected, atol=1e-5)
        means = vae.encode(frames[0].transpose(0, 1)).latent_dist.mean * 0.13025
        assert torch.allclose(ours.encode(frames)[0].transpose(0, 1), means, atol=1e-5)
    assert adopted.facts.downsampling == 8


def test_sigma_reads_300_tokens_and_takes_any_size(vae, hub):
    alpha, sigma = (guidon.from_diffusers(make_pixart(vae, hub, sigma)) for sigma in (False, True))
    for pipe, tokens in ((alpha, 120), (sigma, 300)):
        with pipe.model.text.in_use() as text:
            assert text.encode([PROMPT])[0].shape == (1, tokens, 24)
    assert sigma(PROMPT, steps=1, size=(32, 96)).frames.shape == (1, 32, 96, 3)
    with pytest.raises(InputError, match="makes 64x64 only: leave out size"):
        alpha(PROMPT, steps=1, size=(32, 96))


def test_features_stand_in_for_a_missing_text_encoder(vae, hub, tmp_path):
    whole, bare = make_pixart(vae, hub), make_pixart(vae)
    with guidon.from_diffusers(whole).model.text.in_use() as text:
        kept = save_features(tmp_path / "captions.safetensors", [PROMPT, ""], *text.encode([PROMPT, ""]), encoder={})
    encoded = guidon.from_diffusers(whole)(PROMPT, steps=2).frames
    assert np.array_equal(guidon.from_diffusers(bare, features=kept)(PROMPT, steps=2).frames, encoded)
    with pytest.raises(InputError, match="has no text_encoder: load it with one, or give the file of `guidon encode`"):
        guidon.from_diffusers(bare)
    with pytest.raises(InputError, match="DiT is conditioned on classes: leave out features"):
        guidon.from_diffusers(make_dit(vae), features=kept)


def test_the_schedulers_betas_and_prediction_are_read(vae):
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    usual = guidon.from_diffusers(make_dit(vae)).model
    assert np.array_equal(usual.schedule.betas, NoiseSchedule.named("linear", 1000).betas)
    assert (usual.process.parameterization, usual.process.variance) == ("eps", "learned_range")
    other = DDIMScheduler(num_train_timesteps=50, beta_schedule="scaled_linear", prediction_type="v_prediction")
    network = make_dit_network(out_channels=4)  # no learned variance
    model = guidon.from_diffusers(make_dit(vae, network, other)).model
    assert np.allclose(model.schedule.alphas_cumprod, other.alphas_cumprod, rtol=1e-5)
    assert (model.process.parameterization, model.process.variance) == ("v", "fixed_large")
    ours = guidon.from_diffusers(make_dit(vae, network, EulerDiscreteScheduler()))
    assert ours("3", steps=2).frames.shape == (1, 64, 64, 3)


@torch.no_grad()
def test_a_compiled_or_fused_transformer_is_read_as_it_was(vae, hub):
    x, t, y = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 6, 24)
    pipe = make_pixart(vae, hub)
    expected = network_of(pipe)(x, t, y)
    pipe.transformer.fuse_qkv_projections()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert torch.equal(network_of(pipe)(x, t, y), expected)


def test_what_cannot_be_read_is_refused_by_name(vae, hub):
    import diffusers

    supported = "DiTPipeline, PixArtAlphaPipeline or PixArtSigmaPipeline"
    with pytest.raises(InputError, match=f"given 'facebook/DiT-XL-2-256', expected a diffusers pipeline .*{supported}"):
        guidon.from_diffusers("facebook/DiT-XL-2-256")
    other = shaken(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16,
            joint_attention_dim=16, pooled_projection_dim=16, out_channels=4, in_channels=4, pos_embed_max_size=8,
        )
    )  # fmt: skip
    with pytest.raises(InputError, match=f"whose transformer is of type SD3Transformer2DModel: give a {supported}, or"):
        guidon.from_diffusers(make_dit(vae, other))
    with pytest.raises(InputError, match=r"frequencies 'diffuser' does not exist \(did you mean 'diffusers'"):
        guidon.from_diffusers(make_dit(vae), frequencies="diffuser")
    with pytest.raises(InputError, match="stored as float8_e4m3fn: load the pipeline in float32, bfloat16 or float16"):
        guidon.from_diffusers(make_dit(vae, make_dit_network().to(torch.float8_e4m3fn)))
    with pytest.raises(InputError, match="not in memory, as with enable_sequential_cpu_offload"):
        guidon.from_diffusers(make_dit(vae, make_dit_network().to("meta")))
    with pytest.raises(InputError, match="the autoencoder of this DiTPipeline is missing, expected an AutoencoderKL"):
        guidon.from_diffusers(make_dit(None))
    with pytest.raises(InputError, match="its activation is 'gelu', the networks here have 'gelu-approximate'"):
        guidon.from_diffusers(make_dit(vae, make_dit_network(activation_fn="gelu")))
    with pytest.raises(
        InputError, match="has prediction_type 'flow_prediction', expected epsilon, sample, v_prediction"
    ):
        guidon.from_diffusers(
            make_dit(vae, None, diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction"))
        )
    with pytest.raises(InputError, match="rescale_betas_zero_snr=True, whose last level is noise alone: give one"):
        guidon.from_diffusers(make_dit(vae, None, diffusers.DDIMScheduler(rescale_betas_zero_snr=True)))
    with pytest.raises(InputError, match="is of type FlowMatchEulerDiscreteScheduler, which has no betas"):
        guidon.from_diffusers(make_dit(vae, None, diffusers.FlowMatchEulerDiscreteScheduler()))
    with pytest.raises(InputError, match="has 4 latent channels, the network 3"):
        guidon.from_diffusers(make_dit(vae, make_dit_network(in_channels=3, out_channels=6)))
    shifted = diffusers.AutoencoderKL.from_config({**vae.config, "shift_factor": 0.1})
    with pytest.raises(InputError, match="the autoencoder of this DiTPipeline has a shift_factor"):
        guidon.from_diffusers(make_dit(shifted))
    network = make_dit_network()
    network.proj_out_1.bias.data[0] = float("nan")
    with pytest.raises(InputError, match="hold NaN or infinity"):
        guidon.from_diffusers(make_dit(vae, network))
