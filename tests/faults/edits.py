"""Files of a finished run edited, damaged or exchanged, by hand or by who sent it, and then read by every command."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from faults.counts import Trial
from faults.processes import mgkeras
from faults.world import DRAWS, FIT, Command, contents, copied, different
from mgkeras.data.sealed import BLOCK, block_of
from mgkeras.runs.digests import PARTS, fold_with_digests, run_digests, with_digests

RUN = "runs/probed"
READERS = (
    Command("compare", f"compare {RUN} runs/no-mask --out out", 4),
    Command("evaluate", f"evaluate {RUN} --no-probe --out out --samples 100", 4),
    Command("report", f"report {RUN} --no-probe --out out/report.html --samples 100", 4),
    Command("evaluate, probing", f"evaluate {RUN} --out out --cache cache {DRAWS}", 1),
    Command("predict", f"predict {RUN} --cohort phantom/cohort.csv --out out", 1),
    Command("export", f"export {RUN} --evaluation evaluation/evaluation.json --out out/model", 2),
    Command("fit", f"fit --model guided --cohort masks/cohort.csv --out {RUN} --cache cache {FIT}", 1),
)
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    7,
    0.5,
    1e308,
    "",
    "x",
    "<script>",
    "../../etc/passwd",
    [],
    {},
    [[1]],
    {"a": 1},
)
DEEP = "[" * 5000 + "]" * 5000
Rng = np.random.Generator


def _edit_json(path: Path, rng: Rng) -> str:
    whole = json.loads(path.read_text())
    if not (found := list(places(whole))):
        return _damage(path, rng)
    inside, key = found[rng.integers(len(found))]
    kind = rng.choice(["value", "value", "value", "number", "missing", "more", "deep", "nan"])
    if kind == "missing":
        del inside[key]
    elif kind == "more" and isinstance(inside, dict):
        inside["more"] = "x"
    elif kind == "number" and isinstance(inside[key], int | float):
        inside[key] = inside[key] * 2 + 1
    else:
        inside[key] = ODD[rng.integers(len(ODD))]
    text = json.dumps(whole, indent=1)
    if kind in ("deep", "nan"):
        inside[key] = "here"
        text = json.dumps(whole, indent=1).replace(
            '"here"', DEEP if kind == "deep" else str(rng.choice(["NaN", "1e999"]))
        )
    path.write_text(text)
    return f"{kind} at {key}"


def places(value: Any) -> Any:
    """(list or dict, index or key) of every value in a value of JSON."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from places(inner)


def _edit_csv(path: Path, rng: Rng) -> str:
    rows = list(csv.reader(io.StringIO(path.read_text())))
    row, column = int(rng.integers(len(rows))), int(rng.integers(len(rows[0])))
    kind = str(rng.choice(["cell", "cell", "number", "doubled", "missing", "column", "empty"]))
    if kind == "cell":
        rows[row][column] = str(
            rng.choice(["", "nan", "inf", "-1", "2", "1e400", "x", "=1+1", "P0003", "\x1b[31m", "9" * 400])
        )
    elif kind == "number":
        rows[row][column] = f"{rng.random():.3f}"
    elif kind == "doubled":
        rows.insert(row, rows[row])
    elif kind == "missing":
        del rows[row]
    elif kind == "column":
        rows = [cells[:column] + cells[column + 1 :] for cells in rows]
    else:
        rows = rows[:1]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.write_text(text.getvalue())
    return f"{kind} in row {row}, column {column}"


