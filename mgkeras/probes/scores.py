"""What a decision rests on, asked of the model itself: maps of one volume, and the summary of a probed run.

A class activation map says where a network's last features are, not what they were made of: a receptive field can be
as large as the breast. The probes change the input, or the network, and watch.

Glossary:
    forward: the model as a plain function: (b, side, side, side, channels) float32 volumes -> dict of
        ``probability`` (b,) of class 1, ``evidence`` (b,) its log-odds; a CAM here is a class's decision map, see
        attention.centred.
    tumour only, outside only: everything outside, or inside, the dilated mask blurred.
    occlusion map: how much the evidence for the predicted class falls when a block of the volume is blurred
        (Zeiler 2014, with blurred tissue instead of grey so that the volume stays plausible).
    randomised: layers given fresh weights from the output downward; a map that hardly changes shows the volume and not
        what the network learned (Adebayo 2018).
    traps: on the phantom, each subject scanned again with and without each trap, noise and all else the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import stats

from mgkeras.data.phases import as_batch
from mgkeras.probes.causal import change_of, kept_ml
from mgkeras.probes.interventions import controls, transplant
from mgkeras.probes.ledger import ledger_summary
from mgkeras.scores.attention import pool, share
from mgkeras.scores.patients import Patients
from mgkeras.scores.summary import column_mean, excess, moments, number
from mgkeras.scores.within import Rows, aucs_of

Forward = Callable[[np.ndarray], Mapping[str, np.ndarray]]
Options = Mapping[str, Any]  # samples and seed of the bootstrap, and patients of patients.py
FORMAT = 3  # of RUN/probes; 1 had scores of class maps, 2 no transplants, ledger and controls
OLDEST = 2  # that can still be read: what it lacks is None
PARTS = ("outside", "inside")
DILATIONS_MM = (0.0, 2.5, 5.0, 10.0)  # ours, because 5 mm is what is trained with: none, half and twice of it too
COARSEST = 6  # ours, because 6^3 blocks are 216 forward passes a volume


def occlusion_grid(cells: int) -> int:
    """Blocks a side of the occlusion map: the most, COARSEST or fewer, that divide the map's ``cells`` a side."""
    return max(n for n in range(1, COARSEST + 1) if cells % n == 0)


def occlusion_map(
    forward: Forward, volume: np.ndarray, blurred: np.ndarray, asked: np.ndarray, *, batch: int = 36
) -> np.ndarray:
    """The fall of the evidence for the predicted class when a block is blurred: (n, n, n) float64, log-odds.

    Args:
        forward: see the glossary.
        volume, blurred: a cube float32, of one channel or more; n divides side. A block is replaced by blurred's.
        asked: (n, n, n) bool, the blocks that are tried; of the others (air) the fall is 0.
        batch: volumes a call.
    """
    block = volume.shape[0] // asked.shape[0]
    places, fall = np.argwhere(asked), np.zeros(asked.shape)
    whole = float(forward(as_batch(volume[None]))["evidence"][0])
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        changed = np.repeat(volume[None], len(part), axis=0)  # (b, side, side, side)
        for cube, place in zip(changed, part, strict=True):
            where = tuple(slice(i * block, (i + 1) * block) for i in place)
            cube[where] = blurred[where]
        evidence = np.asarray(forward(as_batch(changed))["evidence"], np.float64)
        fall[tuple(part.T)] = whole - evidence
    return fall if whole >= 0 else -fall


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's correlation of two arrays of one shape, -1 to 1; None where one is constant or single."""
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.spearmanr(np.ravel(a), np.ravel(b)).statistic)


def occlusion_scores(
    effect: np.ndarray, asked: np.ndarray, cam: np.ndarray, mask: np.ndarray
) -> dict[str, float | None]:
    """One subject's occlusion map beside its CAM and its mask.

    Args:
        effect, asked: (n, n, n) from and for occlusion_map.
        cam: (g, g, g) decision map of the predicted class, any sign; n divides g.
        mask: (side, side, side) bool.

    Returns:
        ``rank_occlusion`` Spearman with the CAM averaged over the same blocks, those asked; ``occlusion_mass`` share of
        the effect's positive part in blocks that the mask touches, and ``occlusion_chance`` the share of those blocks
        among those asked. None where undefined.
    """
    grid = effect.shape[0]
    touched, inside = pool(mask, grid) > 0, bool(mask.any() and asked.any())
    return {
        "rank_occlusion": rank_correlation(effect[asked], pool(cam, grid)[asked]),
        "occlusion_mass": share(touched, np.maximum(effect, 0.0)) if inside else None,
        "occlusion_chance": float(touched[asked].mean()) if inside else None,
    }


