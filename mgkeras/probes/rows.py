"""RUN/probes read: whether they are of the run's own weights, and their summary as evaluation.json has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.data.arrays import read_arrays
from mgkeras.errors import InputError, MgkerasError
from mgkeras.probes.scores import FORMAT, OLDEST, summarise_probes
from mgkeras.probes.site import site_probe
from mgkeras.runs.checked import read_object, read_table
from mgkeras.runs.forms import PROBES, check_form
from mgkeras.scores.comparison import ComparedRun
from mgkeras.scores.patients import patients_in

SAME = 1e-3  # ours, because devices differ by 1e-5 and other weights by far more: probabilities of one network


def probed(run: ComparedRun) -> Path | None:
    """RUN/probes; None where the run was not probed, its folds were trained again since, or class maps were scored."""
    folder = run.folder / "probes"
    if not OLDEST <= (_about(run)["asked"].get("format") or 0) <= FORMAT:
        return None
    rows = read_table(folder / "subjects.csv")
    try:
        asked = {row.get("subject", ""): float(row.get("probability") or "nan") for row in rows}
    except ValueError as error:
        raise InputError(f"expected probabilities in {folder / 'subjects.csv'}. Received: {error!s:.100}") from None
    same = set(asked) == set(run.held_out) and all(abs(asked[name] - run.held_out[name][2]) <= SAME for name in asked)
    return folder if same else None


def probes_of(run: ComparedRun, *, samples: int = 2000, seed: int = 0) -> dict[str, Any] | None:
    """The summary of RUN/probes by probes.summarise_probes, and ``site`` by site.site_probe.

    None where there are no probes of these weights. What probes of an earlier format do not hold is None.

    Raises:
        ValueError: their files hold what cannot be; the message names the folder.
    """
    if not (folder := probed(run)):
        return None
    try:
        return _summary(run, folder, samples, seed)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, MgkerasError) and str(folder) in str(error):
            raise
        raise InputError(
            f"expected probes as `mgkeras evaluate` writes them in {folder}. Received: {error!r:.200}; without that "
            "folder the same command makes them anew"
        ) from error


def _summary(run: ComparedRun, folder: Path, samples: int, seed: int) -> dict[str, Any]:
    rows, untrained = (read_table(folder / name) for name in ("subjects.csv", "random_network.csv"))
    ledger = read_table(folder / "ledger.csv") if _about(run).get("ledger") else []
    options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": patients_in(run.folder)}
    found = summarise_probes(_about(run), rows, untrained, ledger, **options)
    return found | {"site": _site(run, folder / "features.h5", **options)}


def no_ledger(run: ComparedRun) -> str:
    """Why a probed run has no ledger; '' where it has one, or was not probed for it."""
    return (_about(run).get("no_ledger") or "") if probed(run) else ""


def _about(run: ComparedRun) -> dict[str, Any]:
    """The content of RUN/probes/probes.json, with nothing asked where there is none."""
    path = run.folder / "probes" / "probes.json"
    if not path.is_file():
        return {"asked": {}}
    check_form(path, found := read_object(path), PROBES)
    return found


def _site(run: ComparedRun, path: Path, **options: Any) -> dict[str, Any] | None:
    """site.site_probe of the features that are stored; None where there are none."""
    cohort = run.folder / "cohort.csv"
    if not path.is_file() or not cohort.is_file():
        return None
    arrays, _ = read_arrays(
        path, {"subject": ("S", (len(run.held_out),)), "features": ("float32", (len(run.held_out), None))}
    )
    features = {
        name.decode(): row for name, row in zip(arrays["subject"], arrays["features"].astype(np.float64), strict=True)
    }
    return site_probe(features, run.held_out, read_table(cohort), run.settings.get("outcome"), **options)
