import pytest
import torch

from guidon.core.errors import InputError
from guidon.guidance import Guidance
from guidon.guidance.rules import Autoguidance, SkipGuidance
from toy_network import branches, flow_level, plain


def test_autoguidance_pushes_away_from_the_weak_model_in_unconds_place():
    b = branches()
    assert torch.allclose(Autoguidance()(b, 3.0), b.cond + 2 * (b.cond - b.weak), atol=1e-5)
    assert not Autoguidance().needs_uncond
    assert torch.allclose(Autoguidance()(b, 3.0), plain(branches(uncond=b.weak), 3.0), atol=1e-5)


def test_autoguidance_shares_guidance_with_cfg():
    """The authors' mix: the scales w_u = (1 - a) (w - 1) + 1 and w_c = a (w - 1) + 1."""
    b, w, a = branches(), 4.0, 0.25
    of_uncond, of_weak = (1 - a) * (w - 1), a * (w - 1)
    expected = b.cond + of_uncond * (b.cond - b.uncond) + of_weak * (b.cond - b.weak)
    assert Autoguidance(a).needs_uncond
    assert torch.allclose(Autoguidance(a)(b, w), expected, atol=1e-5)


def test_skip_guidance_adds_its_own_term_to_plain_guidance():
    b = branches()
    expected = plain(b, 3.0) + 0.5 * (b.cond - b.weak)
    assert torch.allclose(SkipGuidance(weight=0.5)(b, 3.0), expected, atol=1e-5)


def test_the_blocks_of_skip_guidance():
    assert SkipGuidance().numbers(28) == (14,)
    assert SkipGuidance(blocks="9+8+9").numbers(28) == (8, 9)
    with pytest.raises(InputError, match="blocks=28 names block 28, but the network's are numbered 0 to 27"):
        SkipGuidance(blocks="28").numbers(28)


@pytest.mark.parametrize("rule", [Autoguidance(), SkipGuidance()])
def test_a_rule_without_its_weak_prediction_is_refused(rule):
    assert rule.needs_weak
    with pytest.raises(InputError, match=f"guidance {rule.name} needs a weak prediction"):
        rule(branches(weak=None), 3.0)


def test_at_the_neutral_setting_no_weak_prediction_is_asked():
    b = branches()
    for rule in (Autoguidance(0), SkipGuidance(0)):
        assert not rule.needs_weak
        assert rule.needs_uncond
        out, _ = Guidance(3.0, "all", rule).combine(b.cond, b.uncond, b.negative, flow_level(0.5))
        assert torch.equal(out, plain(b, 3.0))
