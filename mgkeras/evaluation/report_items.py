"""The 15 items that a serious evaluation shows, each with what a run's files tell and what they do not.

The items follow CLAIM (numbers of 2020), TRIPOD+AI and METRICS.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mgkeras.evaluation import probe_tables, report_tables, rest_tables, tables
from mgkeras.evaluation.comparison import pair_rows
from mgkeras.evaluation.readings import READING_NOTE
from mgkeras.evaluation.report_facts import Facts
from mgkeras.evaluation.report_tables import Table
from mgkeras.settings import NEVER

NAMED = 12  # names that a sentence lists before it says how many more there are


@dataclass(frozen=True)
class Shown:
    """A table with its caption; a folded one is opened by a click, and in print."""

    caption: str
    rows: Table
    folded: bool = False


@dataclass(frozen=True)
class Item:
    """One of the 15: what is known (sentences, tables, keys of pictures) and, said plainly, what is not."""

    title: str
    source: str
    known: Sequence[str] = ()
    shown: Sequence[Shown] = ()
    pictures: Sequence[str] = ()
    unknown: Sequence[str] = field(default_factory=tuple)


def items(
    results: Mapping[str, Any], facts: Facts, subgroups: Sequence[Mapping[str, Any]], labels: Mapping[str, int]
) -> list[Item]:
    """The 15 items, in reporting order.

    Args:
        results: the content of evaluation.json.
        facts: of the runs' files.
        subgroups: from subgroups.subgroup_scores.
        labels: {subject: 0 or 1}.
    """
    about = _About(results, facts, subgroups, labels)
    found = [
        _flow(about),
        _demographics(about),
        _partitions(about),
        _label(about),
        _acquisition(about),
        _preprocessing(about),
        _segmentation(about),
        _model(about),
        _metrics(about),
        _uncertainty(about),
        _calibration(about),
        _baselines(about),
        _robustness(about),
        _heterogeneity(about),
        _explainability(about),
    ]
    return [
        Item(
            one.title,
            one.source,
            tuple(filter(None, one.known)),
            tuple(s for s in one.shown if s.rows),
            one.pictures,
            tuple(filter(None, one.unknown)),
        )
        for one in found
    ]


@dataclass(frozen=True)
class _About:
    results: Mapping[str, Any]
    facts: Facts
    subgroups: Sequence[Mapping[str, Any]]
    labels: Mapping[str, int]

    @property
    def first(self) -> Any:
        """The first network's files: cohort, folds and masks are the same in all."""
        return self.facts.runs[0]

    def has(self, column: str) -> bool:
        """Whether the cohort table has a column of that name."""
        return bool(self.first.cohort) and column in self.first.cohort[0]


