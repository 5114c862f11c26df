from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from guidon.core.errors import InputError
from guidon.training import StagedRecipe, load_recipe, run_recipe
from guidon.training.recipe import DenoiserRecipe, RolloutRecipe, Section, VAERecipe, check_recipe
from guidon.training.terms import Terms, TermSettings
from recipes import LOW, VAE_SHAPE, denoiser_recipe, vae_recipe, write_recipe

SHIPPED = Path(__file__).parents[2] / "recipes" / "guidon-small.yaml"


def stages(**changes):
    values = {
        "out": "runs",
        "common": {"every": {"seed": 3}, "denoiser": {"vae": "eye", "model": {"hidden_size": 64}}},
        "stages": {
            "eye": {"task": "vae", "steps": 2},
            "base": {"task": "denoiser", "steps": 2, "model": {"depth": 1}},
            "low": {"task": "denoiser", "steps": 2, "start": "base", "expert": LOW, "seed": 4},
        },
        "export": {"stage": "low"},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = values
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_sise": 3}, "did you mean 'batch_size'"), ({"task": "vea"}, "did you mean 'vae'"), ({"steps": 0}, "steps"),
        ({"task": ["vae"]}, "task is ['vae']"), ({"seed": -1}, "seed"), ({"optimiser": {"betas": [0.9, 1.0]}}, "betas"),
        ({"model": VAE_SHAPE | {"norm_num_groups": 7}}, "8 is no multiple of 7"), ({"model": {"pixel_unshuffle": 5}}, "64 is no multiple of 20"),
        ({"optimiser": {"lr": float("inf")}}, "optimiser.lr"), ({"kl_weight": float("nan")}, "kl_weight"),
        ({"optimiser": {"l": 1}}, "optimiser.l"), ({"precision": "fp64"}, "precision"), ({"device": "quantum"}, "not a device"),
        ({"redraw": [3]}, "redraw leaves out weights of an earlier run: give its start"),
        ({"redraw": [4], "start": "vae.safetensors"}, "redraw names latent channel 4, they are 0 to 3"),
        ({"redraw": [0, 1, 2, 3], "start": "vae.safetensors"}, "redraw names every latent channel"),
    ],
)  # fmt: skip
def test_bad_recipes_of_an_autoencoder_are_refused_in_one_line(tmp_path, values, message):
    with pytest.raises(InputError) as error:
        run_recipe(vae_recipe(tmp_path, **values))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": {"heads": 5}}, "64 is no multiple of 5"), ({"model": {"hidden_size": 64, "num_heads": 5}}, "64 is no multiple of 5"),
        ({"model": {"hidden_size": 130, "num_heads": 5}}, "130 is no multiple of 4"), ({"text": {"features": 9, "heads": 3}}, "sines and cosines"),
        ({"terms": {"mse": {"weigthing": "balanced"}}}, "unknown key 'terms.mse.weigthing' (did you mean 'weighting'?)"),
        ({"terms": {"shape_contast": {"weight": 2}}}, "unknown key 'terms.shape_contast' (did you mean 'shape_contrast'?)"),
        ({"terms": {"area": {}}}, "the key 'terms.area.weight' is missing"), ({"terms": {"area": {"weight": float("inf")}}}, "terms.area.weight"),
        ({"shape_swap": 0.5}, "shape_swap takes a clip of the same family: give terms: shape_contrast too"),
        ({"size_swap": 0.5}, "size_swap takes a clip of the same family: give terms: shape_contrast too"),
        ({"size_swap": 0.5, "terms": {"shape_contrast": {"weight": 2}}, "batch_size": 8, "clips": 12}, "clips must hold whole families, every shape in both sizes: 12 is no multiple of 8"),
        ({"size_swap": 0.5, "terms": {"shape_contrast": {"weight": 2}}, "batch_size": 8, "clips": 8, "prediction": "flow"}, "and size_swap is not for one"),
        ({"expert": LOW, "start": "x", "terms": {"shape_contrast": {"weight": 4}}, "size_swap": 0.5, "clips": 8, "batch_size": 8}, "size_swap begins at timestep 350"),
        ({"terms": {"shape_contrast": {"weight": 2}}, "batch_size": 6}, "batch_size must hold whole families, every shape: 6 is no multiple of 4"),
        ({"shape_weights": {"star": 3}}, "shape_weights names 'star'"),
        ({"seed": 10**14}, "seed"), ({"expert": LOW}, "give its start"),
        ({"expert": LOW | {"boundary": 1000}, "start": "x"}, "boundary"),
        ({"expert": LOW, "start": "x", "terms": {"shape_contrast": {"weight": 4}}, "shape_swap": 0.5, "clips": 8}, "ends before"),
        ({"train": "refiner", "model": {"refiner_channels": 8}}, "train: refiner trains one on an earlier run"),
        ({"train": "refiner", "start": "x"}, "train: refiner trains one on an earlier run"),
        ({"model": {"refiner_depth": 2}}, "refiner_depth was given without refiner_channels"),
    ],
)  # fmt: skip
def test_bad_recipes_of_a_denoiser_are_refused_in_one_line(tmp_path, values, message):
    with pytest.raises(InputError) as error:
        load_recipe(denoiser_recipe(tmp_path, "vae.safetensors", **values))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "now"),
    [
        ("loss_weighting", "balanced", "terms: {mse: {weighting: balanced}}"), ("foreground_weight", 4, "terms: {mse: {foreground: 4}}"),
        ("area_weight", 0.5, "terms: {area: {weight: 0.5}}"), ("shape_contrast", 4, "terms: {shape_contrast: {weight: 4}}"),
    ],
)  # fmt: skip
def test_a_setting_that_moved_to_a_term_names_it(tmp_path, name, value, now):
    with pytest.raises(InputError) as error:
        load_recipe(denoiser_recipe(tmp_path, "vae.safetensors", **{name: value}))
    assert str(error.value).endswith(f"write {now}")
    fits = denoiser_recipe(tmp_path, "vae.safetensors", **yaml.safe_load(now), clips=8)
    assert load_recipe(fits).terms != Terms()


