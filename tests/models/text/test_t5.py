import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from guidon.core.errors import InputError
from guidon.models.text.t5 import T5Encoder, clean_caption
from released import make_t5

for library in ("transformers", "sentencepiece", "ftfy", "bs4"):
    pytest.importorskip(library)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def encoder(folder):
    return T5Encoder.load(folder, max_length=20)


def test_features_are_the_encoders_under_the_padding_mask(folder, encoder):
    from transformers import AutoTokenizer, T5EncoderModel

    prompts = ["a lighthouse in a storm", "waves"]
    features, mask = encoder.encode(prompts)
    batch = AutoTokenizer.from_pretrained(folder)(prompts, max_length=20, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = T5EncoderModel.from_pretrained(folder)(batch.input_ids, batch.attention_mask).last_hidden_state
    assert torch.allclose(features, expected, atol=1e-5)
    assert torch.equal(mask, batch.attention_mask)
    assert features.shape == (2, 20, 24)
    assert features.shape[-1] == 24
    assert 1 < mask[1].sum() < mask[0].sum() < 20


def test_the_empty_prompt_is_its_end_token(encoder):
    ids, mask = encoder.tokenize([""])
    assert mask.sum() == 1
    assert ids[0, 0] == 1


def test_no_prompt_at_all_is_refused(encoder):
    with pytest.raises(InputError, match="no prompt to encode"):
        encoder.encode([])


def test_a_prompt_does_not_depend_on_its_batch_mates(encoder):
    together, _ = encoder.encode(["waves", "a corgi runs on the beach", "a lighthouse"])
    assert torch.equal(together[1:2], encoder.encode(["a corgi runs on the beach"])[0])


def test_what_does_not_fit_is_cut_and_said(encoder):
    with pytest.warns(UserWarning, match=r"\d+ tokens beyond 20 are cut from 'the camera pans"):
        _, mask = encoder.encode(["the camera pans slowly across a misty valley at dawn, two boats drift apart"])
    assert mask.sum() == 20


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("  A Red  Circle ", "a red circle"),
        ("see https://example.com/a.png now", "see now"),
        ("<b>bold</b> words", "bold words"),
        ("salt &amp; pepper &quot;x&quot;", 'salt pepper "x"'),
        ("photo IMG_1234.jpg by @someone", "photo by"),
    ],
)
def test_captions_are_cleaned_twice_as_the_originals_do(given, cleaned):
    assert clean_caption(given) == cleaned
    assert clean_caption(cleaned) == cleaned


def test_without_cleaning_only_case_and_ends_go(folder):
    plain, cleaning = (T5Encoder.load(folder, max_length=20, clean=c) for c in (False, True))
    assert torch.equal(plain.tokenize([" WAVES "])[0], cleaning.tokenize(["waves"])[0])
    assert not torch.equal(plain.tokenize(["<i>waves</i>"])[0], cleaning.tokenize(["<i>waves</i>"])[0])


def test_half_precision_and_a_diffusers_root(folder, tmp_path, encoder):
    root = tmp_path / "root"
    shutil.copytree(folder, root / "text_encoder")
    (root / "tokenizer").mkdir()
    shutil.move(root / "text_encoder" / "spiece.model", root / "tokenizer" / "spiece.model")
    half = T5Encoder.load(root, max_length=20, dtype="bf16")
    features, _ = half.encode(["waves"])
    assert features.dtype == torch.bfloat16
    assert torch.allclose(features.float(), encoder.encode(["waves"])[0], atol=0.1)


def test_what_is_missing_or_damaged_is_named_in_one_line(folder, tmp_path):
    def refused(match, **options):
        with pytest.raises(InputError, match=match) as error:
            T5Encoder.load(tmp_path / "t5", **options)
        assert "\n" not in str(error.value)

    refused("is not a folder.*DeepFloyd/t5-v1_1-xxl")
    for name in ("config.json", "spiece.model", "model.safetensors"):
        shutil.copytree(folder, tmp_path / "t5")
        (tmp_path / "t5" / name).unlink()
        refused("holds no .*DeepFloyd/t5-v1_1-xxl")
        shutil.rmtree(tmp_path / "t5")
    shutil.copytree(folder, tmp_path / "t5")
    weights = tmp_path / "t5" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    refused("model.safetensors cannot be read as safetensors.*truncated or damaged")
    weights.write_bytes(data)
    refused("did you mean 'fp16'", dtype="fp61")
    refused("give 120, 200 or 300", max_length=0)
    config = json.loads((tmp_path / "t5" / "config.json").read_text())
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    refused("expected t5")
    if importlib.util.find_spec("bitsandbytes") is None:
        (tmp_path / "t5" / "config.json").write_text(json.dumps(config))
        refused("needs bitsandbytes.*pip install bitsandbytes", dtype="int8")


@pytest.mark.parametrize("text", ["waves", "a  b", "ﬁne ①② day", "x\ty", "Ünïcode — 漢字", "half　width ＡＢＣ", ""])
def test_ids_are_sentencepieces_own(folder, text):
    import sentencepiece

    words = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    ids, mask = T5Encoder.load(folder, max_length=40, clean=False).tokenize([text])
    assert ids[0, : mask.sum()].tolist() == [*words.encode(text.lower()), 1]
    assert ids[0, mask.sum() :].eq(0).all()


def test_shards_and_bin_files_give_the_same_features(folder, tmp_path, encoder):
    expected = encoder.encode(["waves"])[0]
    for name in ("shards", "bin"):
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
    encoder.model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    torch.save(encoder.model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    for name in ("shards", "bin"):
        assert torch.equal(T5Encoder.load(tmp_path / name, max_length=20).encode(["waves"])[0], expected)
    min((tmp_path / "shards").glob("model-*")).unlink()
    with pytest.raises(InputError, match=r"names the shard .*, which is not there"):
        T5Encoder.load(tmp_path / "shards")


def test_what_would_be_filled_with_random_numbers_is_refused(folder, tmp_path, capfd):
    copy = shutil.copytree(folder, tmp_path / "t5")
    weights, config = load_file(copy / "model.safetensors"), json.loads((copy / "config.json").read_text())

    def refused(match):
        capfd.readouterr()
        with pytest.raises(InputError, match=match) as error:
            T5Encoder.load(copy)
        assert "\n" not in str(error.value)
        assert capfd.readouterr().err == ""

    part = {key: value for key, value in weights.items() if "block.1" not in key}
    save_file(part, copy / "model.safetensors", metadata={"format": "pt"})
    refused("incomplete.* such as encoder.block.1")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    (copy / "config.json").write_text(json.dumps(config | {"d_ff": 64}))
    refused("of another shape, such as encoder.block.0.layer.1.DenseReluDense.wi_0")
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "spiece.model").write_bytes(b"")
    refused("tokenizer in .* is damaged or another model's")


def test_encoders_of_other_weights_are_described_apart(folder, tmp_path, encoder):
    assert T5Encoder.load(folder, max_length=20).description == encoder.description
    other = T5Encoder.load(make_t5(tmp_path, seed=1), max_length=20).description
    assert {key for key in other if other[key] != encoder.description[key]} == {"weights"}


def test_nothing_holds_the_model_after_it_is_dropped(folder):
    import gc
    import weakref

    encoder = T5Encoder.load(folder)
    encoder.encode(["waves"])
    model = weakref.ref(encoder.model)
    del encoder
    gc.collect()
    assert model() is None
