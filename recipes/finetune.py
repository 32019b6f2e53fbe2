"""Full fine-tuning: every weight of the source trains, with a new head for the task's classes.

    clipvp finetune --source.name offline:lite0 --data.name mnist5k --data.max_train 1000

The sections prompt and mapping are not used. Defaults are the paper's: Adam 1e-4, weight decay 5e-4, cosine
per epoch. Images, in training and in testing, are only resized and cropped as the model's own preprocessing does.
"""

from clipvp.cli import parse, user_errors

PAPER = {"optim.lr": 1e-4, "optim.weight_decay": 5e-4, "optim.schedule": "cosine_epoch"}


def main() -> None:
    config, _ = parse(__doc__, defaults={**PAPER, "output": "runs/finetune"})
    with user_errors():
        from clipvp.results.folder import claim_output

        claim_output(config)

        from accelerate import Accelerator

        from clipvp import fit, load_task
        from clipvp.build import source_from_config, text_label_space
        from clipvp.cpu import prepare_cpu
        from clipvp.results.record import summary
        from clipvp.training.finetune import finetune_classifier

        prepare_cpu()
        accelerator = Accelerator()
        task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
        accelerator.print(f"{task}\n")
        source = source_from_config(
            config.source, lambda: text_label_space(config.mapping, task.class_names), accelerator.device
        )
        classifier = finetune_classifier(source, task.class_names)
        result = fit(classifier, task, config, accelerator)
        accelerator.print(summary(result.results, result.output))


if __name__ == "__main__":
    main()
