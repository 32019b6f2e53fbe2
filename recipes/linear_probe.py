"""The linear probe: a new head on the frozen source's features, which are computed once.

    python recipes/linear_probe.py --source.name offline:lite0 --data.name mnist5k --data.max_train 1000

The sections prompt and mapping are not used. Defaults are the paper's: Adam 0.1 on the head, 200 epochs.
"""

from clipvp.cli import parse, user_errors

PAPER = {"optim.lr": 0.1, "train.epochs": 200}


def main() -> None:
    config, _ = parse(__doc__, defaults={**PAPER, "output": "runs/linear_probe"})
    with user_errors():
        from clipvp.registry import UserError
        from clipvp.results.folder import claim_output

        if config.train.augment != "none":
            raise UserError(
                f"train.augment: {config.train.augment} does not go with a linear probe, whose features are computed "
                "once; give none"
            )
        run = claim_output(config, resumes=False)

        from accelerate import Accelerator

        from clipvp import load_task
        from clipvp.build import source_from_config, text_label_space
        from clipvp.cpu import prepare_cpu
        from clipvp.data.batches import Batches
        from clipvp.progress import Clock, Progress
        from clipvp.results.record import build_results, summary
        from clipvp.training.baselines import extract_features, fit_linear_probe, head_classifier

        prepare_cpu()
        accelerator, clock, progress = Accelerator(), Clock(), Progress(config.train.progress)
        if accelerator.num_processes > 1:
            raise UserError("recipes/linear_probe.py runs on one process; start it with python")
        task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
        accelerator.print(f"{task}\n")
        source = source_from_config(
            config.source, lambda: text_label_space(config.mapping, task.class_names), accelerator.device
        )
        with clock("data"):
            splits = ["train", "val", "test"] if task.val is not None else ["train", "test"]
            data = {
                split: Batches(task.tensors(split, source.resize, progress=progress.shown), accelerator)
                for split in splits
            }
        run.start(config, config.overwrite)
        classifier = head_classifier(source, task.class_names, train_network=False)
        with clock("features"):
            features = {
                split: extract_features(
                    source, batches, config.train.batch_size, progress, f"features of {split}"
                )
                for split, batches in data.items()
            }
            labels = {split: batches.labels.to(accelerator.device) for split, batches in data.items()}
        with clock("training"):
            test, best = fit_linear_probe(classifier, features, labels, config, accelerator)
        results = build_results(
            config, classifier, task, data, best, test, clock, accelerator, "linear probe"
        )
        run.write_results(results)
        print(summary(results, run.path))


if __name__ == "__main__":
    main()
