"""What follows from hormone receptors (HR: ER or PR) and HER2."""

from __future__ import annotations

from mgkeras.importers.labels import Label

MEANING = {
    "hr": "Hormone receptors: 1 positive (ER or PR), 0 negative, else empty",
    "her2": "HER2: 1 positive, 0 negative, else (equivocal included) empty",
    "triple_negative": "Triple negative: 1 where HR and HER2 are negative, 0 where one of them is positive; where that "
    "leaves it open, as the subtype says; empty where subtype and receptors disagree",
}


def triple_negative(hr: Label, her2: Label, subtype: str = "") -> Label:
    """Whether a tumour is triple negative.

    Args:
        hr, her2: the receptors.
        subtype: '1' or '0' where the table tells it as well, else ''. It decides only what the receptors leave open.
    """
    follows = "0" if "1" in (hr.value, her2.value) else "1" if hr.value == her2.value == "0" else ""
    if follows and subtype and follows != subtype:
        return Label("", "triple_negative: subtype and receptors disagree")
    if value := follows or subtype:
        return Label(value)
    return Label("", "triple_negative: neither the subtype nor both receptors are known")
