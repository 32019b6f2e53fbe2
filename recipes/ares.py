"""AReS: ask a service once for each training image, then learn a prompt on a local source.

    clipvp ares --service http://127.0.0.1:8000 --source.name offline:lite0 --data.name mnist5k

The service's probabilities are distilled into a linear head on the local source's features (distilled/). A padding
prompt and BLM+ are then trained on the local source with that head (ares/), which asks the service nothing. Two others
to compare with: a linear probe on the same local features, without service (linear_probe/); and with `--ask_tests true`
a linear layer on the service's answers, which asks about validation and test images too (on_answers/). All three train
on the task's labels.
`--train.max_queries` bounds the images that the service is asked about. It writes ares.json.
"""

from clipvp.cli import parse, user_errors

WHAT = {
    "ares": "prompt and BLM+ on the local source, with the head that was distilled from the answers",
    "linear_probe": "linear layer on the local source's features; needs no service",
    "on_answers": "linear layer on the service's answers; asks about each new image",
}
PAPER = {"prompt.kind": "padding", "mapping.kind": "blm_plus", "optim.lr": 0.01, "train.epochs": 200}


def extend(parser) -> None:
    parser.add_argument(
        "--service", type=str, default=None, help="Source that is asked, such as http://HOST:PORT."
    )
    parser.add_argument(
        "--service_options",
        type=dict,
        default={},
        help="Keys of the section source for the service, such as '{per_second: 5}'.",
    )
    parser.add_argument("--distil_epochs", type=int, default=100, help="Epochs of the head (100).")
    parser.add_argument(
        "--ask_tests", type=bool, default=False, help="Ask about validation and test images too."
    )


def service_config(name: str, options: dict):
    """Return the section ``source`` of the service."""
    from clipvp.config.parse import from_dict
    from clipvp.config.schema import SECTIONS
    from clipvp.registry import UserError

    given, section = {str(key): value for key, value in options.items()}, SECTIONS["source"]
    if "name" in given:
        raise UserError(f"--service_options: name is {given['name']!r}; give the service's name as --service")
    if unknown := sorted(given.keys() - section.keys(name)):
        raise UserError(f"--service_options: {section.unknown(unknown[0], name)}")
    try:
        return from_dict({"source": {"name": name, **given}}).source
    except UserError as error:
        raise UserError(f"--service_options: {error}") from error


