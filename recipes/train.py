"""Train a visual prompt with a label mapping.

    clipvp train --config quickstart [--method NAME] [--section.key value ...]
    accelerate launch -m clipvp train --config quickstart

`accelerate launch` runs several processes. `clipvp list configs` and `clipvp list methods` name what comes with the
package; --config and --method take files too. `--print_config` shows the config that results, `--help` every key.
"""

from clipvp.cli import parse, user_errors


def main() -> None:
    config, _ = parse(__doc__)
    with user_errors():
        from clipvp.results.folder import claim_output

        claim_output(config)

        from accelerate import Accelerator

        from clipvp import build_classifier, fit, load_task
        from clipvp.artifact.pictures import save_pictures
        from clipvp.cpu import prepare_cpu
        from clipvp.results.record import summary

        prepare_cpu()
        accelerator = Accelerator()
        task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
        accelerator.print(f"{task}\n")
        classifier = build_classifier(config, task, accelerator.device)
        result = fit(classifier, task, config, accelerator)
        accelerator.print(summary(result.results, result.output))
        if accelerator.is_main_process:
            print(
                f"pictures: {', '.join(save_pictures(result, classifier, task))}, in {result.output / 'plots'}"
            )


if __name__ == "__main__":
    main()
