"""A saved prompt scored on a split of a task, as a table on the terminal: one process or many."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..config.schema import DataConfig
from ..registry import UserError, check_choice


@dataclass
class EvaluateConfig:
    """What to score on what.

    Args:
        prompt: Folder or hub id of the saved prompt.
        source: Overrides the saved source name.
        data: The task; its class names must be the prompt's, or some of them.
        split: train, val, test or all; when empty the data's own test split, or all images where it has no splits, or
            the carved test images where the prompt was trained on the data.
        among: Which classes are chosen from, prompt (all of the prompt's) or task (those of the data alone).
        batch_size: Images at a time, a process.
        precision: Arithmetic of the frozen part (fp32, bf16, fp16).
        seed: The seed of a carved validation split or of a few-shot choice.
        json: File to write the scores to.
        plugins: Python files or modules that register methods of your own; see docs/pages/extend.md.
    """

    prompt: str = ""
    source: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    split: str | None = None
    among: str = "prompt"
    batch_size: int = 128
    precision: str = "fp32"
    seed: int = 0
    json: str | None = None
    plugins: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.split is not None:
            check_choice("split", self.split, ["train", "val", "test", "all"])
        check_choice("among", self.among, ["prompt", "task"])
        check_choice("precision", self.precision, ["fp32", "bf16", "fp16"])
        if not self.prompt:
            raise UserError(
                "--prompt is empty; give the folder of a saved prompt, such as runs/quickstart/prompt"
            )


def score_prompt(config: EvaluateConfig) -> None:
    """Score and print the accuracy of each class and of all; write them to ``config.json`` if it names a file."""
    from accelerate import Accelerator
    from tabulate import tabulate

    from ..cpu import prepare_cpu
    from ..data.task import data_name
    from ..files import write_json
    from ..model import PromptedClassifier
    from ..results.tables import SCORE_COLUMNS, percent
    from ..scoring.scores import evaluate

    prepare_cpu()
    accelerator = Accelerator()
    classifier = PromptedClassifier.from_pretrained(
        config.prompt, source=config.source, precision=config.precision, device=accelerator.device
    )
    result = evaluate(
        classifier,
        config.data,
        config.split,
        among=config.among,
        batch_size=config.batch_size,
        accelerator=accelerator,
        seed=config.seed,
    )
    scores = result.to_dict()
    pairs = list(zip(result.class_names, result.per_class(), strict=True))
    rows = [[name, percent(share)] for name, share in pairs if share is not None]
    if without := len(pairs) - len(rows):
        rows.append([f"({without} more classes, without images here)", ""])
    rows.append(["", ""])
    for key, column in SCORE_COLUMNS.items():
        rows.append([column, scores[key] if key == "n" else percent(scores[key])])
    accelerator.print(f"scored: {result.scored}\n")
    accelerator.print(tabulate(rows, headers=["class", "accuracy"], disable_numparse=True))
    if config.json and accelerator.is_main_process:
        named = {"task": data_name(config.data), "split": config.split, "among": config.among}
        write_json(Path(config.json).expanduser(), {**named, "scored": result.scored, **scores})
