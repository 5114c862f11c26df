import pytest

from released import make_checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize(
    ("name", "architecture"), [("video.pth", "STDiT"), ("class.pt", "DiT"), ("image.pth", "PixArt")]
)
def test_a_checkpoint_is_described(run, folder, name, architecture):
    code, out, err = run("inspect", folder / name)
    assert (code, err) == (0, "")
    assert architecture in out


def test_heads_may_be_given(run, folder):
    assert "num_heads 12," in run("inspect", folder / "class.pt", "--num-heads", 12)[1]


def test_what_is_no_checkpoint_is_refused(refused, tmp_path):
    (tmp_path / "a.pt").write_bytes(b"nothing")
    assert "a.pt" in refused("inspect", tmp_path / "a.pt")
    assert "none.pt" in refused("inspect", tmp_path / "none.pt")
