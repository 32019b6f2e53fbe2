"""Compare methods, tasks, sources or any config values over seeds, and say which to use.

    python recipes/compare.py path/to/photographs --data.shots 16
    python recipes/compare.py path/to/photographs --sources "[offline:lite0, offline:lite0-minilm]" --budget 20
    python recipes/compare.py --config recipes/configs/quickstart_ilm.yaml --methods [rlm,flm,ilm] --seeds [0,1,2]
    python recipes/compare.py --config recipes/configs/quickstart_ilm.yaml --vary '{optim.lr: [0.01, 0.05]}'

Without --methods and --vary it takes methods that fit the source, the cheap ones first, and ten minutes. Each run is a
folder of its own below --output; those that are finished are not run again, one that was interrupted goes on where it
stopped, and several processes with one --output share the runs out. Leaves compare.json, .md, .csv and .tex, pick.json,
pictures in plots/, and the picked prompt in best/.
"""

from typing import Any

from clipvp.cli import parse, user_errors


def extend(parser) -> None:
    parser.add_argument("--methods", type=list[str], default=[], help="Names of methods, or files.")
    parser.add_argument(
        "--tasks", type=list[str], default=[], help="Names of tasks, in the place of data.name."
    )
    parser.add_argument("--sources", type=list[str], default=[], help="In the place of source.name.")
    parser.add_argument("--vary", type=dict[str, list[Any]], default={}, help="Dotted keys and their values.")
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="One run a cell for each seed.")
    parser.add_argument(
        "--budget",
        type=float,
        default=None,
        help="Minutes; 10 where the methods are not named, else no limit.",
    )


def main() -> None:
    config, options = parse(
        __doc__, defaults={"output": "runs/compare"}, extend=extend, positional="data.name"
    )
    with user_errors():
        from accelerate import Accelerator

        from clipvp import compare
        from clipvp.cpu import prepare_cpu

        prepare_cpu()
        named = ("methods", "tasks", "sources", "vary", "seeds", "budget")
        accelerator = Accelerator()
        found = compare(config=config, accelerator=accelerator, **{name: options[name] for name in named})
        accelerator.print(f"\n{found}\n\nrun  {found.output}")


if __name__ == "__main__":
    main()
