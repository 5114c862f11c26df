"""What does it cost to leave a channel unguided, and what share of the guidance does it carry? On a study's cells.

python benchmarks/left_out.py RESULTS --all "all"

The share of a channel is its part of the squared difference between the predictions with and without the prompt, summed
over the steps, averaged over clips. It is read from the traces of the setting that guides all channels; for settings
with a rotation, whose channels are random directions, from their own.
"""

import argparse
from pathlib import Path

import numpy as np

from guidon.metrics.statistics import compare, mean_interval
from guidon.studies.cells import cells_of, read_plan
from guidon.studies.results import results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a folder of `guidon study run`")
    parser.add_argument("--all", default="all", help="the setting that guides all channels")
    parser.add_argument("--metric", default="joint")
    arguments = parser.parse_args()
    plan = read_plan(arguments.results)
    values = {name: found[arguments.metric] for name, found in results(plan, arguments.results).items()}
    energies: dict[str, list[np.ndarray]] = {}
    for cell in cells_of(plan, arguments.results):
        with np.load(cell.folder / "trace.npz") as trace:
            if "difference" in trace:
                energies.setdefault(cell.setting, []).append((trace["difference"] ** 2).sum(0))
    shares = {name: np.mean([each / each.sum() for each in found], 0) for name, found in energies.items()}
    count = len(shares[arguments.all])
    print("shares: " + ", ".join(f"channel {c} {share:.1%}" for c, share in enumerate(shares[arguments.all])))
    heads = ("setting", "share left out", arguments.metric, f"minus {arguments.all}", "p")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    costs: list[tuple[float, float]] = []
    scale = plan.request(arguments.all, slice(1)).guidance.scale
    for name in plan.settings:
        guidance = plan.request(name, slice(1)).guidance
        left = [c for c in range(count) if c not in guidance.scales_for(count).guided]
        if name not in shares or not left or guidance.scale != scale:
            continue
        rotated = plan.settings[name].get("rotation") is not None
        share = float(shares[name if rotated else arguments.all][left].sum())
        found = compare(values[arguments.all], values[name])
        row = (name, f"{share:.1%}", mean_interval(values[name]), found.difference, f"{found.p:.2g}")
        print(f"| {' | '.join(map(str, row))} |")
        if len(left) == 1:
            costs.append((share, found.difference.value))
    share, cost = np.array(costs).T
    ranks = [np.argsort(np.argsort(each)) for each in (share, cost)]
    print(f"one left out: r = {np.corrcoef(share, cost)[0, 1]:.2f}, by rank {np.corrcoef(*ranks)[0, 1]:.2f}")


if __name__ == "__main__":
    main()
