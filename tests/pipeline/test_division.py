import warnings

import numpy as np
import pytest

import guidon
from guidon.core.errors import InputError
from guidon.core.ranks import Ranks
from guidon.guidance import Guidance, GuidanceTrace
from guidon.pipeline.division import branch_count, divide
from guidon.pipeline.generation import Generation
from guidon.request import Computation
from ranks import on_ranks

PROMPTS = [f"a {colour} circle moves left on a white background" for colour in ("red", "blue", "green", "yellow")]
STEPS = {"steps": 2, "seed": 4, "timing": "constant"}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return guidon.load(tiny_model, device="cpu")


def divided(pipe, size, prompts=1, *, branches=None, asked=None, samples=1, whole=False, anew=True, given=False, **own):
    """What each of ``size`` ranks does: its clips and their team."""
    request = pipe.plan(PROMPTS[:prompts], range(samples), **STEPS | own)
    asked = asked or Computation(batch=min(8, prompts * samples))
    return [
        divide(
            Ranks(range(size), k, branches=branches), request, asked, in_one_batch=whole, anew=anew, batch_given=given
        )
        for k in range(size)
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("prompts", [1, 2, 3, 4])
@pytest.mark.parametrize("given", [False, True])
def test_every_clip_is_made_once_and_in_order(pipe, size, prompts, given):
    found = divided(pipe, size, prompts, given=given)
    made = [clip for each in found[found[0].leaders] for clip in range(prompts)[each.clips]]
    assert made == list(range(prompts))
    for each in found:
        assert each.clips == found[each.team.members[0] if each.team else found.index(each)].clips
        assert each.computation.sequential == (each.team is not None)


def test_more_clips_than_ranks_are_shared_and_batches_stay_whole(pipe):
    four = divided(pipe, 2, 4)
    assert [(each.clips, each.computation.batch, each.team) for each in four] == [
        (slice(0, 2), 2, None), (slice(2, 4), 2, None)
    ]  # fmt: skip
    whole = divided(pipe, 2, 4, given=True)  # a batch of 4 was asked for: its branches are shared
    assert [(each.clips, each.computation.batch, each.computation.sequential) for each in whole] == [
        (slice(0, 4), 4, True), (slice(0, 4), 4, True)
    ]  # fmt: skip
    three = divided(pipe, 2, 4, asked=Computation(batch=3), given=True, branches=1)
    assert [(each.clips, each.computation.batch) for each in three] == [(slice(0, 3), 3), (slice(3, 4), 1)]


def test_what_must_be_one_batch_is_made_by_one_team(pipe):
    assert [each.clips for each in divided(pipe, 4, 4, whole=True)] == [slice(0, 4)] * 2 + [slice(0, 0)] * 2


def test_branches_that_were_one_batch_stay_one_where_the_bits_are_to_be_the_same(pipe):
    batched, sequential = (Computation(batch=3, sequential=how) for how in (False, True))
    again = divided(pipe, 2, asked=batched, anew=False)
    assert (again[0].clips, again[0].computation, again[0].team) == (slice(0, 1), batched, None)
    assert again[1].clips == slice(1, 1)
    assert all(each.team and each.computation == sequential for each in divided(pipe, 2, asked=sequential, anew=False))


def test_how_many_branches_a_rule_has_and_more_ranks_than_these_are_refused(pipe):
    assert [branch_count(Guidance(scale, rule=rule)) for scale, rule in ((1, "cfg"), (3, "cfg"), (3, "stg"))] == [
        1,
        2,
        3,
    ]
    with pytest.raises(InputError, match="branch_ranks is 4, and guidance has 2 branches here: give 2 at most"):
        divided(pipe, 4, branches=4)
    with pytest.raises(InputError, match="without guidance there is one branch"):
        divided(pipe, 2, branches=2, cfg_scale=1.0)


def test_ranks_give_the_clips_of_one_process(pipe):
    def work():
        with guidon.Ranks.join() as ranks:
            alike = []
            for size, prompts, own in (
                (1, PROMPTS[0], {"sequential": True}),  # branches on two ranks
                (
                    1,
                    PROMPTS[0],
                    {"sequential": True, "sampler": "dpm-solver", "guidance": "apg", "cfg_channels": "0,2"},
                ),
                (1, PROMPTS[0], {"sequential": True, "negative_prompt": "a blue square", "guidance": "perp-neg"}),
                (1, PROMPTS[0], {"sequential": True, "guidance": "stg"}),
                (1, PROMPTS[0], {"cfg_scale": 1.0}),
                (2, PROMPTS, {}),  # two clips on each rank
                (1, PROMPTS[:2], {"seed_per_prompt": True}),
                (1, PROMPTS[0], {"sequential": True, "loop": 2, "condition_frames": 4}),
            ):
                asked = {name: value for name, value in own.items() if name != "sequential"}
                made = _listed(pipe(prompts, ranks=ranks, **STEPS | asked))
                alone = _listed(pipe(prompts, batch_size=size, **STEPS | own))
                alike.append(
                    all(
                        np.array_equal(a.frames, b.frames) and a.manifest == b.manifest
                        for a, b in zip(made, alone, strict=True)
                    )
                )
            return alike

    assert on_ranks(work) == [[True] * 8] * 2


def test_ranks_with_unequal_shares_warn_only_where_memory_ran_out(pipe, monkeypatch):
    """Three clips are two and one. A network that counts as too large for two clips makes one at a time."""
    whole = Generation._sample

    def small(self, network, weak, numbers, *rest):
        if len(numbers) > 1:
            raise MemoryError
        return whole(self, network, weak, numbers, *rest)

    def work():
        with guidon.Ranks.join() as ranks:
            said = []
            for sample in (whole, small):
                monkeypatch.setattr(Generation, "_sample", sample)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    pipe(PROMPTS[0], num_samples=3, ranks=ranks, **STEPS | {"cfg_scale": 1.0})
                said.append([str(each.message) for each in caught])
            return said

    enough, full = zip(*on_ranks(work), strict=True)
    assert enough == ([], [])
    assert "memory ran out, so the clips were made in smaller parts: 1 denoised together in place of 2" in full[0][0]


def test_latents_traces_and_callbacks_on_ranks_are_those_of_one_process(pipe):
    def work():
        with guidon.Ranks.join() as ranks:
            traces = GuidanceTrace(), GuidanceTrace()
            options = STEPS | {"sequential": True, "callback_on_step_end": _halve}
            several, alone = (
                pipe(PROMPTS[:2], output_type="latent", trace=trace, ranks=those, **options)
                for those, trace in ((ranks, traces[0]), (None, traces[1]))
            )
            found, expected = (trace.as_arrays() for trace in traces)
            same = all(np.array_equal(found[name], expected[name]) for name in expected)
            return bool((several.frames == alone.frames).all()), same

    assert on_ranks(work) == [(True, True), (True, False)]  # a trace is filled on the first rank


def test_no_rank_calls_a_run_that_was_stopped_unguided(pipe):
    def work():
        with guidon.Ranks.join() as ranks, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipe(PROMPTS[0], ranks=ranks, callback_on_step_end=_stop, **STEPS | {"timing": "interval:0.5,1"})
        return [str(each.message) for each in caught]

    assert on_ranks(work) == [[], []]


def test_four_ranks_are_two_shares_of_two_branches(pipe):
    def work():
        with guidon.Ranks.join(branches=2) as ranks:
            made = pipe(PROMPTS[:2], ranks=ranks, **STEPS)
            alone = pipe(PROMPTS[:2], batch_size=1, sequential=True, **STEPS)
            alike = all(np.array_equal(a.frames, b.frames) for a, b in zip(made, alone, strict=True))
            return alike, bool(ranks.traffic.out["latents"]), bool(ranks.traffic.out["predictions"])

    assert on_ranks(work, 4) == [(True, True, False), (True, False, True)] * 2


def _halve(pipe, step, timestep, kept):
    return {"latents": kept["latents"] * 0.5}


def _stop(pipe, step, timestep, kept):
    pipe._interrupt = True


def _listed(made):
    return made if isinstance(made, list) else [made]
