"""Score a saved prompt on a split of a task.

accelerate launch recipes/evaluate.py --prompt runs/quickstart/prompt --data.name mnist5k [--split test]
"""

from dataclasses import dataclass, field

from clipvp.cli import parse, user_errors
from clipvp.config import DataConfig
from clipvp.registry import UserError, check_choice


@dataclass
class EvaluateConfig:
    """What to score on what.

    Args:
        prompt: Folder of the saved prompt.
        data: The task; its class names must be the prompt's.
        split: train, val or test.
        batch_size: Images at a time, a process.
        precision: Arithmetic of the frozen part (fp32, bf16, fp16).
        seed: The seed of a carved validation split or of a few-shot choice.
        json: File to write the scores to.
    """

    prompt: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    split: str = "test"
    batch_size: int = 128
    precision: str = "fp32"
    seed: int = 0
    json: str | None = None

    def __post_init__(self):
        check_choice("split", self.split, ["train", "val", "test"])
        check_choice("precision", self.precision, ["fp32", "bf16", "fp16"])
        if not self.prompt:
            raise UserError(
                "--prompt is empty; give the folder of a saved prompt, such as runs/quickstart/prompt"
            )


def main() -> None:
    config, _ = parse(__doc__, EvaluateConfig)
    with user_errors():
        from pathlib import Path

        from accelerate import Accelerator
        from tabulate import tabulate

        from clipvp import PromptedClassifier, evaluate, load_task
        from clipvp.files import write_json
        from clipvp.report import percent

        accelerator = Accelerator()
        classifier = PromptedClassifier.from_pretrained(
            config.prompt, precision=config.precision, device=accelerator.device
        )
        task = load_task(config.data, seed=config.seed)
        result = evaluate(
            classifier, task, config.split, batch_size=config.batch_size, accelerator=accelerator
        )
        scores = result.to_dict()
        rows = [
            [name, percent(share)] for name, share in zip(task.class_names, result.per_class(), strict=True)
        ]
        rows += [["", ""], ["top-1", percent(scores["acc1"])], ["top-5", percent(scores["acc5"])]]
        rows += [["mean per-class recall", percent(scores["mean_per_class_recall"])], ["images", scores["n"]]]
        accelerator.print(
            tabulate(rows, headers=[f"{task.name}, {config.split}", "accuracy"], disable_numparse=True)
        )
        if config.json and accelerator.is_main_process:
            write_json(Path(config.json), {"task": task.name, "split": config.split, **scores})


if __name__ == "__main__":
    main()
