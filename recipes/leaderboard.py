"""Make the tables of this project's pages again: run what they describe, keep the results, write the pages.

    python recipes/leaderboard.py --only features_lite0 --data "[cifar10=path/to/cifar10,gtsrb=path/to/gtsrb]"
    python recipes/leaderboard.py --do pages

It needs a copy of the repository. A table is a file recipes/results/NAME.yaml: config values, tasks, sources, methods,
seeds. Finished runs are never run again and a killed one is resumed, so the command may be repeated, also by several
processes and machines that share the --output folder. recipes/results/NAME.json holds the results and
which test images each run had right, without paths.
A page shows a table between two marks, as docs/pages/leaderboard.md does. In the same way docs/pages/speed.md shows
what recipes/benchmark.py wrote to recipes/results/speed/NAME.json. Figures that pages say by hand are looked for in the
files that their marks name (recipes/leaderboard/figures.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from clipvp.cli import parse, user_errors
from clipvp.registry import UserError, check_choice


@dataclass
class LeaderboardConfig:
    """Which tables, and where their data and runs lie.

    Args:
        only: Tables in their order, one or a list; all when empty.
        data: Where tasks and models lie that are not taken from the hub, a list of NAME=PLACE.
        output: Folder of the runs.
        do: run (what is not finished, then collect), collect (outcomes of finished runs into the JSON files and
            pictures, then pages) or pages (the tables of README and docs from the JSON files, and which figures no file
            gives).
    """

    only: str | list[str] = field(default_factory=list)
    data: str | list[str] = field(default_factory=list)
    output: str = "runs/leaderboard"
    do: str = "run"

    def __post_init__(self):
        self.only = [self.only] if isinstance(self.only, str) else self.only
        self.data = [self.data] if isinstance(self.data, str) else self.data
        check_choice("do", self.do, ["run", "collect", "pages"])


def main() -> None:
    config, _ = parse(__doc__, LeaderboardConfig)
    with user_errors():
        from leaderboard.benchmarks import benchmark_tables
        from leaderboard.comparisons import comparison_tables
        from leaderboard.figures import problems
        from leaderboard.outcomes import collect, read_outcomes, write_outcomes
        from leaderboard.pages import ROOT, markdown, pages, write_pages
        from leaderboard.pictures import draw_queries
        from leaderboard.summaries import summary_tables
        from leaderboard.tables import RESULTS, read_places, read_tables

        tables = read_tables(config.only)
        output, places = Path(config.output).expanduser(), read_places(config.data, tables)
        runs = {table.name: table.runs(output, places) for table in tables}
        failed = []
        if config.do == "run":
            from leaderboard.share import run_all

            from clipvp.cpu import prepare_cpu

            prepare_cpu()
            failed = run_all([run for every in runs.values() for run in every], output / "locks")
        if config.do != "pages":
            for table in tables:
                path = RESULTS / f"{table.name}.json"
                outcomes = collect(table, runs[table.name], read_outcomes(path))
                write_outcomes(path, outcomes)
                print(f"{path}: {sum(len(cell['runs']) for cell in outcomes['cells'])} runs")
                if table.picture:
                    picture = ROOT / "docs" / "pages" / "images" / table.picture
                    if draw_queries(table, runs[table.name], picture):
                        print(f"{picture}: drawn")
        shown = {
            table.name: markdown(table, read_outcomes(RESULTS / f"{table.name}.json"))
            for table in read_tables()
        }
        shown |= benchmark_tables(RESULTS) | comparison_tables(RESULTS) | summary_tables(RESULTS)
        for path in write_pages(shown, pages()):
            print(f"{path}: tables renewed")
        for problem in problems(pages()):
            print(problem)
        if failed:
            raise UserError(f"{len(failed)} runs failed, the first: {failed[0]}")


if __name__ == "__main__":
    main()
