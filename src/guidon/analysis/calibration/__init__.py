"""Fast settings of a model: a search for sampling that costs less, and a proof on other prompts that it is no worse.

Candidates are searched from coarse to fine on tuning prompts: sampler and steps, then where the steps lie, then fewer
calls of guidance's unconditional branch. The cheapest that seem no worse are sampled on prompts that had no part in the
choice. There, every metric must exclude a loss beyond a margin that was fixed before (non-inferiority).
"""

from .blocks import Measured, Sampler, read_block, store_block
from .candidates import OWN, Candidate, finer_candidates, first_candidates
from .judging import Judgement, Verified, check_margins, default_margin, guarded_metrics, verify
from .result import Calibration
from .search import calibrate

__all__ = [
    "OWN", "Calibration", "Candidate", "Judgement", "Measured", "Sampler", "Verified", "calibrate", "check_margins",
    "default_margin", "finer_candidates", "first_candidates", "guarded_metrics", "read_block", "store_block",
    "verify",
]  # fmt: skip
