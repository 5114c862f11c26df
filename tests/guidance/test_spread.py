import pytest
import torch

from guidon.core.errors import InputError
from guidon.core.ranks import Ranks
from guidon.diffusion import NoiseLevel
from guidon.guidance import RULES, BlockSkip, Guidance, GuidanceTrace, RotatedGuidance, Sparing, random_rotation
from guidon.guidance.spread import Spread
from ranks import on_ranks
from toy_network import GENTLE, SHAPE, Near, Network, denoiser, latents, level_at

STEPS = (19, 12, 5, 0)
LATENTS = 4 * SHAPE[0] * SHAPE[1] * 2 * 16  # bytes of x
CHANNEL = LATENTS // 4


def run(guidance, ranks=None, learned=True, trace=False, levels=None, network=None, **options):
    """The guided predictions of some steps, on the first rank of a team or in one process."""
    network = network or Network(learned=learned)
    observe = GuidanceTrace() if trace else None
    guided = denoiser(guidance, network, batched=False, ranks=ranks, observe=observe, **options)
    if ranks is not None and not ranks.first:
        guided.serve(torch.device("cpu"))
        return None, network.rows, None
    x, found = latents(), []
    with guided.leading():
        for level in levels or [level_at(step) for step in STEPS]:
            found.append(guided(x, level))
            x = x - 0.1 * found[-1][:, :4]
        guided.finish()
    return torch.stack(found), network.rows, observe and observe.as_arrays()


def compared(ranks, guidance, **options):
    """On the first rank, whether a run on ranks is that of one process, bit for bit; on each, its calls and its bytes."""
    out, back = (dict(counted) for counted in (ranks.traffic.out, ranks.traffic.back))
    found, calls, _ = run(guidance, ranks, **options)
    moved = [
        {what: size - before.get(what, 0) for what, size in counted.items() if what != "results"}
        for counted, before in ((ranks.traffic.out, out), (ranks.traffic.back, back))
    ]
    alike = found is None or torch.equal(found, run(guidance, **options)[0])
    return alike, len(calls), moved[0].get("latents", 0), moved[1].get("predictions", 0)


def test_every_rule_gives_the_bits_of_one_process():
    guided = {name: Guidance(0.6 if name == "cfg++" else 3.0, 3, GENTLE.get(name, name)) for name in RULES}

    def work():
        with Ranks.join() as ranks:
            return {name: compared(ranks, guidance) for name, guidance in guided.items()}

    first, second = on_ranks(work)
    assert all(alike for alike, *_ in first.values())
    steps = len(STEPS)
    for name in guided:  # the weak network is another one, whose calls are not counted
        assert first[name][1] == steps * {"perp-neg": 2}.get(name, 1), name
        assert second[name][1] == steps * {"autoguidance": 0, "three-way": 2}.get(name, 1), name


def test_only_guided_channels_of_guided_steps_cross():
    cases = [  # guidance, options; then how many channels and steps cross
        (Guidance(3.0, 3), {}, 3, 4),
        (Guidance(3.0, 3), {"learned": False}, 3, 4),
        (Guidance(3.0, "only:3"), {}, 1, 4),
        (Guidance(3.0, "0,2"), {}, 2, 4),
        (Guidance([2.0, 1.0, 1.0, 3.0]), {}, 2, 4),
        (Guidance(3.0, 3, timing="interval:0.3,0.8"), {}, 3, 2),
        (Guidance(1.0, 3), {}, 0, 0),
        (Guidance(3.0, 3), {"trace": True}, 4, 4),
    ]

    def work():
        with Ranks.join() as ranks:
            return [compared(ranks, guidance, **options) for guidance, options, *_ in cases]

    first, second = on_ranks(work)
    for (guidance, options, channels, guided), of_first, of_second in zip(cases, first, second, strict=True):
        expected = (True, len(STEPS), guided * LATENTS, guided * channels * CHANNEL)
        assert of_first == expected, (guidance, options)
        assert of_second[1] == guided, (guidance, options)


@pytest.mark.parametrize(
    "guidance", [Guidance([3.0, 1.0, 3.0, 3.0]), RotatedGuidance(Guidance(3.0, 1), random_rotation(4, 1))]
)
def test_clips_are_guided_no_more_from_the_step_of_one_process_on(guidance):
    def run(ranks=None):
        guided = denoiser(guidance, Near(), batched=False, ranks=ranks, sparing=Sparing(adaptive=0.98))
        if ranks is not None and not ranks.first:
            guided.serve(torch.device("cpu"))
            return None
        with guided.leading():
            return torch.stack([guided(latents(), level_at(step)) for step in STEPS]), guided.memory.guided

    def work():
        with Ranks.join() as ranks:
            return run(ranks)

    (found, steps), _ = on_ranks(work)
    expected, alone = run()
    assert steps == alone < len(STEPS)
    assert torch.equal(found, expected)