def named(names: Sequence[str]) -> str:
    """'A, B and 3 more'."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _flow(about: _About) -> Item:
    n, positives, outcome = (about.results[key] for key in ("subjects", "positives", "outcome"))
    lost, invalid = (list(about.first.data.get(part, [])) for part in ("unlabelled", "invalid"))
    masks = about.first.masks
    empty = [row["subject"] for row in masks if not float(row.get("volume_mm3") or 0)]
    known = [
        f"{_counted(n, 'subject')} are scored; {positives} have {outcome} = 1.",
        f"{_counted(len(lost), 'subject')} of the table had no {outcome} and were left out: {named(lost)}."
        if lost
        else f"No subject of the table was left out for want of a label ({outcome})."
        if about.first.data
        else "",
        f"{_counted(len(invalid), 'subject')} left out for errors in their files: {named(invalid)}."
        if invalid
        else "No subject was left out for errors in its files."
        if "invalid" in about.first.data
        else "",
        f"{_counted(len(empty), 'mask')} of {len(masks)} are empty: {named(empty)}."
        if empty
        else f"No mask of {len(masks)} is empty."
        if masks
        else "",
    ]
    warned = Shown("Masks with a warning", report_tables.warning_table(about.first), folded=True)
    return Item(
        "Flow and exclusions, missing labels and masks",
        "CLAIM 13, 33",
        known,
        [warned],
        (),
        [
            "how and over which years patients were found, and whom it excluded before the table was written",
            "" if "invalid" in about.first.data else "whether subjects were left out for errors in their files",
            "" if masks else "the masks: there is no masks.csv",
        ],
    )


def _demographics(about: _About) -> Item:
    columns = report_tables.column_table(about.first, about.labels, about.results["outcome"])
    wanted = [name for name in ("age", "menopausal status", "stage", "ethnicity") if not about.has(name)]
    return Item(
        "Patients and labels in each partition",
        "CLAIM 34",
        (),
        [
            Shown("Labels by fold", report_tables.fold_table(about.first, about.labels)),
            Shown("Columns of the cohort table by class: median (quartiles), or count", columns),
        ],
        (),
        [f"{', '.join(wanted)}: no such columns" if wanted else ""],
    )


def _partitions(about: _About) -> Item:
    folds, twins = about.first.folds, _twins(about)
    together = "Subjects of one patient (column patient) are held out together." if about.has("patient") else ""
    known = [
        f"{_drawn(about)} Digest of who is held out when: {folds.get('digest', '-')}. The same for every model here.",
        together,
        f"Careful: the same T1 file stands under several names: {named(twins)}. A patient may be on both sides."
        if twins
        else "No two subjects have the same T1 file."
        if about.first.data
        else "",
    ]
    return Item(
        "Partitions by patient, without leaks",
        "CLAIM 20, 21; METRICS 18",
        known,
        (),
        (),
        [
            ""
            if together
            else "whether two names, or two exams, are of one patient: a subject is taken to be a patient",
        ],
    )


def _drawn(about: _About) -> str:
    """How it was decided who is held out when."""
    folds = about.first.folds
    if folds.get("split"):
        trained = sum(fold == NEVER for fold in folds.get("held_out_in", {}).values())
        return (
            f"One fold, the cohort's own split: {_counted(trained, 'subject')} are trained on and never held out; "
            "no subject that is held out is trained on."
        )
    strata = ", ".join(folds.get("stratify", ()))
    by = f"jointly by outcome and {strata}" if strata else "by outcome"
    return (
        f"{_counted(about.results['folds'], 'fold')}, stratified {by} and, within it, by site; seed "
        f"{folds.get('seed', '-')}. Each subject is held out once; no variant of a held-out subject is trained on."
    )


def _twins(about: _About) -> list[str]:
    """Groups of subjects whose T1 has the same bytes, 'A = B'."""
    names = defaultdict(list)
    for name, one in about.first.data.get("subjects", {}).items():
        names[one.get("early")].append(name)
    return [" = ".join(group) for digest, group in names.items() if digest and len(group) > 1]


def _label(about: _About) -> Item:
    return Item(
        "Label: definition, horizon, censoring, imaging interval",
        "METRICS 3, 7",
        [
            f"The label is the column {about.results['outcome']} of the cohort table: 1 against 0.",
        ],
        (),
        (),
        [
            "how it was determined and by whom, its horizon in years, how censored patients were dealt with, and "
            "the interval from imaging to treatment and to outcome"
        ],
    )


def _acquisition(about: _About) -> Item:
    known, unknown = [], []
    for column in ("site", "scanner"):
        if not about.has(column):
            unknown.append(f"{column}s: the cohort table has no column {column}")
            continue
        counts = Counter(row.get(column) or "not said" for row in about.first.cohort)
        listed = ", ".join(f"{value} {count}" for value, count in sorted(counts.items()))
        known.append(f"Subjects by {column}: {listed}." + (" One only." if len(counts) == 1 else ""))
    return Item(
        "Acquisition by scanner and site",
        "METRICS 6",
        known,
        (),
        (),
        [
            *unknown,
            "sequence, contrast agent and dose, and the times of T0 and T1: a NIfTI file does not carry them",
        ],
    )


def _preprocessing(about: _About) -> Item:
    volume = about.first.settings.get("volume", {})
    side = volume.get("side", "-")
    return Item(
        "Preprocessing",
        "CLAIM 9; METRICS 11",
        [
            f"T1 in RAS+ axes, resampled to a cube of {side}^3 isotropic voxels around the field of view (mask-only: "
            "around the tumour's box), nothing stretched; intensities in units of the bright tissue's mean, clipped at "
            f"{volume.get('intensity_ceiling', '-')}; air and padding {volume.get('background', '-')}.",
        ],
        [Shown("Settings of the volume", report_tables.settings_table(about.facts.runs, "volume."))],
        (),
        ["whether exams were registered, corrected for bias or cropped before they came here"],
    )


def _segmentation(about: _About) -> Item:
    return Item(
        "Tumour masks: source and quality",
        "METRICS 8 to 10",
        [
            "Masks that are made here: percent enhancement (T1 - T0) / T0 above the gate, then fuzzy C-means.",
        ],
        [
            Shown("Masks by source", report_tables.mask_table(about.first)),
            Shown("Settings of the masks", report_tables.settings_table(about.facts.runs, "mask."), folded=True),
        ],
        (),
        [
            "who checked or corrected the masks, and how well readers agree",
            "the masks' Dice with a reference: the runs' files hold none",
        ],
    )


def _model(about: _About) -> Item:
    every, runs = report_tables.settings_table(about.facts.runs), about.facts.runs
    differ = Shown("Settings in which the models differ", report_tables.differing(every) if len(runs) > 1 else [])
    return Item(
        "Models, settings, software",
        "CLAIM 22 to 27",
        [
            "A 3D VGG; its class activation map folds batch normalisation into the output layer's weights. No early "
            "stopping and no choice of epoch: a fold is scored once, after its last epoch.",
            about.results["threshold_rule"],
        ],
        [
            Shown("Size and time", report_tables.cost_table(runs)),
            differ,
            Shown("All settings", every, folded=True),
            Shown("Software and device", report_tables.environment_table(runs), folded=True),
        ],
        ("training",),
        ["whether settings were tried on these subjects before: then nested cross-validation is needed"],
    )


def _metrics(about: _About) -> Item:
    results = about.results
    return Item(
        "Scores that fit the task",
        "METRICS 20; TRIPOD+AI 15",
        [tables.NOTES[0]],
        [
            Shown("Scores of held-out subjects", tables.score_table(results)),
            Shown("Decisions at thresholds chosen on training subjects", tables.decision_table(results, "pooled")),
            Shown("Decisions at 0.5", tables.decision_table(results, "at_half"), folded=True),
        ],
        ("roc",),
        ["the cost of a miss against a false alarm, by which a threshold would be set"],
    )


def _drawn_units(about: _About) -> str:
    """What the bootstrap draws: subjects, or patients with all their exams."""
    subjects, patients = about.results["subjects"], about.results.get("patients")
    if patients in (None, subjects):
        return "subjects"
    return (
        f"patients, {patients} of them, each with all of its exams ({subjects}); DeLong's test is Obuchowski's for "
        "several exams of a patient"
    )


def _uncertainty(about: _About) -> Item:
    samples = about.results["samples"]
    return Item(
        "Uncertainty",
        "METRICS 21; CLAIM 29, 36",
        [
            f"Intervals: {samples} bootstrap draws of {_drawn_units(about)}. Fold mean (SD) stands beside the pooled "
            "score, above.",
            tables.NOTES[2],
        ],
        [Shown("Differences of AUC between models", pair_rows(about.results["pairs"]))],
        (),
        [
            "the spread over new training runs, but for the seeds in item 13: a bootstrap draws subjects, it does not "
            "train again"
        ],
    )


def _calibration(about: _About) -> Item:
    return Item(
        "Calibration and net benefit",
        "METRICS 22; TRIPOD+AI 12e",
        [
            "Slope 1 and intercept 0 are perfect; a slope under 1 is overconfidence. Numbers: item 9.",
        ],
        (),
        ("calibration", "decision"),
        ["calibration on patients of another hospital"],
    )


def _baselines(about: _About) -> Item:
    simple = {model["name"]: model["note"] for model in about.results["models"] if model["kind"] == "baseline"}
    rows = [row for row in tables.score_table(about.results) if row["Model"] in simple]
    skipped = [text for text in about.results["skipped"] if not text.startswith(("probes", "map of"))]
    return Item(
        "Simple baselines",
        "METRICS 24, 25",
        [f"{name}: {note}." for name, note in simple.items() if note],
        [Shown("Scores of the baselines, in the same folds", rows)],
        (),
        skipped,
    )


def _robustness(about: _About) -> Item:
    results = about.results
    mask, seeds = probe_tables.mask_table(results), probe_tables.repeats_table(results)
    known = [probe_tables.ROBUSTNESS_NOTE if mask or seeds else ""]
    return Item(
        "Robustness: masks, seeds, settings",
        "CLAIM 30; METRICS 17",
        known,
        [
            Shown("Another mask", mask, folded=True),
            Shown("Other seeds", seeds),
        ],
        (),
        [
            "" if mask else "how the scores move with the mask: the runs were not probed",
            "" if seeds else "how the scores move with the seed: no run was repeated with another seed",
            "how they move with lambda, unless runs with other settings stand here",
        ],
    )


def _heterogeneity(about: _About) -> Item:
    rows = report_tables.subgroup_table(about.subgroups)
    return Item(
        "Subgroups, sites, external test",
        "TRIPOD+AI 14, 23",
        [
            "AUC of held-out subjects within each group, not corrected for many looks; small groups have wide "
            "intervals. Columns of numbers are split at their median."
            if rows
            else "",
        ],
        [Shown("AUC by group", rows)],
        (),
        [
            "" if about.has("site") else "AUC by site: the cohort table has no column site",
            "a test on patients of a hospital that no model was trained on, leaving a site out included",
        ],
    )


def _explainability(about: _About) -> Item:
    results = about.results
    probed = any(model.get("probes") for model in results["models"])
    shown = [
        Shown("What the decision rests on", tables.causal_table(results)),
        Shown("Each tumour in another breast", rest_tables.transplant_table(results)),
        Shown("The same by dilation of the mask", probe_tables.causal_table(results), folded=True),
        Shown("The traps removed and added", probe_tables.trap_table(results)),
        Shown("Where the evidence lies", rest_tables.ledger_table(results)),
        Shown("Controls that know nothing of the tumour", rest_tables.control_table(results)),
        Shown("The site in the features", rest_tables.site_table(results)),
        Shown("Does the map agree with occlusion", probe_tables.occlusion_table(results)),
        Shown("Where the maps look", tables.attention_table(results), folded=True),
        Shown("Layers randomised from the output down", probe_tables.randomised_table(results), folded=True),
    ]
    return Item(
        "Explainability, failures, and what is open",
        "CLAIM 31, 37, 41",
        list(_explained(about, probed)),
        shown,
        ("figure3", "attention", "probes"),
        [
            "" if probed else "occlusion, randomised layers, random weights: the runs were not probed",
            "whether readers found the maps useful",
            "where the data may be had: the runs' files do not say",
        ],
    )


def _explained(about: _About, probed: bool) -> Iterator[str]:
    yield (
        "Method: decision maps, checked against mask and input. A decision map is the class activation map of the "
        "predicted class less the mean of all classes' maps: what softmax cancels is not in it."
    )
    yield tables.NOTES[1]
    yield READING_NOTE
    yield from (note for _, _, note in rest_tables.rest_tables(about.results))
    if probed:
        yield probe_tables.PROBE_NOTE
    wrong = [name for name, why in (about.facts.chosen or {}).items() if any(" by " in one for one in why)]
    if wrong:
        yield f"Failures at 0.5, last model, worst first: {named(wrong)}. See them in the viewer above."
    yield (
        f"Code: mgkeras {about.facts.version}, Apache-2.0. Weights and settings: in each run's folder, rebuilt "
        "without pickle."
    )
