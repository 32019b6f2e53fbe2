"""Compare methods, tasks, sources or any config values over seeds, and say which to use.

    clipvp compare path/to/photos --data.shots 16
    clipvp compare path/to/photos --sources "[offline:lite0, offline:lite0-minilm]" --budget 20
    clipvp compare --config quickstart_ilm --methods [rlm,flm,ilm] --seeds [0,1,2]
    clipvp compare --config quickstart_ilm --vary '{optim.lr: [0.01, 0.05]}'

Without --methods and --vary it chooses methods that fit the source, runs the quick ones first, and takes ten minutes.
Each run is a folder of its own below --output. Finished runs are not run again, an interrupted one is resumed, and
several processes with one --output divide the runs among them. It writes compare.json, .md, .csv and .tex, pick.json,
pictures in plots/, and the picked prompt in best/.
"""

from typing import Any

from clipvp.cli import parse, user_errors


def extend(parser) -> None:
    parser.add_argument("--methods", type=list[str], default=[], help="Names of methods, or files.")
    parser.add_argument(
        "--tasks", type=list[str], default=[], help="Names of tasks, in the place of data.name."
    )
    parser.add_argument(
        "--sources", type=list[str], default=[], help="Names of sources, in the place of source.name."
    )
    parser.add_argument("--vary", type=dict[str, list[Any]], default={}, help="Dotted keys and their values.")
    parser.add_argument(
        "--seeds", type=list[int], default=[0, 1, 2], help="Each method is run with each of these seeds."
    )
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
