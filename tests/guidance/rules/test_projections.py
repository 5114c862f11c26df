import pytest
import torch

from guidon.diffusion import convert
from guidon.guidance import Guidance
from guidon.guidance.rules import CFG, TangentialDamping
from toy_network import branches, draw, flow_level, of_images, plain


def damped_by_svd(cond, uncond):
    """The paper's projection, with torch's singular value decomposition: sample by sample."""
    rows = []
    for c, u in zip(cond, uncond, strict=True):
        _, _, directions = torch.linalg.svd(torch.stack([c.flatten(), u.flatten()]).double(), full_matrices=False)
        rows.append((directions[0] * (directions[0] @ u.flatten().double())).view(u.shape).float())
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("likeness", [0.0, 0.9, -0.7])
def test_tcfg_is_the_projection_on_the_first_singular_vector(seed, likeness):
    cond, other = draw(seed, seed + 100)
    uncond = likeness * cond + other
    damped = damped_by_svd(cond, uncond)
    found = TangentialDamping()(branches(cond=cond, uncond=uncond), 3.0)
    assert torch.allclose(found, damped + 3 * (cond - damped), atol=1e-4)
    half = TangentialDamping(0.5)(branches(cond=cond, uncond=uncond), 3.0)
    assert torch.allclose(half, (found + plain(branches(cond=cond, uncond=uncond), 3.0)) / 2, atol=1e-4)


def test_tcfg_equals_the_guider_of_diffusers():
    guiders = pytest.importorskip("diffusers.guiders.tangential_classifier_free_guidance")
    b = branches()
    assert torch.allclose(TangentialDamping()(b, 4.0), guiders.normalized_guidance(b.cond, b.uncond, 4.0), atol=1e-4)


def test_tcfg_leaves_branches_that_lie_on_a_line_or_name_no_direction():
    (cond,) = draw(0)
    for uncond in (0.5 * cond, -cond):
        b = branches(cond=cond, uncond=uncond)
        assert torch.allclose(TangentialDamping()(b, 3.0), plain(b, 3.0), atol=1e-5)
    right = of_images(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]]))
    assert torch.equal(TangentialDamping()(right, 3.0), CFG()(right, 3.0))
    zero = of_images(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert not TangentialDamping()(zero, 3.0).any()


@pytest.mark.parametrize("s", [0.6, 1.0])
def test_tcfg_of_a_flow_is_that_of_its_velocity_also_where_x_0_is_given(s):
    """As in ComfyUI, whose node TCFG works on x - x_0 too; at pure noise as well."""
    level, (cond, uncond, x) = flow_level(s), draw(4, 5, 3)
    expected, _ = Guidance(3, "all", "tcfg").combine(cond, uncond, x, level, parameterization="flow")
    given = [convert(branch, x, level, "flow", "x0") for branch in (cond, uncond)]
    found, _ = Guidance(3, "all", "tcfg").combine(*given, x, level, parameterization="x0")
    assert torch.allclose(convert(found, x, level, "x0", "flow"), expected, atol=1e-4)
