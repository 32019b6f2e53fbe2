"""What a CLIP does without training: each template alone, their ensemble, and mappings without a prompt.

    clipvp zero_shot --source.name offline:lite0-minilm --source.canvas 128 --data.name mnist5k

All figures come from one pass over the images; the features are kept for other methods. The section prompt is not
used; mapping.templates names the templates. It writes zero_shot.json in the output folder.
"""

from clipvp.cli import parse, user_errors
from clipvp.config.schema import MappingConfig, PromptConfig
from clipvp.config.values import to_dict


def main() -> None:
    defaults = {"source.name": "offline:lite0-minilm", "output": "runs/zero_shot"}
    config, _ = parse(__doc__, defaults=defaults)
    config.prompt = PromptConfig(kind="none")
    config.mapping = MappingConfig(templates=config.mapping.templates, class_names=config.mapping.class_names)
    with user_errors():
        from pathlib import Path

        from accelerate import Accelerator

        from clipvp import build_classifier, load_task
        from clipvp.cpu import prepare_cpu
        from clipvp.data.batches import Batches
        from clipvp.files import write_json
        from clipvp.progress import Progress
        from clipvp.registry import UserError
        from clipvp.scoring.zero_shot import ZeroShot, table, without_training
        from clipvp.training.outputs import with_outputs

        prepare_cpu()
        accelerator = Accelerator()
        task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
        accelerator.print(f"{task}\n")
        classifier = build_classifier(config, task, accelerator.device)
        source = classifier.source
        if not source.labels.is_text:
            raise UserError(f"source.name: {source.name!r} has no text tower; zero_shot takes a CLIP")
        progress = Progress(config.train.progress and accelerator.is_main_process)
        data = {
            split: with_outputs(
                classifier,
                Batches(task.tensors(split, classifier.resize, progress=progress.shown), accelerator),
                task.images(split),
                accelerator,
                progress,
                cache_dir=task.cache_dir,
                phase=f"features of {split}",
            )
            for split in (("train", "val", "test") if task.val is not None else ("train", "test"))
        }
        features, targets = (
            {split: getattr(batches, name) for split, batches in data.items()}
            for name in ("values", "labels")
        )
        results = without_training(ZeroShot(source, features, targets), config.seed)
        if accelerator.is_main_process:
            found = {"task": task.name, "source": source.name, "split_hash": task.split_hash, **results}
            path = Path(config.output) / "zero_shot.json"
            write_json(path, {**found, "config": to_dict(config)})
            print(f"{table(results, task.name)}\n\neach template alone is in {path}")


if __name__ == "__main__":
    main()
