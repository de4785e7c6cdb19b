"""The rows of speed.csv as Markdown: a table a section and device, and the paper's protocol in hours."""

from __future__ import annotations

from itertools import groupby

from speed_job import protocol
from speed_measure import TRAINING

Rows = list[dict]
FED = ("mgkeras-fit", "mgkeras-fit-ahead", "mgkeras-copied")  # steps whose data are not on the device yet


def markdown(rows: Rows) -> str:
    """All tables, device by device."""
    parts = []
    for device in dict.fromkeys(row["device"] for row in rows):
        own = [row for row in rows if row["device"] == device]
        dates = sorted({row["date"] for row in own})
        versions = dict.fromkeys(part for row in own for part in row["versions"].split(", ") if part)
        parts.append(f"**{device}**, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; {', '.join(versions)}")
        for section, table in (("step", step_table), ("stream", stream_table), ("job", job_table)):
            for setting, group in settings(own, section):
                parts.append(table(group, *setting, own))
    return "\n\n".join(parts)


def settings(rows: Rows, section: str):
    """((side, batch), rows) of a section."""

    def key(row: dict) -> tuple[int, int]:
        return row["side"], row["batch"]

    return [
        (setting, list(group))
        for setting, group in groupby(sorted((row for row in rows if row["section"] == section), key=key), key)
    ]


def figures(row: dict) -> str:
    """'15.7 (15.6-16.0)', or a dash where there is no number."""
    if row["median"] is None:
        return "-"
    return f"{short(row['median'])} ({short(row['low'])}-{short(row['high'])})"


def short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def table(title: str, head: tuple[str, ...], lines: list[tuple], after: str = "") -> str:
    """A Markdown table under a title, and a paragraph after it."""
    text = [f"{title}\n", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    text += ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join(text) + (f"\n\n{after}" if after else "")


def median_of(rows: Rows, key: str) -> float | None:
    return next((row["median"] for row in rows if row["key"] == key), None)


def step_table(rows: Rows, side: int, batch: int, own: Rows) -> str:
    ours, fed = median_of(rows, "mgkeras"), median_of(rows, "mgkeras-fit")
    lines = []
    for row in rows:
        known = row["median"] is not None
        lines.append(
            (
                row["what"],
                figures(row),
                short(1000 * batch / row["median"]) if known else "-",
                f"{row['median'] / ours:.2f}" if known and ours else "-",
                row["memory_gb"] or "-",
                row["note"],
            )
        )
    said = []
    if ours and fed:
        said.append(f"The real pipeline changes the step's time by {100 * (fed / ours - 1):+.0f} %.")
    peers = [row for row in rows if row["key"].startswith("torch-") and row["median"]]
    if ours and peers:
        best = min(peers, key=lambda row: row["median"])
        own_best = min(
            (row for row in rows if row["key"].startswith("mgkeras") and row["key"] not in FED and row["median"]),
            key=lambda row: row["median"],
        )
        said.append(
            f"The fastest peer that does the same is {best['what']}: {best['median'] / ours:.2f} times mgkeras "
            f"as it trains by default, {best['median'] / own_best['median']:.2f} times its fastest."
        )
    twin = next((row for row in own if row["section"] == "check"), None)
    if twin and peers:
        number = "" if twin["median"] is None else f"loss apart by {twin['median']:.1e}; "
        said.append(f"{twin['what']}, same weights and batch: {number}{twin['note']}.")
    return table(
        f"A training step on {side}^3 volumes, batches of {batch}; data on the device but where a row says so",
        ("engine", "ms a step, median (range)", "volumes/s", "times mgkeras", "GPU GB", "note"),
        lines,
        " ".join(said),
    )


def stream_table(rows: Rows, side: int, batch: int, own: Rows) -> str:
    ours = median_of(rows, "stream-mgkeras")
    lines = [
        (row["what"], figures(row), f"{row['median'] / ours:.2f}" if row["median"] and ours else "-", row["note"])
        for row in rows
    ]
    return table(
        f"The stream alone: the 34 variants of {TRAINING} subjects at {side}^3, batches of {batch}, page cache warm",
        ("loader", "volumes/s, median (range)", "times mgkeras", "note"),
        lines,
    )


def job_table(rows: Rows, side: int, batch: int, own: Rows) -> str:
    here = [row for row in own if (row["side"], row["batch"]) == (side, batch) and row["median"] is not None]
    seconds = {row["key"]: row["median"] / (1000 if row["unit"] == "ms a step" else 1) for row in here}
    after = ""
    step = seconds.get("mgkeras-fit") or seconds.get("mgkeras")
    if step and {"held-out", "train"} <= set(seconds):
        epoch = -(-3130 // batch) * step
        share = (seconds["held-out"] + seconds["attention"]) / epoch
        after = (
            f"An epoch of the paper's 3130 volumes takes {short(epoch)} s here; scoring a held-out fold, once in "
            f"250 epochs, takes {100 * share:.0f} % of one."
        )
    try:
        after += "\n\n" + protocol_table(protocol(seconds, batch), side, batch)
    except KeyError as error:
        after += f"\n\nThe paper's protocol in hours needs the row {error} too: time it and then --show."
    return table(
        f"The rest of the job at {side}^3",
        ("what", "s, median (range)", "note"),
        [(row["what"], figures(row), row["note"]) for row in rows],
        after.strip(),
    )


def protocol_table(parts: list[tuple[str, int, float]], side: int, batch: int) -> str:
    hours = [count * seconds / 3600 for _, count, seconds in parts]
    lines = [
        (what, count, f"{seconds:.4g}", f"{time:.2f}")
        for (what, count, seconds), time in zip(parts, hours, strict=True)
    ]
    lines.append(("**in all**", "", "", f"**{sum(hours):.1f}**"))
    return table(
        f"The paper's whole protocol (both outcomes, 3 models, 5 folds, 250 epochs) at {side}^3 in batches of "
        f"{batch}, extrapolated from the medians above",
        ("part", "times", "s each", "hours"),
        lines,
    )
