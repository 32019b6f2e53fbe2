"""Score a saved prompt on a split of a task.

accelerate launch recipes/evaluate.py --prompt runs/quickstart/prompt --data.name mnist5k [--split test]
"""

from clipvp.cli import parse, user_errors
from clipvp.cli.evaluate import EvaluateConfig, score_prompt


def main() -> None:
    config, _ = parse(__doc__, EvaluateConfig)
    with user_errors():
        score_prompt(config)


if __name__ == "__main__":
    main()