def main() -> None:
    config, options = parse(__doc__, defaults={**PAPER, "output": "runs/ares"}, extend=extend)
    with user_errors():
        from dataclasses import fields, replace
        from pathlib import Path

        import torch
        from accelerate import Accelerator
        from tabulate import tabulate

        from clipvp import build_classifier, fit, load_task
        from clipvp.config.schema import MappingConfig, OptimConfig, PromptConfig, SourceConfig, TrainConfig
        from clipvp.cpu import prepare_cpu
        from clipvp.data.batches import Batches
        from clipvp.files import write_json
        from clipvp.progress import Progress
        from clipvp.registry import UserError, check_positive
        from clipvp.results.folder import RunFolder
        from clipvp.results.tables import percent
        from clipvp.sources.distilled import save_distilled
        from clipvp.training.distil import distil
        from clipvp.training.outputs import with_outputs
        from clipvp.training.processes import fail_together

        if not options["service"]:
            raise UserError("--service is missing; give the source to ask, such as http://127.0.0.1:8000")
        check_positive("--distil_epochs", options["distil_epochs"])
        asked = service_config(options["service"], options["service_options"])
        prepare_cpu()
        accelerator = Accelerator()
        output = Path(config.output)
        names = ["ares", "linear_probe", *(["on_answers"] if options["ask_tests"] else [])]
        # Before the service is asked, and before another run's head is replaced.
        with fail_together(accelerator):
            for name in names:
                folder = RunFolder(output / name, writes=accelerator.is_main_process)
                folder.check(resume=config.resume == "auto", overwrite=config.overwrite)
        progress = Progress(config.train.progress and accelerator.is_main_process)
        task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
        accelerator.print(f"{task}\n")
        splits = ("train", "val", "test") if options["ask_tests"] else ("train",)
        asks, limit = sum(len(task.images(split)) for split in splits), config.train.max_queries
        if limit is not None and asks > limit:
            raise UserError(
                f"train.max_queries: {limit} does not allow this run: it asks about {asks} images once"
            )
        # What follows asks the service nothing, or what was counted above.
        config = replace(config, train=replace(config.train, max_queries=None))
        on_logits = MappingConfig(kind="linear", takes="logits", standardise=True)
        plain = replace(config, prompt=PromptConfig(kind="none"), mapping=on_logits)

        def classifier_of(source: SourceConfig):
            return build_classifier(replace(plain, source=source), task, accelerator.device)

        def outputs(classifier, phase: str):
            """Return what the source gives of the training images as they are."""
            tensors = task.tensors("train", classifier.resize, progress=progress.shown)
            return with_outputs(
                classifier,
                Batches(tensors, accelerator),
                task.images("train"),
                accelerator,
                progress,
                cache_dir=task.cache_dir,
                phase=phase,
            )

        student = classifier_of(config.source)
        student.source.classifier_head()  # raises where there is none
        teacher = classifier_of(asked)
        answers = outputs(teacher, "answers to train")
        with torch.no_grad():  # what is kept of a source that has features are these
            logits = answers.outputs(teacher, answers.values)
        features = outputs(student, "features of train").values
        local, service = student.source, teacher.source
        weight, bias, left = distil(
            features, logits.softmax(1), epochs=options["distil_epochs"], seed=config.seed
        )
        agree = float(((features @ weight.T + bias).argmax(1) == logits.argmax(1)).float().mean())
        folder = output / "distilled"
        if accelerator.is_main_process:
            save_distilled(folder, local, weight.cpu(), bias.cpu(), service.labels.names, service.name)
        accelerator.wait_for_everyone()
        # The folder holds the revision, and the keys that only this source has.
        kept = {item.name for item in fields(SourceConfig)} - {"name", "revision"}
        head = SourceConfig(name=f"distilled:{folder}", **{key: getattr(config.source, key) for key in kept})

        runs = {"ares": replace(config, source=head)}
        runs["linear_probe"] = replace(
            plain,
            source=config.source,
            mapping=MappingConfig(kind="logistic"),
            train=replace(config.train, epochs=1),
        )
        if options["ask_tests"]:
            runs["on_answers"] = replace(
                plain,
                source=asked,
                optim=OptimConfig(lr=0.01, schedule="cosine"),
                train=TrainConfig(epochs=100, batch_size=64, progress=config.train.progress),
            )
        rows, found = [], {"asked": len(logits), "divergence": left, "top1_agreement": agree, "runs": {}}
        for name, run in runs.items():
            run = replace(run, output=str(output / name))
            classifier = build_classifier(run, task, accelerator.device)
            results = fit(classifier, task, run, accelerator).results
            best = results["metrics"]["test.best_val"]
            best = best if best["n"] else results["metrics"]["test.last"]
            found["runs"][name] = best
            asks = len(logits) if name != "linear_probe" else 0
            asks += results["queries"]["total"] - results["num_train"] if name == "on_answers" else 0
            rows.append([name, WHAT[name], percent(best["acc1"]), f"{asks:,}"])
        if accelerator.is_main_process:
            write_json(output / "ares.json", {**found, "service": service.name, "seed": config.seed})
        heads = ["", "what is trained", "test top-1", "images the service was asked about"]
        table = tabulate(rows, heads, disable_numparse=True)
        more = (
            "" if options["ask_tests"] else "\n--ask_tests true adds a linear layer on the service's answers"
        )
        accelerator.print(
            f"\nthe head's divergence from the answers is {left:.3f} nats, and its first label agrees with theirs on "
            f"{percent(agree)} of {len(logits)} images\n\n{table}\n{more}\nrun  {output}"
        )


if __name__ == "__main__":
    main()
