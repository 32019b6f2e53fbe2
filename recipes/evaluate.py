"""Score a saved prompt on a split of a task.

    clipvp evaluate runs/quickstart/prompt --data.name mnist5k [--split test]

The first argument is the saved prompt (--prompt). `accelerate launch -m clipvp evaluate ...` runs several processes.
"""

from clipvp.cli import parse, user_errors
from clipvp.cli.evaluate import EvaluateConfig, score_prompt


def main() -> None:
    config, _ = parse(__doc__, EvaluateConfig, positional="prompt")
    with user_errors():
        score_prompt(config)


if __name__ == "__main__":
    main()
