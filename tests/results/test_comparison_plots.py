"""Pictures of a comparison: every method is there with its seeds, and the front joins what no cheaper method beats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipvp.results.plots import plot_costs, plot_shots
from clipvp.results.plots.comparison import pareto_front, shots_of


def row_of(name: str, values, numbers=0, seconds=1.0, shots=16, **more):
    score = {"mean": float(np.mean(values)), "std": 0.1, "values": list(values)}
    return {
        "cell": name,
        "tested": "test.last",
        "test.last": score,
        "numbers": numbers,
        "train_seconds": seconds,
        "on_features": True,
        "pick": False,
        "seeds": list(range(len(values))),
        "settings": {"shots": shots},
        **more,
    }


ROWS = [
    row_of("zero_$hot", [0.4, 0.42]),
    row_of("probe", [0.5, 0.56], 1000, 2.0, pick=True),
    row_of("bad prompt", [0.3, 0.34], 20_000, 90.0, on_features=False),
    row_of("prompt", [0.6, 0.62], 20_000, 100.0, on_features=False),
]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points):
    front = pareto_front(points)

    def beaten(place):
        cost, score = points[place]
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    assert {points[place] for place in front} == {points[p] for p in range(len(points)) if not beaten(p)}
    assert front == sorted(front, key=lambda place: points[place][0])


@pytest.mark.parametrize("cost", ["numbers", "train_seconds"])
def test_costs_show_every_method_its_seeds_and_the_front(cost):
    figure = plot_costs(ROWS, cost)
    [ax] = figure.axes
    names = [text.get_text() for text in ax.texts]
    assert all(row["cell"] in names for row in ROWS)
    drawn = {round(float(y), 6) for line in ax.lines for y in line.get_ydata()}
    assert drawn >= {round(100 * v, 6) for row in ROWS for v in row["test.last"]["values"]}
    [front] = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert front.get_ydata() == pytest.approx([41, 53, 61])
    assert ("0" in names) == (cost == "numbers")  # nothing trains: a place of its own left of the others
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-2:] == ["picked by validation", "Pareto front"]
    figure.draw_without_rendering()


@pytest.mark.parametrize(
    "numbers", [[1000] * 12, [1000, 1100, 1300, 900] * 5, [10**place for place in range(6)] * 3]
)
def test_names_cover_neither_each_other_nor_a_mean(numbers):
    rows = [row_of(f"method {place}", [0.5 + place / 300], count) for place, count in enumerate(numbers)]
    figure = plot_costs(rows)
    figure.draw_without_rendering()
    [ax] = figure.axes
    boxes = [text.get_window_extent() for text in ax.texts]
    means = [ax.transData.transform(line.get_xydata()[0]) for line in ax.lines if line.get_zorder() == 4]
    assert len(boxes) == len(means) == len(rows)
    for place, box in enumerate(boxes):
        for other in boxes[place + 1 :]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            assert across <= 0 or min(box.y1, other.y1) - max(box.y0, other.y0) <= 3
        assert not any(box.x0 < x < box.x1 and box.y0 + 2 < y < box.y1 - 2 for x, y in means)


def test_shots_are_a_line_a_method():
    rows = [row_of(f"probe data.shots={k}", [0.1 * k, 0.1 * k + 0.1], shots=k) for k in (4, 1, 2)]
    rows += [row_of("data.shots=1 other", [0.2], shots=1)]
    assert list(shots_of(rows)) == ["probe"]
    figure = plot_shots(rows)
    [ax] = figure.axes
    [line] = [line for line in ax.lines if line.get_label() == "probe"]
    assert line.get_xdata() == pytest.approx([0, 1, 2]) and line.get_ydata() == pytest.approx([15, 25, 45])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "4"]


def test_without_anything_to_draw():
    with pytest.raises(ValueError, match="no row"):
        plot_costs([])
    with pytest.raises(ValueError, match="two numbers"):
        plot_shots(ROWS)
    with pytest.raises(ValueError, match="not one of"):
        plot_costs(ROWS, "size")
