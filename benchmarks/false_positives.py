"""How often is a setting told apart from itself, and a planted difference found? On cells of a study with two seeds.

python benchmarks/false_positives.py RESULTS --studies 200

Both arms of every study are the same setting: for each prompt, drawn with replacement, one seed's value goes to either
arm by the toss of a coin. Then the second arm's values are shifted by d_z standard deviations of the differences.
"""

import argparse
from pathlib import Path

import numpy as np

from guidon.metrics.statistics import compare, paired_power, share_interval
from guidon.studies.cells import read_plan
from guidon.studies.results import results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a folder of `guidon study run`")
    parser.add_argument("--setting", help="the baseline of its primary contrast, if left out")
    parser.add_argument("--metric", action="append", help="repeatable; the primary one, if left out")
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--d-z", type=float, default=0.3)
    arguments = parser.parse_args()
    plan = read_plan(arguments.results)
    if plan.seeds < 2:
        parser.error(f"{arguments.results} has {plan.seeds} seed: a study with two is needed")
    values = results(plan, arguments.results)[arguments.setting or plan.primary.baseline]
    count = len(plan.captions)
    expected = paired_power(arguments.d_z, count)
    print(f"{arguments.studies} studies of {count} prompts; power {expected:.2f} for d_z = {arguments.d_z:g}")
    print("| metric | told apart from itself | planted difference found |\n|---|---|---|")
    for name in arguments.metric or [plan.primary.metric]:
        pairs = values[name][:, :2]
        pairs = pairs[np.isfinite(pairs).all(1)]
        planted = arguments.d_z * np.sqrt((np.diff(pairs) ** 2).mean())  # with the coin's, differences have mean 0
        rng = np.random.default_rng(0)
        apart, found = 0, 0
        for k in range(arguments.studies):
            drawn = rng.permuted(pairs[rng.integers(len(pairs), size=count)], axis=1)
            a, b = drawn.T
            apart += compare(a, b, seed=k).p < 0.05
            found += compare(a, b + planted, seed=k).p < 0.05
        print(f"| {name} | {share_interval(apart, arguments.studies)} | {share_interval(found, arguments.studies)} |")


if __name__ == "__main__":
    main()
