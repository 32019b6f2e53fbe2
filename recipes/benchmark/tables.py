"""What was measured, as tables for the terminal and for Markdown. Made from the file's content alone."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate


def table(part: str, results: dict[str, Any]) -> str:
    """Return the table of one part of a benchmark's results."""
    headers, rows, notes = _TABLES[part](results)
    sides = ["left", *["right"] * (len(headers) - 1)]
    lines = tabulate(rows, headers, "pipe", colalign=sides, disable_numparse=True, missingval="-")
    return "\n\n".join([lines, *notes])  # in Markdown each note is a paragraph


Table = tuple[list[str], list[list[Any]], list[str]]


def _step(results: dict[str, Any]) -> Table:
    step = results["step"]
    rows = [
        [
            name,
            f"{1e3 * row['seconds']:.1f}",
            f"{row['images_per_second']:.1f}",
            _ratio(row["over_bare"], row["spread"]),
        ]
        for name, row in step["rows"].items()
    ]
    speed, ceiling = step["bare_flops_per_second"], step["matmul_flops_per_second"]
    note = f"bare step: {speed / 1e9:.0f} GFLOP/s, {100 * speed / ceiling:.0f} % of a large matrix product's"
    if "copied_bytes_per_second" in step:  # earlier files have none
        note += f"; a large copy: {step['copied_bytes_per_second'] / 1e9:.0f} GB/s"
    if results["device"]["type"] == "cpu" and "matmul_one_thread_over_all" in step:
        gain, threads = step["matmul_one_thread_over_all"], results["device"]["threads"]
        note += f"; {threads} threads multiply matrices {gain:.1f} times as fast as one"
    return ["", "ms a batch", "images/s", "over bare"], rows, [f"{note}; {step['rounds']} rounds"]


def _memory(results: dict[str, Any]) -> Table:
    if results["memory"] is None:
        return ["", "MB at the peak"], [], ["this system does not tell"]
    sizes = results["memory"]["bytes"]
    rows = [[name, f"{size / 1e6:.0f}", f"{size / sizes['bare']:.2f}"] for name, size in sizes.items()]
    return ["", "MB at the peak", "over bare"], rows, []


def _epoch(results: dict[str, Any]) -> Table:
    epoch = results["epoch"]
    names = ["floor", "exact", "running", "textbook"]
    phases = {phase: None for name in names for phase in epoch["seconds_by_phase"][name]}
    rows = [[phase, *(f"{epoch['seconds_by_phase'][name][phase]:.3f}" for name in names)] for phase in phases]
    rows.append(["all", *(f"{epoch['seconds'][name]:.3f}" for name in names)])
    against = {
        name: _ratio(results[f"textbook_over_{name}"], epoch["spread"][name]) for name in epoch["spread"]
    }
    rows.append(["textbook over it", None, against["exact"], against["running"], "1"])
    images, wrong = epoch["images"], epoch["images_counted_differently"]
    same = "the same counts" if results["counts_equal"] else f"{wrong} images counted differently"
    notes = [
        f"seconds; {images['train']} images trained on, {images['scored']} scored; {epoch['rounds']} rounds",
        f"textbook and exact: {same} over {epoch['labels_seen']} source labels, "
        f"prompts apart by {100 * max(epoch['prompts_apart']):.2g} % of an epoch's way at most",
    ]
    if core := epoch["core"]:
        notes.append(
            f"with the core kept: {core['bytes_an_image'] / 1e3:.0f} kB an image, built in {core['seconds']:.1f} s"
        )
    return ["phase", *names], rows, notes


def _data(results: dict[str, Any]) -> Table:
    speeds = results["data"]["images_per_second"]
    return ["", "images/s"], [[name, f"{speed:,.0f}"] for name, speed in speeds.items()], []


def _text(results: dict[str, Any]) -> Table:
    text = results["text"]
    rows = [[state, f"{seconds:.2f}"] for state, seconds in text["seconds"].items()]
    return [f"{text['source']}, {text['texts']} texts", "seconds"], rows, []


def _text_bank(results: dict[str, Any]) -> Table:
    bank = results["text_bank"]
    rows = []
    for name, row in bank["spaces"].items():
        peak = f"{row['peak_bytes'] / 1e6:.0f}" if row["peak_bytes"] is not None else None
        sizes = [peak, f"{row['embedding_bytes'] / 1e6:.0f}"]
        times = [f"{1e3 * seconds:.1f}" for seconds in row["batch_seconds"].values()]
        rows.append(
            [name, f"{row['texts']:,}", *(f"{each:.1f}" for each in row["seconds"].values()), *sizes, *times]
        )
    (first, *_) = bank["spaces"].values()
    headers = [
        "",
        "texts",
        *(f"{state}, s" for state in first["seconds"]),
        "MB at the peak",
        "MB of embeddings",
    ]
    headers += [f"{name}, ms" for name in first["batch_seconds"]]
    return (
        headers,
        rows,
        [f"{bank['source']}; milliseconds for {bank['images']} images whose features are there"],
    )