def _edit_arrays(path: Path, rng: Rng) -> str:
    """What HDF5 allows and mgkeras never writes, and other numbers."""
    kind = str(rng.choice(["external", "virtual", "link", "packed", "claimed", "nan", "number", "name", "missing"]))
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = names[rng.integers(len(names))]
        values = file[name][()]
        floats = values.dtype.kind == "f" and values.size > 0
        if kind in ("nan", "number") and floats:
            values.flat[rng.integers(values.size)] = np.nan if kind == "nan" else rng.normal()
            file[name][...] = values
            return f"{kind} in {name}"
        del file[name]
        if kind == "external":
            file.create_dataset(name, values.shape, values.dtype, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(values.shape or (1,), values.dtype)
            layout[...] = h5py.VirtualSource("other.h5", "a", values.shape or (1,))
            file.create_virtual_dataset(name, layout)
        elif kind == "link":
            file[name] = h5py.ExternalLink("other.h5", "a")
        elif kind == "packed":
            file.create_dataset(name, data=np.atleast_1d(values), chunks=True, compression="gzip")
        elif kind == "claimed":
            file.create_dataset(name, (1 << 20, 1 << 18), "f4")
        elif kind == "name":
            file[name + "x"] = values
    return f"{kind} at {name}"


def _damage(path: Path, rng: Rng) -> str:
    content = bytearray(path.read_bytes())
    kind = str(rng.choice(["bit", "bit", "cut", "empty", "noise"]))
    place = int(rng.integers(max(len(content), 1)))
    if kind == "bit" and content:
        content[place] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del content[place:]
    else:
        content = bytearray(rng.bytes(200)) if kind == "noise" else bytearray()
    path.write_bytes(content)
    return f"{kind} at byte {place}"


def _exchange(path: Path, rng: Rng) -> str:
    """Another fold's file of the same name, or another run's."""
    for old, new in (("fold_0", "fold_1"), ("fold_1", "fold_0"), ("probed", "no-mask")):
        other = Path(*(new if part == old else part for part in path.parts))
        if other != path and other.is_file():
            shutil.copyfile(other, path)
            return f"{other.parent.name}'s"
    return _damage(path, rng)


OWN: dict[str, Callable[[Path, Rng], str]] = {".json": _edit_json, ".csv": _edit_csv, ".h5": _edit_arrays}


def trial(seed: int, world: Path, folder: Path, heavy: bool = True) -> Trial:
    """One file of a run edited, half of the time with digests that fit the edit, then read by one command."""
    rng = np.random.default_rng(seed)
    reader = (among := [reader for reader in READERS for _ in range(reader.share)])[rng.integers(len(among))]
    expected = _undisturbed(reader, world, folder)
    copied(world, folder)
    files = sorted(path for path in (folder / RUN).rglob("*") if path.suffix in OWN)
    if reader.name == "export":
        files += [folder / "evaluation" / "evaluation.json"] * 4
    path = files[rng.integers(len(files))]
    edit = (OWN[path.suffix], OWN[path.suffix], _damage, _exchange)[rng.integers(4)]
    how, fits, trust = edit(path, rng), rng.random() < 0.5, rng.random() < 0.2
    if fits and edit is _edit_arrays:  # a damaged file has no sender who gives it a checksum
        content = path.read_bytes()[BLOCK:]
        path.write_bytes(block_of(zlib.crc32(content)) + content)
    if fits:
        _seal(folder / RUN)
    before = contents(folder)
    ended = mgkeras([*reader.words, *["--trust"] * trust], folder, longest_s=120)
    told = {"file": str(path.relative_to(folder)), "how": how, "sealed": bool(fits), "trust": bool(trust)}
    if ended.wrong:
        return Trial("edit", reader.name, seed, 1, ended.wrong, told | {"said": ended.said[-2500:]})
    if ended.status:
        return Trial("edit", reader.name, seed, 1, "refused", told | {"said": ended.said[-300:]})
    now, edited = contents(folder), different(before, contents(world))
    names = [name for name in different(now, expected) if name not in edited or now.get(name) != before.get(name)]
    if not names:
        remade = any(now.get(name) != before.get(name) for name in edited)
        return Trial("edit", reader.name, seed, 1, "remade" if remade else "same", told)
    said = ended.said + "".join(now.get(name, b"").decode(errors="replace") for name in names)
    warned = any(
        words in said for words in ("was edited after", "not scored: probes of", "is not probed", "not shown: ")
    )
    outcome = "told" if warned else "another" if fits else "silent"
    return Trial("edit", reader.name, seed, 1, outcome, told | {"different": names[:9], "said": ended.said[-300:]})


KNOWN: dict[tuple[str, Path], dict[str, bytes]] = {}


def _undisturbed(reader: Command, world: Path, folder: Path) -> dict[str, bytes]:
    """What is there after a reader where nothing was edited."""
    if (key := (reader.name, folder)) not in KNOWN:
        copied(world, folder)
        if (ended := reader.run(folder)).status:
            raise RuntimeError(f"expected {reader.name} to succeed. Received: {ended}")
        KNOWN[key] = contents(folder)
    return KNOWN[key]


def _seal(run: Path) -> None:
    """Digests of the run as it is now, as who made it so would write them."""
    for path in (*run.glob("fold_*/done.json"), run / "done.json"):
        try:
            done = json.loads(path.read_text())
            now = {"sha256": run_digests(run)} if path.parent == run else fold_with_digests(path.parent, done)
            path.write_text(json.dumps(done | now))
        except (ValueError, TypeError, OSError, RecursionError):
            pass  # the edit was of this file
    for part in PARTS:
        try:
            (run / part).write_text(json.dumps(with_digests(run, part, json.loads((run / part).read_text()))))
        except (ValueError, TypeError, OSError, RecursionError):
            pass
