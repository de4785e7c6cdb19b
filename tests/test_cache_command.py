"""mgkeras cache: what is listed, what each option removes, and what is never removed."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from mgkeras.cli.main import cli

from mgkeras.data import cache as caching
from mgkeras.data.cache_folder import EXAM, LEFT, OTHER, kept_files
from mgkeras.runs import store
from mgkeras.settings import with_values

DAY = 86400


@pytest.fixture
def kept(cohort, small, tmp_path):
    """A cache of exams of two runs, one exam of both, and of files of every other kind."""
    tiny, folder, runs = with_values(small, {"volume.side": 16}), tmp_path / "cache", []
    for name, subjects in (("a", cohort.subjects[:2]), ("b", cohort.subjects[1:4])):
        caching.cached(subjects, tiny, folder)
        runs.append(tmp_path / name)
        store.claim_settings(runs[-1], tiny)
        claim = {subject.name: {**caching.file_digests(subject), "label": subject.label} for subject in subjects}
        store.claim_data(runs[-1], {"subjects": claim})
    caching.cached(cohort.subjects[:1], small, folder)
    exams = [caching.exam_path(subject, tiny, folder) for subject in cohort.subjects[:4]]
    made = [folder / f"{'ab' * 12}.h5", folder / f"{'ab' * 12}.lock", exams[0].with_name(f".{exams[0].name}.part")]
    made.insert(0, exams[0].with_name(exams[0].name.replace("-v", "-v9")))
    foreign = [folder / "notes.h5", folder / "exams" / "notes.h5", folder / f"{'AB' * 12}.h5", tmp_path / made[0].name]
    foreign += [folder / "phantom" / "cohort.csv", folder / "exams" / f"16-v1-{'g' * 24}.h5"]
    for path in (*made, *foreign):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"here")
    link = exams[0].with_name(f"16-v1-{'0' * 24}.h5")
    link.symlink_to(foreign[0])
    return SimpleNamespace(folder=folder, exams=exams, made=made, foreign=[*foreign, link], runs=runs)


def asked(kept, *options, **more):
    return CliRunner().invoke(cli, ["cache", "--cache", str(kept.folder), *map(str, options)], **more)


def gone(kept):
    """Which of the exams are gone; nothing foreign ever is."""
    assert all(path.exists() for path in kept.foreign)
    return [place for place, path in enumerate(kept.exams) if not path.exists()]


def test_it_lists_by_side_and_kind_and_removes_nothing(kept):
    files = kept_files(kept.folder)
    assert [sum(file.kind == kind for file in files) for kind in (EXAM, LEFT, OTHER)] == [5, 1, 3]
    assert sum(file.size for file in files) == sum(file.path.stat().st_size for file in files) > 4 * 9 * 16**3
    os.utime(kept.exams[0], (time.time() - 9 * DAY,) * 2)
    output = asked(kept).output
    assert "5 exams, 4 other files, 0." in output and "4 exams of 16^3" in output and "1 exams of 24^3" in output
    assert "3 of other versions" in output and "used 0 to 9 days ago" in output
    found = json.loads(asked(kept, "--json").stdout)["files"]
    assert sum(row["files"] for row in found) == len(files) and {row["side"] for row in found} == {0, 16, 24}
    assert gone(kept) == []


def test_age_is_that_of_the_last_use(kept, cohort, small):
    for path in kept.exams[:3]:
        os.utime(path, (time.time() - 9 * DAY,) * 2)
    caching.cached(cohort.subjects[1:2], with_values(small, {"volume.side": 16}), kept.folder)
    assert "2 files removed" in asked(kept, "--prune-older", 8, "--yes").output
    assert gone(kept) == [0, 2] and all(path.exists() for path in kept.made)


@pytest.mark.parametrize(
    ("options", "removed", "others"),
    [
        (("--prune-run", "a"), [0, 1], False),
        (("--prune-run", "a", "--keep-run", "b"), [0], False),
        (("--prune-run", "a", "--prune-run", "b"), [0, 1, 2, 3], False),
        (("--keep-run", "b"), [0], True),
        (("--prune-older", 0, "--keep-run", "a"), [2, 3], True),
        (("--prune-older", 1, "--prune-run", "a"), [], False),
        (("--prune-older", 0), [0, 1, 2, 3], True),
        (("--prune-unread",), [], True),
    ],
)
def test_what_each_option_removes(options, removed, others, kept):
    runs = {path.name: path for path in kept.runs}
    asked(kept, *(runs.get(option, option) for option in options), "--yes")
    assert gone(kept) == removed and {path.exists() for path in kept.made} == {not others}


def test_nothing_goes_where_nobody_was_asked_or_the_answer_was_no(kept, monkeypatch):
    found = asked(kept, "--prune-older", 0)
    assert found.exit_code == 2 and "expected --yes where nobody can be asked" in found.output
    monkeypatch.setattr("mgkeras.cli.cache.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    assert asked(kept, "--prune-older", 0, input="n\n").exit_code == 1 and gone(kept) == []
    assert "Remove 9 of 9 files" in asked(kept, "--prune-older", 0, input="y\n").output and gone(kept) == [0, 1, 2, 3]


def test_what_a_process_is_writing_stays(kept):
    with open(kept.made[-1], "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "8 files removed" in asked(kept, "--prune-older", 0, "--yes").output and kept.made[-1].exists()
    assert "1 files removed" in asked(kept, "--prune-older", 0, "--yes").output


def test_exams_that_this_process_uses_stay_and_are_told(kept, cohort, small):
    tiny = with_values(small, {"volume.side": 16})
    using = caching.cached(cohort.subjects[1:3], tiny, kept.folder)
    handed = pickle.loads(pickle.dumps(using))  # as another process gets it
    told = asked(kept, "--prune-older", 0, "--yes").output
    assert gone(kept) == [0, 3] and "2 exams stay" in told and f"process {os.getpid()} on " in told
    assert np.array_equal(handed.image[1, 0], using.image[1, 0]) and len(using.image[0]) == 3
    del using, handed
    found = json.loads(asked(kept, "--prune-older", 0, "--yes", "--json").stdout)
    assert len(found["removed"]) == 2 and found["used"] == [] and gone(kept) == [0, 1, 2, 3]
    assert list((kept.folder / "in-use").glob("*.lock")) == []


def test_exams_of_a_process_that_was_killed_are_no_longer_used(kept, cohort, small):
    tiny = with_values(small, {"volume.side": 16})
    code = (
        "import pickle, sys, time\n"
        "from mgkeras.data.cache import cached\n"
        "found = cached(*pickle.load(sys.stdin.buffer))\n"
        "print('open', flush=True)\n"
        "time.sleep(300)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(pickle.dumps((cohort.subjects[:2], tiny, kept.folder)))
    process.stdin.close()
    assert process.stdout.readline() == b"open\n"
    assert f"2 exams stay, which process {process.pid} on " in asked(kept, "--prune-older", 0, "--yes").output
    assert gone(kept) == [2, 3]
    process.kill()
    process.wait()
    assert "stay" not in asked(kept, "--prune-older", 0, "--yes").output and gone(kept) == [0, 1, 2, 3]
    assert list((kept.folder / "in-use").glob("*.lock")) == []


def test_a_cache_that_may_not_be_written_to_is_used_without_a_lock(kept, cohort, small, monkeypatch):
    monkeypatch.setattr("mgkeras.data.in_use.FOLDER", "notes.h5")  # a file: no folder can be made
    found = caching.cached(cohort.subjects[:1], with_values(small, {"volume.side": 16}), kept.folder)
    assert len(found.image) == 1


def test_an_empty_cache_and_one_that_is_not_there(tmp_path):
    kept = SimpleNamespace(folder=tmp_path / "none")
    assert "0 exams" in asked(kept).output and "nothing to remove" in asked(kept, "--prune-older", 0).output
    assert not kept.folder.exists()