def _assignment(results: dict[str, Any]) -> Table:
    loops = results["assignment"]["loop_seconds"]
    rows = [
        [size, f"{1e3 * seconds:.2f}", f"{1e3 * loops[size]:.2f}"]
        for size, seconds in results["assign_seconds"].items()
    ]
    return ["labels x classes", "ms", "loop over the whole matrix, ms"], rows, []


def _architectures(results: dict[str, Any]) -> Table:
    found = results["architectures"]
    sizes = list(dict.fromkeys(size for row in found.values() for size in row["over_bare"]))
    rows = [
        [name, f"{1e3 * row['bare_seconds']:.0f}", f"{row['over_bare_without_sharing']:.2f}"]
        + [f"{row['over_bare'][size]:.2f}" if size in row["over_bare"] else None for size in sizes]
        for name, row in found.items()
    ]
    return ["step over bare", "bare, ms", "not shared", *(f"{size} pixels" for size in sizes)], rows, []


def _sharing(results: dict[str, Any]) -> Table:
    found = results["sharing"]
    ways = list(
        dict.fromkeys(way for rows in found.values() for row in rows.values() for way in row["over_bare"])
    )
    rows = [
        [name, label]
        + [
            f"{row['over_bare'][way]:.2f} ({row['operations_over_bare'][way]:.2f})"
            if way in row["over_bare"]
            else None
            for way in ways
        ]
        + [f"{row['kept_bytes_an_image'] / 1e3:.0f}" if row["kept_bytes_an_image"] else None]
        for name, rows in found.items()
        for label, row in rows.items()
    ]
    headers = ["step over bare", "prompt", *ways, "kept, kB an image"]
    return headers, rows, ["in brackets: operations over the bare step's", _sharing_note(results)]


def _sharing_note(results: dict[str, Any]) -> str:
    """Return how many rounds there were, how far they are apart, and the clock on the wall against the processor's."""
    rows = [row for each in results["sharing"].values() for row in each.values()]
    widest = max((high - low) / 2 for row in rows for low, high in row["spread"].values())
    apart = max(
        abs(row["over_bare_wall"][way] / ratio - 1) for row in rows for way, ratio in row["over_bare"].items()
    )
    least, most = (pick(row["rounds"] for row in rows) for pick in (min, max))
    rounds = f"{least} rounds" if least == most else f"{least} to {most} rounds"
    note = f"{rounds}; half from the lowest to the highest of their ratios: {widest:.2f} at most"
    if results["device"]["type"] == "cuda":
        return note
    return f"{note}; processor time, of which the clock's ratios differ by {100 * apart:.0f} % at most"


def _profile(results: dict[str, Any]) -> Table:
    found, rounds = results["profile"]["rows"], results["profile"]["rounds"]
    rows = [
        [name, label, way, *(f"{each:.1f}" for each in kinds.values()), f"{sum(kinds.values()):.1f}"]
        for name, by_prompt in found.items()
        for label, ways in by_prompt.items()
        for way, kinds in ways.items()
    ]
    kinds = next(iter(next(iter(next(iter(found.values())).values())).values()))
    batch = results["config"]["batch_size"]
    note = f"milliseconds a step of {batch} images while it is profiled; medians of {rounds} steps"
    return ["ms a step", "prompt", "step", *kinds, "all"], rows, [note]


def _quickstart(results: dict[str, Any]) -> Table:
    found = results["quickstart"]
    rows = [[phase, f"{seconds:.2f}"] for phase, seconds in found["seconds_by_phase"].items()]
    rows.append(["all", f"{found['seconds']:.2f}"])
    note = f"medians of {found['rounds']} rounds" if found["rounds"] > 1 else "1 round"
    return ["phase", "seconds"], rows, [f"{note}; {100 * found['acc1']:.1f} % of the test images right"]


def _ratio(median: float, spread: list[float]) -> str:
    return f"{median:.2f} ({spread[0]:.2f} to {spread[1]:.2f})"


_TABLES = {
    "step": _step,
    "memory": _memory,
    "epoch": _epoch,
    "data": _data,
    "text": _text,
    "assignment": _assignment,
    "text_bank": _text_bank,
    "architectures": _architectures,
    "sharing": _sharing,
    "profile": _profile,
    "quickstart": _quickstart,
}
