"""A cohort of one's own: a folder a subject, or files that carry the subject's name, found by patterns.

Glossary:
    pattern: ``*`` and ``?`` stand for any text and letter of a name, ``**/`` for any folders, ``[12]`` for one of these
        letters; upper and lower case are alike. ``{subject}`` stands for a subject's name, wherever it occurs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mgkeras.data.checks import as_name, check_name
from mgkeras.errors import few
from mgkeras.importers.found import SUBJECT, Exam, Found, LeftOut, SourceError
from mgkeras.importers.listing import entries, files_below
from mgkeras.importers.participants import join, read_participants

HOLDER = "{subject}"
NAMED_AT_MOST = 3  # files in a reason
TOKENS = re.compile(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\]|\{subject\})")


def read(
    source: Path,
    *,
    pre: str | None = None,
    early: str | None = None,
    late: str | None = None,
    mask: str | None = None,
    labels: Path | None = None,
    subject_column: str | None = None,
    outcomes: Sequence[str] = (),
    covariates: Sequence[str] | None = None,
    labels_only: bool = False,
) -> Found:
    """Finds each subject's files by patterns and joins them to a table of labels.

    Args:
        source: holds a folder a subject, or, where the patterns have ``{subject}``, whatever they say.
        pre, early, late, mask: patterns of pre, early, late and the tumour's mask; of paths below the subject's folder,
            or below ``source`` where they have ``{subject}``. Each must match one file; files whose names begin with a
            dot are not seen. ``pre`` may be None where there is a pattern of the mask, which is made from it.
        labels: a csv, tsv or xlsx table, a row a subject; see participants.read_participants for the next three.
        subject_column, outcomes, covariates: its columns.
        labels_only: read the table alone.

    Returns:
        Found: subjects without exactly one file for pre and early are left out, and so are masks and late phases that
        are missing or doubtful; the reasons name the files.

    Raises:
        SourceError: no table, no pattern for early, none for pre or mask, patterns of both kinds, or no subject with
            both files.
    """
    table = None
    if labels is not None:
        table = read_participants(labels, subject_column=subject_column, outcomes=outcomes, covariates=covariates)
    if labels_only:
        if table is None:
            raise SourceError("expected a table of labels, by --labels. Received: none, and labels only are wanted")
        return replace(table, kind="folder")
    asked = {"pre": pre, "early": early, "late": late, "mask": mask}
    patterns = {column: pattern for column, pattern in asked.items() if pattern}
    candidates = _candidates(source, patterns)
    exams, left_out, needed = [], [], _needed(patterns)
    for name, files in candidates:
        chosen, reasons = _choose(name, files, patterns, source)
        left_out += reasons
        if {*needed} <= chosen.keys():
            when = {f"{column}_seconds": f"--{column}, as told" for column in ("early", "late") if column in chosen}
            exams.append(Exam(name, chosen, when=when))
    if not exams:
        raise SourceError(_nothing(source, patterns, left_out))
    told = ", ".join(f"{column} is {patterns[column]}" for column in patterns if column != "mask")
    found = join(
        Found("folder", tuple(exams), tuple(left_out), phases=f"{told}, as told", without_pre="pre" not in needed),
        table,
    )
    return _renamed(found)


def _renamed(found: Found) -> Found:
    """Subjects whose folders' names cannot name files, under names that can; told in a note.

    A name that another subject has is not given.
    """
    names = {exam.name: as_name(exam.name) for exam in found.exams}
    names = {old: new for old, new in names.items() if check_name(old)}
    taken = Counter(names.get(exam.name, exam.name).casefold() for exam in found.exams)
    clash = {old for old, new in names.items() if check_name(new) or taken[new.casefold()] > 1}
    given = {old: new for old, new in names.items() if old not in clash}
    if not names:
        return found
    left_out = [
        replace(exam, name=given.get(exam.name, exam.name)) for exam in found.left_out if exam.name not in clash
    ]
    left_out += [LeftOut(old, "another subject has the name that this one would get") for old in sorted(clash)]
    told = few((f"{old!r} is {new}" for old, new in given.items()), NAMED_AT_MOST)
    note = f"Subjects renamed, since their names cannot name files: {told}."
    return replace(
        found,
        exams=tuple(
            replace(exam, name=given.get(exam.name, exam.name)) for exam in found.exams if exam.name not in clash
        ),
        left_out=tuple(left_out),
        notes=(*found.notes, *([note] if given else [])),
    )


def _needed(patterns: Mapping[str, str]) -> tuple[str, str]:
    """The two columns that every subject must have a file for."""
    return ("early", "mask") if "mask" in patterns and "pre" not in patterns else ("early", "pre")


def _candidates(source: Path, patterns: Mapping[str, str]) -> list[tuple[str, dict[str, list[Path]]]]:
    """(subject, the files that match the pattern of each column), in the order of names."""
    needed = _needed(patterns)
    if missing := [f"--{column}" for column in reversed(needed) if column not in patterns]:
        raise SourceError(
            f"expected a pattern for early, and one for pre or for the mask. Received: none by {', '.join(missing)}"
        )
    named = {column: HOLDER in pattern for column, pattern in patterns.items()}
    if len(set(named.values())) > 1:
        raise SourceError(
            f"expected {HOLDER} in every pattern or in none. Received: "
            + ", ".join(f"--{column} {pattern}" for column, pattern in patterns.items())
        )
    expressions = {column: _expression(pattern) for column, pattern in patterns.items()}
    found: dict[str, tuple[str, dict[str, list[Path]]]] = {}
    if named["early"]:
        for path in files_below(source):
            for column, expression in expressions.items():
                if match := expression.fullmatch(path.relative_to(source).as_posix()):
                    name = match["subject"]
                    files = found.setdefault(name.casefold(), (name, {}))[1]
                    files.setdefault(column, []).append(path)
        return [found[key] for key in sorted(found)]
    for folder in sorted(entries(source), key=lambda path: path.name.casefold()):
        if folder.is_dir():
            paths = [(path, path.relative_to(folder).as_posix()) for path in files_below(folder)]
            files = {
                column: [path for path, text in paths if expression.fullmatch(text)]
                for column, expression in expressions.items()
            }
            found[folder.name] = (folder.name, files)
    return list(found.values())


def _choose(
    name: str, files: Mapping[str, list[Path]], patterns: Mapping[str, str], source: Path
) -> tuple[dict[str, Path], list[LeftOut]]:
    """The file of each column that has exactly one, and what is to be told of the others."""
    chosen, left_out = {}, []
    for column, pattern in patterns.items():
        paths = files.get(column, [])
        of = SUBJECT if column in _needed(patterns) else column
        if len(paths) == 1:
            chosen[column] = paths[0]
        elif not paths:
            left_out.append(LeftOut(name, f"no file matches {column}: {pattern}", of))
        else:
            shown = few((path.relative_to(source).as_posix() for path in paths), NAMED_AT_MOST)
            left_out.append(LeftOut(name, f"several files match {column}: {shown}", of))
    if any(exam.of == SUBJECT for exam in left_out):
        left_out = [exam for exam in left_out if exam.of == SUBJECT]  # the rest went with it
    return chosen, left_out


def _nothing(source: Path, patterns: Mapping[str, str], left_out: Sequence[LeftOut]) -> str:
    """Why no subject was found, with files of the source to mend the patterns by."""
    told = ", ".join(f"--{column} {pattern}" for column, pattern in patterns.items())
    reasons = "; ".join(f"{exam.name}: {exam.reason}" for exam in left_out[:2])
    shown = ", ".join(path.relative_to(source).as_posix() for path in files_below(source)[:6])
    needed = " and ".join(reversed(_needed(patterns)))
    return (
        f"expected subjects in {source} with one file each for {needed}. Received: none by {told}"
        + (f" ({reasons})" if reasons else "")
        + f"; the folder holds {shown or 'no files'} ..."
    )


def _expression(pattern: str) -> re.Pattern[str]:
    parts, named = [], False
    for part in TOKENS.split(pattern.removeprefix("./")):
        if part == HOLDER:
            parts.append("(?P=subject)" if named else "(?P<subject>[^/]+?)")
            named = True
        elif part.startswith("[") and TOKENS.fullmatch(part):
            parts.append("[" + part[1:-1].replace("!", "^", part[1] == "!").replace("\\", r"\\") + "]")
        else:
            known = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
            parts.append(known.get(part, re.escape(part)))
    try:
        return re.compile("".join(parts), re.IGNORECASE)
    except re.error as error:
        raise SourceError(f"expected a pattern such as *_0000.nii.gz. Received: {pattern!r}, {error}") from None
