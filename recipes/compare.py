"""Compare methods, or any config values, over seeds: one table of mean and standard deviation.

    python recipes/compare.py --config recipes/configs/quickstart_ilm.yaml --methods [rlm,flm,ilm] --seeds [0,1,2]
    python recipes/compare.py --config recipes/configs/quickstart_ilm.yaml --vary '{optim.lr: [0.01, 0.05]}'

A method is a file in recipes/configs/methods. Every cell is a run folder of its own below --output; cells that
are finished are not run again and one that was interrupted goes on where it stopped. Leaves compare.json and
compare.md beside them.
"""

from pathlib import Path
from typing import Any

from clipvp.cli import parse, user_errors
from clipvp.registry import check_choice
from clipvp.results.compare import finished, grid, markdown, summarise, with_overrides

METHODS = Path(__file__).parent / "configs" / "methods"


def extend(parser) -> None:
    parser.add_argument(
        "--methods", type=list[str], default=[], help="Names of files in recipes/configs/methods."
    )
    parser.add_argument("--vary", type=dict[str, list[Any]], default={}, help="Dotted keys and their values.")
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="One run a cell for each seed.")


def read_method(name: str) -> dict[str, Any]:
    """Return the dotted keys and values of a method's file."""
    import yaml

    check_choice("--methods", name, sorted(path.stem for path in METHODS.glob("*.yaml")))
    sections = yaml.safe_load((METHODS / f"{name}.yaml").read_text())
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def main() -> None:
    config, options = parse(__doc__, defaults={"output": "runs/compare"}, extend=extend)
    with user_errors():
        output = Path(config.output)
        cells = grid({name: read_method(name) for name in options["methods"]}, options["vary"])
        plan = {
            cell.name: [
                with_overrides(
                    config,
                    cell.overrides,
                    seed,
                    output / cell.name.replace(" ", "_").replace("/", "-") / f"seed{seed}",
                )
                for seed in options["seeds"]
            ]
            for cell in cells
        }
        known = {
            name: [finished(run) for run in runs] for name, runs in plan.items()
        }  # a wrong folder is told first

        from accelerate import Accelerator

        from clipvp import build_classifier, fit, load_task
        from clipvp.cpu import prepare_cpu
        from clipvp.files import write_json, write_text

        prepare_cpu()
        accelerator = Accelerator()
        done: dict[str, list] = {name: [] for name in plan}
        for name, runs in plan.items():
            for run, results in zip(runs, known[name], strict=True):
                accelerator.print(f"== {name}, seed {run.seed}" + (": finished before" if results else ""))
                if results is None:
                    task = load_task(run.data, seed=run.seed, protocol=run.train.protocol)
                    accelerator.print(f"{task}\n")
                    classifier = build_classifier(run, task, accelerator.device)
                    results = fit(classifier, task, run, accelerator).results
                done[name].append(results)
        rows = summarise(done)
        table = markdown(rows)
        if accelerator.is_main_process:
            write_json(output / "compare.json", rows)
            write_text(output / "compare.md", table + "\n")
        accelerator.print(f"\n{table}\n\nrun  {output}")


if __name__ == "__main__":
    main()