def test_a_date_that_is_none_is_bad_yaml(tmp_path):
    (tmp_path / "r.yaml").write_text("task: vae\nsteps: 2024-13-45\n")
    with pytest.raises(InputError, match=r"cannot be read as a recipe: .*month must be in"):
        load_recipe(tmp_path / "r.yaml")


def sections(model):
    yield model
    for field in model.model_fields.values():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(kind)


def test_every_setting_says_what_it_is():
    silent = {
        f"{section.__name__}.{name}"
        for recipe in (VAERecipe, DenoiserRecipe, RolloutRecipe, StagedRecipe)
        for section in sections(recipe)
        for name, field in section.model_fields.items()
        if name != "task" and not field.description
    }
    assert silent == set()
    assert {Section, TermSettings} <= {base for s in sections(DenoiserRecipe) for base in s.__mro__}


def test_a_stage_has_the_settings_of_common_under_its_own(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path / "r.yaml", stages()))
    low = recipe.recipe("low", Path("there"), {"vae": Path("a"), "start": Path("b")})
    assert (low.model.hidden_size, low.seed, low.expert.noise) == (64, 4, "low")
    base = recipe.recipe("base", Path("there"), {"vae": Path("a")})
    assert (base.model.hidden_size, base.model.depth, base.seed) == (64, 1, 3)
    changed = load_recipe(write_recipe(tmp_path / "r.yaml", stages(common__denoiser__seed=7)))
    assert [changed.settings(name)["seed"] for name in ("eye", "base", "low")] == [3, 7, 4]
    assert recipe.parents("low") == {"vae": "eye", "start": "base"}
    assert recipe.order() == ["eye", "base", "low"]
    assert recipe.order("base") == ["eye", "base"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages__low__start": "bass"}, "stages.low: start is 'bass', expected an earlier denoiser or rollout or distill stage (did you mean 'base'?)"),
        ({"stages__low__start": "low"}, "expected an earlier denoiser or rollout or distill stage"), ({"stages__low__vae": "base"}, "expected an earlier vae stage"),
        ({"stages__base__stpes": 3}, "stages.base: unknown key 'stpes' (did you mean 'steps'?)"),
        ({"stages__base__task": "denoise"}, "stages.base: task is 'denoise' (did you mean 'denoiser'?)"),
        ({"stages__base__out": "x"}, "stages.base: out is given once"), ({"stages__eye__kl_weight": -1}, "stages.eye: kl_weight"),
        ({"common__evry": {}}, "unknown key 'common.evry' (did you mean 'every'?)"),
        ({"export__stage": "lo"}, "export.stage is 'lo', expected a denoiser or rollout or distill or videos stage (did you mean 'low'?)"),
        ({"export__stage": "eye"}, "export.stage is 'eye', expected a denoiser or rollout or distill or videos stage"),
        ({"stages": {}}, "stages"), ({"stages__../x": {"task": "vae", "steps": 1}}, "stages"),
    ],
)  # fmt: skip
def test_stages_that_do_not_fit_are_refused_before_any_is_trained(tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        load_recipe(write_recipe(tmp_path / "r.yaml", stages(**changes)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stage_that_begins_with_adapters_is_refused_before_any_is_trained(tmp_path):
    data = {"folder": "clips", "size": [32, 32], "frames": 4}
    network = {"task": "videos", "vae": "vae", "steps": 1, "data": data, "network": {"family": "stdit"}}
    adapter = network | {"start": "network", "lora": {"rank": 2}}
    adapter.pop("network")
    more = {name: value for name, value in adapter.items() if name != "lora"}
    named = {"vae": {"task": "vae", "steps": 1, "data": data}, "network": network, "adapter": adapter}
    for start, refused in (("network", False), ("adapter", True)):
        values = {"out": "run", "stages": named | {"more": more | {"start": start}}, "export": {"stage": "more"}}
        path = write_recipe(tmp_path / "r.yaml", values)
        with pytest.raises(InputError, match="which trains adapters") if refused else nullcontext():
            load_recipe(path)


def test_a_file_that_is_missing_is_named_before_a_stage_is_trained(tmp_path):
    data = {"folder": "clips", "size": [32, 32], "frames": 4}
    network = {"task": "videos", "vae": "vea", "steps": 1, "data": data, "network": {"family": "stdit"}}
    values = {
        "out": "run",
        "stages": {"vae": {"task": "vae", "steps": 1, "data": data}, "network": network},
        "export": {"stage": "network"},
    }
    path = write_recipe(tmp_path / "r.yaml", values)
    with pytest.raises(InputError, match=r"stages\.network: vae 'vea' is no stage before it, .*did you mean 'vae'"):
        load_recipe(path)


def test_out_is_a_folder(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(InputError, match="run, which is a file: give a folder"):
        check_recipe(write_recipe(tmp_path / "r.yaml", stages(out=str(tmp_path / "run"))))


def test_the_shipped_recipe_makes_what_the_package_holds():
    """The same networks as the shipped weights."""
    from guidon.checkpoints import load_component
    from guidon.models.catalogue import find_preset

    recipe = load_recipe(SHIPPED)
    folder = find_preset("guidon-small").weights
    last = recipe.order(recipe.export.stage)
    made = {name: recipe.recipe(name, Path("x"), {f: Path("y") for f in recipe.parents(name)}) for name in last}
    for file, stage in (("denoiser", "sized"), ("denoiser-low", "low-steady")):
        config = load_component(folder / f"{file}.safetensors", "denoiser").config
        wanted = made[stage].model.model_dump(mode="json") | {"prediction": made[stage].prediction}
        assert {name: config[name] for name in wanted} == wanted
        assert config.get("boundary", made[stage].expert.boundary) == made[stage].expert.boundary
        finisher = made["finished"].finisher.model_dump() if file == "denoiser-low" else {"channels": 0}
        assert {name: config.get(f"finisher_{name}", 0) for name in finisher} == finisher
    text = load_component(folder / "text.safetensors", "text").config
    assert {name: text[name] for name in ("features", "layers", "heads")} == made["base"].text.model_dump(
        include={"features", "layers", "heads"}
    )
    for file, stage in (("denoiser", "sized"), ("denoiser-low", "finished")):
        record = load_component(folder / f"{file}.safetensors", "denoiser").record
        assert (record["steps"], record["batch_size"]) == (made[stage].steps, made[stage].batch_size)
    vae = load_component(folder / "vae.safetensors", "vae").config
    model = made["vae"].model  # it leaves no ticks in corners; of the shipped one, the decoder alone was trained so
    wanted = model.model_dump(mode="json", exclude={"padding"}) | {"decoder_padding": model.padding}
    assert {name: vae[name] for name in wanted} == wanted
