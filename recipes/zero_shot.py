"""What a CLIP does without training: each template alone, their ensemble, and mappings without a prompt.

    python recipes/zero_shot.py --source.name offline:lite0-minilm --source.canvas 128 --data.name mnist5k

Every figure comes from one pass over the images. The section prompt is not used; mapping.templates names the set.
Leaves zero_shot.json in the output folder.
"""

from clipvp.cli import parse, user_errors
from clipvp.config.schema import MappingConfig
from clipvp.config.values import to_dict


def main() -> None:
    defaults = {"source.name": "offline:lite0-minilm", "output": "runs/zero_shot"}
    config, _ = parse(__doc__, defaults=defaults)
    with user_errors():
        from pathlib import Path

        from accelerate import Accelerator
        from tabulate import tabulate

        from clipvp import load_task
        from clipvp.build import source_from_config, text_label_space
        from clipvp.cpu import prepare_cpu
        from clipvp.data.batches import Batches
        from clipvp.files import write_json
        from clipvp.mappings.frequency import FrequencyMapping
        from clipvp.progress import Progress
        from clipvp.registry import UserError
        from clipvp.results.tables import mapping_rows, percent
        from clipvp.scoring.zero_shot import ZeroShot, best_template
        from clipvp.training.baselines import extract_features

        prepare_cpu()
        accelerator = Accelerator()
        if accelerator.num_processes > 1:
            raise UserError("recipes/zero_shot.py runs on one process; start it with python")
        task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
        accelerator.print(f"{task}\n")
        source = source_from_config(
            config.source, lambda: text_label_space(config.mapping, task.class_names), accelerator.device
        )
        if not source.labels.is_text:
            raise UserError(
                f"source.name: {source.name!r} has no text tower; recipes/zero_shot.py takes a CLIP"
            )
        splits = ["train", "val", "test"] if task.val is not None else ["train", "test"]
        data = {split: Batches(task.tensors(split, source.resize), accelerator) for split in splits}
        progress = Progress(config.train.progress)
        run = ZeroShot(
            source,
            {
                split: extract_features(
                    source, batches, config.train.batch_size, progress, f"features of {split}"
                )
                for split, batches in data.items()
            },
            {split: batches.labels.to(accelerator.device) for split, batches in data.items()},
        )
        templates = source.labels.templates
        singles = {split: run.single_templates(split) for split in splits if split != "train"}
        rows = {"first template": 0}
        if "val" in singles:
            rows["best template on validation"] = best_template(singles["val"])
        table = [
            [f"{name}: {templates[index]}", *(percent(scores[index]) for scores in singles.values())]
            for name, index in rows.items()
        ]
        mean = {split: sum(scores) / len(scores) for split, scores in singles.items()}
        table.append([f"mean over the {len(templates)} templates alone", *map(percent, mean.values())])
        ensemble = {split: run.ensemble(split) for split in singles}
        table.append([f"ensemble of {len(templates)} templates", *map(percent, ensemble.values())])
        results = {
            "task": task.name,
            "source": source.name,
            "split_hash": task.split_hash,
            "num": {split: len(batches) for split, batches in data.items()},
            "templates": list(templates),
            "single": singles,
            "chosen": rows,
            "mean": mean,
            "ensemble": ensemble,
        }
        for name, within in (
            ("unprompted mapping, any label", None),
            ("unprompted mapping, own labels", "class"),
        ):
            mapping = FrequencyMapping.from_config(
                MappingConfig(within=within), source, task.class_names, config.seed
            )
            mapping.to(accelerator.device)
            run.fit_mapping(mapping)
            scores = {split: run.mapped(split, mapping) for split in singles}
            results[name] = {
                **scores,
                "table": mapping_rows(mapping.links(), source.labels.names, task.class_names),
            }
            table.append([name, *map(percent, scores.values())])
        results["config"] = to_dict(config)
        path = Path(config.output) / "zero_shot.json"
        write_json(path, results)
        print(
            tabulate(
                table, headers=[f"{task.name}, top-1", *singles], disable_numparse=True, colalign=("left",)
            )
        )
        print(f"\neach template alone is in {path}")


if __name__ == "__main__":
    main()