def test_every_rank_is_told_at_how_many_steps_guidance_acted():
    guidance = Guidance(3.0, 3, timing="interval:0.3,0.8")

    def work():
        with Ranks.join() as ranks:
            guided = denoiser(guidance, Network(), batched=False, ranks=ranks)
            if not ranks.first:
                return guided.serve(torch.device("cpu"))
            with guided.leading():
                for step in STEPS:
                    guided(latents(), level_at(step))
            return guided.memory.guided

    assert on_ranks(work) == [2, 2]


def test_rotated_channels_cross_all_and_a_trace_is_that_of_one_process():
    rotated = RotatedGuidance(Guidance(3.0, 1), random_rotation(4, seed=1))

    def work():
        with Ranks.join() as ranks:
            alike = compared(ranks, rotated)
            *_, traced = run(Guidance(3.0, 2), ranks, trace=True)
            if traced is not None:
                *_, alone = run(Guidance(3.0, 2), trace=True)
                assert all((traced[name] == alone[name]).all() for name in alone)
            return alike

    first, _ = on_ranks(work)
    assert first[0]
    assert first[3] == len(STEPS) * LATENTS


def test_three_branches_are_dealt_to_two_ranks_or_to_three():
    assert Spread(Ranks((0, 1), 0), ["cond", "uncond", "negative"]).of(0) == ["cond", "negative"]
    assert Spread(Ranks((0, 1), 0), ["cond", "uncond", "imageless"]).of(1) == ["uncond", "imageless"]

    def work():
        with Ranks.join() as ranks:
            return compared(ranks, Guidance(3.0, 3, "perp-neg"))

    results = on_ranks(work, 3)
    assert results[0] == (True, len(STEPS), 2 * len(STEPS) * LATENTS, 2 * 3 * len(STEPS) * CHANNEL)
    assert [result[1] for result in results] == [len(STEPS)] * 3


def test_the_level_and_the_frames_that_are_clean_are_told():
    class Masked(Network):
        def __call__(self, x, level, cond):
            assert level.noisy is not None
            assert (level.timestep, level.alpha, level.sigma, level.progress) == (100.0, 0.6, 0.8, 0.9)
            return super().__call__(x * level.noisy[:, None, :, None, None], level, cond)

    noisy = torch.tensor([[False, True], [True, True]])
    levels = [NoiseLevel(100.0, 0.6, 0.8, 0.9, noisy=noisy)]

    def work():
        with Ranks.join() as ranks:
            return compared(ranks, Guidance(3.0, "all"), levels=levels, network=Masked())

    assert on_ranks(work)[0][0]


class Failing(Network):
    """Fails at its second call, where it is asked to."""

    def __init__(self, error, fails):
        super().__init__()
        self.error, self.fails = error, fails

    def __call__(self, x, level, cond):
        if self.fails and len(self.rows) == 1:
            raise self.error
        return super().__call__(x, level, cond)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_fails_on_one_rank_fails_on_all_and_the_next_run_works(rank):
    """After Ctrl-C, which is the last, there is no next run."""
    cases = [
        (InputError("the weights are odd"), "RankFailed: rank {}: the weights are odd"),
        (KeyError("absent"), "RankFailed: rank {}: KeyError: 'absent'"),
        (RuntimeError("CUDA out of memory"), "MemoryError: the memory of rank {} is full"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
    ]

    def work():
        found = []
        with Ranks.join() as ranks:
            for error, _ in cases:
                try:
                    run(Guidance(3.0, 3), ranks, network=Failing(error, ranks.index == rank))
                    said = "nothing"
                except BaseException as caught:
                    said = f"{type(caught).__name__}: {caught}"
                found.append((said, isinstance(error, KeyboardInterrupt) or compared(ranks, Guidance(3.0, 3))[0]))
        return found

    results = on_ranks(work)
    assert results[rank] == [(f"{type(error).__name__}: {error}", True) for error, _ in cases]
    assert results[1 - rank] == [(there.format(rank), True) for _, there in cases]


def test_skipped_blocks_are_skipped_on_another_rank(monkeypatch):
    class Blocks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
            self.rows = []

        def forward(self, x, level, cond):
            self.rows.append(len(x))
            for block in self.blocks:
                x = block(x) + cond.value.view(-1, 1, 1, 1, 1)
            return x

    def work():
        with Ranks.join() as ranks, torch.inference_mode():
            network = Blocks()
            options = {"network": network, "weak": BlockSkip([network.blocks[1]])}
            return compared(ranks, Guidance(3.0, "all", "stg"), **options)

    assert on_ranks(work)[0][0]
