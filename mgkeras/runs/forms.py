"""The form of JSON files that others may have written: which names, and which kinds of values, are there to be read.

A form is an example: ``NUMBER`` stands for a number or null, ``TEXT`` for text, ``ANY`` as a dict's only name for any
name, a list of one form for any number of such; a name that ends in '?' may be missing, or null.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mgkeras.errors import InputError

NUMBER, TEXT, ANY = 0.0, "", "*"
SCORE = {"value?": NUMBER, "mean?": NUMBER, "low?": NUMBER, "high?": NUMBER, "subjects?": NUMBER}
VALUE = {"value": NUMBER, "low": NUMBER, "high": NUMBER}
MEAN = {"mean": NUMBER, "low": NUMBER, "high": NUMBER, "subjects?": NUMBER}
MOMENTS = {"mean": NUMBER, "sd": NUMBER, "median?": NUMBER, "defined": NUMBER, "undefined?": NUMBER}
FOLD = {"subjects": NUMBER, "auc": NUMBER, "accuracy": NUMBER}
SUMMARY = {
    "subjects": NUMBER,
    "positives": NUMBER,
    "folds": NUMBER,
    "per_fold": [{"fold": NUMBER, "train?": {"subjects": NUMBER}, "held_out": FOLD}],
    "over_folds": {
        name: {"mean": NUMBER, "sd": NUMBER}
        for name in ("accuracy_train", "accuracy_held_out", "auc_train", "auc_held_out")
    },
    "pooled": dict.fromkeys(("auc", "accuracy"), VALUE) | {"majority_accuracy": NUMBER},
    "attention?": {ANY: {ANY: MOMENTS}},
}
MASKS = [  # of RUN/probes/masks.json
    {"change": TEXT, "mm": NUMBER, "subjects": NUMBER, "empty": NUMBER}
    | dict.fromkeys(
        ("dice_with_mask", "mass_in_mask", "mass_chance", "peak_within_10mm", "soft_dice", "mass_moved"), MEAN
    )
]
PROBES = {  # of RUN/probes/probes.json
    "asked": {"format?": NUMBER},
    "dilations?": [{"mm": NUMBER}],
    "layers?": [TEXT],
    "boxes?": [TEXT],
    "grid?": NUMBER,
    "no_ledger?": TEXT,
}
DONE = {"seconds?": NUMBER, "field_of_view_mm?": [NUMBER]}  # of a fold
TUNED = {"chosen": [{"outer_fold": NUMBER, "values": {ANY: NUMBER}}]}  # of tune.json
FORMS: dict[str, dict] = {
    "environment.json": {ANY: TEXT},
    "folds.json": {"held_out_in?": {ANY: NUMBER}, "left_out?": [TEXT], "leave_out?": TEXT},
    "data.json": {"subjects?": {ANY: {"early?": TEXT}}, "unlabelled?": [TEXT], "invalid?": [TEXT]},
}
EVALUATION = {
    "models": [
        {
            "name": TEXT,
            "folder?": TEXT,
            "pooled": {"auc": SCORE, ANY: SCORE},
            "at_half?": {ANY: SCORE},
            "causal?": {ANY: SCORE},
        }
    ]
}


def check_form(path: Path, found: Any, form: Any, where: str = "the file") -> None:
    """Makes sure that what a JSON file holds has a form; names that the form does not have are not looked at.

    Raises:
        ValueError: it has not; the message says where in which file.
    """
    if isinstance(form, dict):
        named = {name.rstrip("?"): inner for name, inner in form.items() if name != ANY}
        needed = [name for name in form if name != ANY and not name.endswith("?")]
        fits, what = isinstance(found, dict) and all(name in found for name in needed), "an object"
        what += f" with {', '.join(needed)}" if needed else ""
    elif isinstance(form, list):
        fits, what = isinstance(found, list), "a list"
    elif form is NUMBER:
        fits, what = found is None or (isinstance(found, int | float) and not isinstance(found, bool)), "a number"
    else:
        fits, what = isinstance(found, str), "text"
    if not fits:
        received = f"{', '.join(map(str, found))[:200]}" if isinstance(found, dict) else f"{found!r:.100}"
        raise InputError(f"expected {what} at {where} of {path}. Received: {received}")
    if isinstance(form, list):
        for place, value in enumerate(found):
            check_form(path, value, form[0], f"{where}/{place}")
    elif isinstance(form, dict):
        for name, value in found.items():
            inner = named.get(name, form.get(ANY))
            if inner is not None and not (value is None and (f"{name}?" in form or ANY in form)):
                check_form(path, value, inner, f"{where}/{name}")
