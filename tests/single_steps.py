"""The recorded single steps of the original process: their names, and what their network predicts."""

from guidon.diffusion import Process

STEP_CASES = [
    f"step/{kind}_{steps}"
    for kind in ("learned_range", "fixed_large", "fixed_small", "predict_xstart")
    for steps in ("50", "full")
]


def process_of(case, clip=False):
    if case["variance"] == "predict_xstart":
        return Process("x0", "learned_range", clip)
    return Process("eps", case["variance"], clip)
