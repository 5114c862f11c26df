"""How the clips of a request are divided among ranks: whole batches to teams, and inside a team branches to ranks."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import InputError, setting
from ..core.ranks import Ranks, share_of
from ..guidance import Guidance
from ..request import Computation, Request


@dataclass(frozen=True)
class Division:
    """What one rank does of a request."""

    team: Ranks | None
    """The ranks that share the branches of its clips; None where it has all branches."""
    clips: slice
    """Its clips, of all those of the request; of every rank of a team the same."""
    computation: Computation
    """How they are to be computed."""
    leaders: slice
    """Those of the ranks that have the results, one of each team."""


def branch_count(guidance: Guidance) -> int:
    """How many branches of guidance can run on ranks of their own. One without the image stays beside "uncond"."""
    if guidance.is_conditional:
        return 1
    return 1 + guidance.needs_uncond + guidance.needs_negative + guidance.needs_weak


def divide(
    ranks: Ranks, request: Request, asked: Computation, *, in_one_batch: bool, anew: bool, batch_given: bool
) -> Division:
    """What this rank does of a request.

    The same clips as in one process: noise is a clip's own, and a batch is never divided between teams.

    Args:
        ranks: all of them.
        request: what to make.
        asked: how it would be computed by one process.
        in_one_batch: whether one team must have all clips.
        anew: whether the last bits are free. Where they are not, branches that were one batch stay one.
        batch_given: whether the user chose the size of batches. Else they are so small that every team has one.

    Raises:
        InputError: more ranks are to share the branches of a clip than it has.
    """
    count, branches = len(request.prompts) * len(request.samples), branch_count(request.guidance)
    if branches == 1 < (ranks.branches or 1):
        raise InputError(
            f"{setting('branch_ranks')} is {ranks.branches}, and without guidance there is one branch: leave it out, "
            f"or raise {setting('cfg_scale')}"
        )
    pieces = 1 if in_one_batch else -(-count // asked.batch) if batch_given else count
    size = ranks.branches_for(pieces, branches if anew or asked.sequential else 1)
    teams, own = len(ranks) // size, ranks.index // size
    batch = asked.batch if batch_given or in_one_batch or not anew else min(asked.batch, -(-count // teams))
    if in_one_batch:
        clips = slice(0, count if own == 0 else 0)
    else:
        batches = share_of(-(-count // batch), own, teams)
        clips = slice(min(count, batch * batches.start), min(count, batch * batches.stop))
    rows = batch if not anew else max(1, min(batch, clips.stop - clips.start))
    computation = asked.model_copy(update={"batch": rows, "sequential": asked.sequential or size > 1})
    return Division(ranks.teams(size) if size > 1 else None, clips, computation, slice(0, len(ranks), size))
