"""Train on the first half of a task's classes, score both halves, and give the harmonic mean.

    clipvp base_to_new --config clip_quickstart --data.shots 16 --seed 1

Takes the config of clipvp train. The scores are also in results.json of the run on the base classes, as base_to_new.
The prompt is trained on no image of a new class. A mapping by frequency counts the training images of the new classes;
mapping.kind: identity (a CLIP with one template) needs no image of them.
"""

from clipvp.cli import parse, user_errors


def main() -> None:
    config, _ = parse(__doc__)
    with user_errors():
        from clipvp.results.folder import claim_output

        claim_output(config)

        from accelerate import Accelerator
        from tabulate import tabulate

        from clipvp.cpu import prepare_cpu
        from clipvp.results.tables import percent
        from clipvp.training.base_to_new import fit_base_to_new

        prepare_cpu()
        accelerator = Accelerator()
        found = fit_base_to_new(config, accelerator)
        rows = [
            ["base", percent(found.base.acc1), found.base.n],
            ["new", percent(found.new.acc1), found.new.n],
        ]
        rows.append(["harmonic mean", percent(found.harmonic_mean), None])
        headers = ["classes", "test accuracy", "images"]
        align = ("left", "right", "right")
        accelerator.print(tabulate(rows, headers, disable_numparse=True, colalign=align, missingval=""))
        accelerator.print(f"mapping of the new classes: {found.mapping}\nrun  {found.fit.output}")


if __name__ == "__main__":
    main()
