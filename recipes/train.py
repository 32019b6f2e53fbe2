"""Train a visual prompt with a label mapping, or a head on the frozen features.

    clipvp train --data.name FOLDER
    clipvp train --config quickstart [--method NAME] [--section.key value ...]
    accelerate launch -m clipvp train --config quickstart

The first chooses source, canvas and method by what is in the folder, and prints its choice. The last runs several
processes. `clipvp list configs` and `clipvp list methods` list the names of --config and --method, which take files
too. `--print_config` prints the resulting config and ends.
"""

import sys

from clipvp.cli import parse, user_errors
from clipvp.cli.first_use import first_settings, first_source, go_on, is_first_use
from clipvp.config.parse import given_keys


def train(description: str, method: str | None = None) -> None:
    """Train as the command line says, by a method where it names none."""
    given = given_keys()
    chooses = method is None and is_first_use(given)
    arguments = sys.argv[1:]
    if method is not None and not any(word.partition("=")[0] == "--method" for word in arguments):
        arguments = ["--method", method, *arguments]
    defaults = {"source.name": first_source()} if chooses else None
    config, _ = parse(description, arguments=arguments, defaults=defaults)
    with user_errors():
        from clipvp.results.folder import claim_output

        claim_output(config)

        from accelerate import Accelerator

        from clipvp import build_classifier, fit, load_task
        from clipvp.artifact.pictures import pictures
        from clipvp.cpu import prepare_cpu
        from clipvp.results.record import summary

        prepare_cpu()
        accelerator = Accelerator()
        task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
        accelerator.print(f"{task}\n")
        if chooses:
            config, said = first_settings(config, task, given)
            accelerator.print(f"{said}\n")
        classifier = build_classifier(config, task, accelerator.device)
        result = fit(classifier, task, config, accelerator)
        accelerator.print(summary(result.results, result.output))
        if accelerator.is_main_process:
            print(f"{pictures(result, classifier, task)}\n\n{go_on(result.output)}")


def main() -> None:
    train(__doc__)


if __name__ == "__main__":
    main()
