"""Search config keys for the best validation accuracy; no trial sees a test image.

    clipvp sweep --config quickstart --config sweeps/linear_head [--sweep.trials 60] [--section.key value ...]

`sweep.space` names the keys. For several workers start the same command several times, also on machines that share the
output folder; another worker resumes the trial of a killed one. It writes best.yaml, sweep.json and report.html.
"""

from clipvp.cli import parse, user_errors
from clipvp.search.space import SweepRunConfig


def main() -> None:
    config, _ = parse(__doc__, SweepRunConfig, defaults={"output": "runs/sweep"})
    with user_errors():
        from clipvp.search.check import check_sweep

        check_sweep(config.base(), config.sweep)

        from clipvp import sweep
        from clipvp.cpu import prepare_cpu
        from clipvp.results.folder import PAGE
        from clipvp.results.sweep_files import BEST, trials_table

        prepare_cpu()
        found = sweep(config.base(), config.sweep)
        print(f"\n{trials_table(found.trials, config.sweep.space)}\n")
        print(f"best config  {found.output / BEST}\npage         {found.output / PAGE}")
        print(f"clipvp train --config {found.output / BEST} trains it again and scores the test images")


if __name__ == "__main__":
    main()