def summarise_probes(
    about: Mapping[str, Any],
    rows: Rows,
    random_rows: Rows,
    ledger_rows: Rows = (),
    *,
    samples: int = 2000,
    seed: int = 0,
    patients: Patients | None = None,
) -> dict[str, Any]:
    """A run's probes as evaluation.json has them, with bootstrap intervals over subjects.

    Args:
        about: content of RUN/probes/probes.json: ``dilations`` [{mm}], ``layers`` from the output downward,
            ``boxes`` the changes of a mask-only model's box, ``grid`` of the occlusion map, and from FORMAT 3 on
            ``swap_trained`` and ``no_ledger``, why there is none.
        rows: of RUN/probes/subjects.csv, a subject each: ``fold``, ``label``, ``probability`` and the probes' values,
            '' or None where a subject was not probed or the value is undefined.
        random_rows: of RUN/probes/random_network.csv: ``probability`` and the scores of attention.attention_scores.
        ledger_rows: of RUN/probes/ledger.csv; () where there is none.
        samples, seed: of the bootstrap.
        patients: see patients.py.

    Returns:
        ``subjects``; ``causal`` a row a dilation with what it keeps, the AUCs {value, low, high, subjects}, within
        folds as every AUC here, and the mean absolute change of the probability {mean, low, high, subjects};
        ``transplant``, ``controls`` and ``ledger`` of interventions.py and ledger.py, None where they were not asked;
        ``occlusion``; ``randomised`` a row a layer;
        ``random_network``; ``traps`` a row a trap of the phantom, [] where the cohort is none; ``box`` a row a change
        of a mask-only model's box, [] for other models.
    """
    options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": patients}
    causal = [
        {
            "dilation_mm": dilation["mm"],
            "kept_ml": kept_ml(rows, f"kept_ml_{dilation['mm']:g}mm", **options),
            **{f"auc_{part}_blurred": _auc(rows, f"p_{part}_blurred_{dilation['mm']:g}mm", options) for part in PARTS},
            **{
                f"change_{part}_blurred": change_of(rows, f"p_{part}_blurred_{dilation['mm']:g}mm", **options)
                for part in PARTS
            },
        }
        for dilation in about["dilations"]
    ]
    agreement = column_mean(rows, "rank_occlusion", **options)
    occlusion = {
        "subjects": agreement["subjects"],
        "grid": about["grid"],
        "rank_correlation": agreement,
        "mass_in_mask": column_mean(rows, "occlusion_mass", **options),
        "mass_chance": column_mean(rows, "occlusion_chance", **options),
    }
    randomised = [
        {"layer": layer, "rank_correlation": column_mean(rows, f"rank_random_{layer}", **options)}
        for layer in about["layers"]
    ]
    more = {
        "transplant": transplant(rows, bool(about.get("swap_trained")), **options),
        "controls": controls(rows, **options),
        "ledger": ledger_summary(ledger_rows, **options),
    }
    return {
        "subjects": len(rows),
        "causal": causal,
        **more,
        "occlusion": occlusion,
        "randomised": randomised,
        "random_network": _random_network(random_rows, options),
        "traps": [_trap(name, rows, options) for name in _trap_names(rows)],
        "box": [
            {
                "change": name,
                "auc": _auc(rows, f"p_box_{name}", options),
                "change_of_p": change_of(rows, f"p_box_{name}", **options),
            }
            for name in about["boxes"]
        ],
    }


def _auc(rows: Rows, column: str, options: Options) -> dict[str, Any]:
    return aucs_of(rows, {column: column}, **options).auc(column)


def _random_network(rows: Rows, options: Options) -> dict[str, Any]:
    """Where the map of a network that was never trained lies, and how it ranks the subjects."""
    names = [name for name in (rows[0] if rows else {}) if name not in ("subject", "fold", "label", "probability")]
    return {
        "auc": _auc(rows, "probability", options),
        "above_chance": excess(rows, **options),
        "attention": {name: moments([number(row[name]) for row in rows]) for name in names},
    }


def _trap_names(rows: Rows) -> list[str]:
    """The traps that were added and removed, in the order of the columns."""
    columns = dict.fromkeys(column for row in rows for column in row if column.startswith("trap_"))
    names = [column.removeprefix("trap_") for column in columns]
    return [name for name in names if any(number(row.get(f"p_with_{name}")) is not None for row in rows)]


def _trap(name: str, rows: Rows, options: Options) -> dict[str, Any]:
    """A trap added to everyone and removed from everyone; a change counts where it is one."""
    known = [row for row in rows if number(row.get(f"p_with_{name}")) is not None]
    having, lacking = ([row for row in known if number(row[f"trap_{name}"]) == on] for on in (1, 0))
    return {
        "trap": name,
        "subjects": len(known),
        "with_trap": len(having),
        "auc_as_is": _auc(known, "probability", options),
        "auc_removed": _auc(known, f"p_without_{name}", options),
        "auc_added": _auc(known, f"p_with_{name}", options),
        "change_removed": change_of(having, f"p_without_{name}", **options),
        "change_added": change_of(lacking, f"p_with_{name}", **options),
    }
