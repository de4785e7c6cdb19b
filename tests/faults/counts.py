"""What trials came to: a line each in a log, so that a count can go on, and a table of them all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# what may come of a trial, in the order of the table
FINE = {
    "same": "the result of an undisturbed one",
    "remade": "noticed, and made anew",
    "refused": "an error that names the cause",
    "told": "used, with a warning",
    "another": "used as its sender made it, digests and all",
}
WRONG = {
    "silent": "used, and nothing was told",
    "wrong": "another result than undisturbed",
    "unnamed": "an error that does not name the file",
    "traceback": "a traceback",
    "signal": "ended by a signal, as a segfault",
    "hung": "without an end",
    "orphan": "left processes behind",
}


@dataclass(frozen=True)
class Trial:
    """What was tried on what; how often within this trial; what came of it; whatever else explains it."""

    kind: str
    what: str
    seed: int
    tried: int
    outcome: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def wrong(self) -> bool:
        """Whether this must not be; a killed command must end as an undisturbed command, so that it may not refuse."""
        return self.outcome in WRONG or (self.kind == "kill" and self.outcome != "same")


def append(path: Path, trial: Trial) -> None:
    """Adds a line to a log."""
    with open(path, "a") as file:
        file.write(json.dumps(asdict(trial)) + "\n")


def read(folder: Path) -> list[Trial]:
    """All trials of the logs in a folder; a last line that was cut off is none."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [Trial(**json.loads(line)) for line in lines if line.endswith("}")]


def table(trials: Iterable[Trial]) -> str:
    """Markdown: a row for what was tried and on what, a column for each outcome."""
    found: dict[tuple[str, str], Counter] = {}
    for trial in trials:
        for what in (trial.what, "all"):
            row = found.setdefault((trial.kind, what), Counter())
            row["tried"] += trial.tried
            row[trial.outcome] += trial.tried
    columns = ["tried", *(name for name in (*FINE, *WRONG))]
    rows = [["what", "of", *columns], ["---"] * 2 + ["---:"] * len(columns)]
    for (kind, what), row in sorted(found.items(), key=lambda item: (item[0][0], item[0][1] == "all", item[0][1])):
        rows.append([kind, what, *(str(row[name]) for name in columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
