"""Every broken file ends in an error that names file and subject, soon, in little memory, with nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import broken
import nibabel as nib
import numpy as np
import pytest
from mgkeras.cli.main import main

from mgkeras.data import nifti
from mgkeras.data.cohort import read_cohort
from mgkeras.data.volume import ExamError, load_volume, save_like
from mgkeras.settings import as_dict, for_model, preset

MOST_MEMORY = 1e9  # bytes, of a whole process
HANG = 300  # s, after which a test gives up: a guard, not a claim
ONE_BY_ONE = """
import json, os, sys, time
from pathlib import Path
from mgkeras.data.cohort import CohortError, open_cohort
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # so that a failure spares the machine
for table in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork():
        _, status = os.wait()
        assert status == 0, (table, status)
        continue
    started = time.process_time()
    try:
        told = repr(open_cohort(table, "recurrence"))
    except CohortError as error:
        told = str(error)
    peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps([table, told, time.process_time() - started, peak]))
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BAD's files, a good exam, cohort.csv of all subjects, and a table of each bad file alone."""
    folder = tmp_path_factory.mktemp("corpus")
    files = broken.make_bad(folder)
    pre, early = broken.voxels(), broken.voxels()
    early[4:8, 4:8, 2:6] *= 4
    for name, data in (("pre", pre), ("early", early)):
        nib.save(nib.Nifti1Image(data, broken.AFFINE), folder / f"{name}.nii.gz")
    header, good = "subject,pre,early,recurrence\n", "good,pre.nii.gz,early.nii.gz,0\n"
    rows = [f"{name},pre.nii.gz,{file.relative_to(folder)},1\n" for name, file in files.items()]
    (folder / "cohort.csv").write_text(header + good + "".join(rows))
    for name, row in zip(files, rows, strict=True):
        (folder / f"only-{name}.csv").write_text(header + good + row)
    return folder


def places(text: str, name: str) -> list[str]:
    """The lines of a command's output that tell an error of the subject."""
    told = re.compile(rf"error: (line \d+, subject )?{re.escape(name)}[,:]")
    return [line for line in text.splitlines() if told.search(line)]


@pytest.mark.parametrize("name", [name for name in broken.BAD if name not in broken.UNUSABLE_VOXELS])
def test_a_broken_file_is_refused_by_name(corpus: Path, name: str) -> None:
    file, _, words = broken.BAD[name]
    with pytest.raises(ExamError, match=r"^expected .*\. Received: ") as error:
        load_volume(corpus / name / file)
    assert re.search(words, str(error.value)) and str(corpus / name / file) in str(error.value)


@pytest.mark.parametrize("name", broken.GOOD)
def test_an_odd_file_loads_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    file, make = broken.GOOD[name]
    make(tmp_path / file)
    for piece in (nifti.PIECE, 7):
        monkeypatch.setattr(nifti, "PIECE", piece)
        volume = load_volume(tmp_path / file)
        np.testing.assert_array_equal(volume.data, broken.voxels()[::-1, ::-1])
        np.testing.assert_allclose(volume.zooms, [2, 2, 3])
    again = load_volume(save_like(tmp_path / file, volume.data, tmp_path / "again.nii.gz"))
    np.testing.assert_array_equal(again.data, volume.data)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    path.write_bytes(broken.nifti())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file, as root may")
    with pytest.raises(ExamError, match="x.nii, which fails with: .*Permission denied"):
        load_volume(path)


def test_nothing_is_left_of_what_cannot_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = tmp_path / "reference.nii.gz"
    reference.write_bytes(b"")
    broken.GOOD["packed"][1](reference)

    def half(image: nib.Nifti1Image, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(nib, "save", half)
    with pytest.raises(OSError, match="No space"):
        save_like(reference, broken.voxels(), tmp_path / "out" / "a.nii.gz")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_below_a_gigabyte(corpus: Path) -> None:
    """Each file in a process of its own, forked after the imports, so that no file has another's peak."""
    tables = [str(corpus / f"only-{name}.csv") for name in broken.BAD]
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE, *tables], capture_output=True, text=True, timeout=HANG, env=alone
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [table for table, *_ in found] == tables
    for name, (_, told, _, _) in zip(broken.BAD, found, strict=True):
        line = places(told, name)[0]  # of two where pre, which is good, is not in the space of this
        assert re.search(broken.BAD[name][2], line), line
        assert name in broken.UNUSABLE_VOXELS or str(corpus / name / broken.BAD[name][0]) in line
        assert "subject good" not in told
    seconds, peak = max((trial[2], trial[0]) for trial in found), max((trial[3], trial[0]) for trial in found)
    print(f"\nworst: {seconds[0]:.2f} s of processor time ({seconds[1]}), {peak[0] / 1e6:.0f} MB ({peak[1]})")
    assert peak[0] < MOST_MEMORY


# Commands. The bombs, which take seconds each, are left to the test above.


@pytest.fixture
def small(corpus: Path, tmp_path: Path) -> Path:
    """A folder of its own with the cohort, less the bombs that load."""
    lines = (corpus / "cohort.csv").read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.split(",")[0] not in broken.UNUSABLE_VOXELS]
    (tmp_path / "cohort.csv").write_text("".join(re.sub(r",(?=[\w-]+[./])", f",{corpus}/", line) for line in kept))
    return tmp_path


def run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str]:
    """The command as a user runs it: exit code, and all that it prints."""
    monkeypatch.setattr(sys, "argv", ["mgkeras", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    return ended.value.code, told.out + told.err


def check_told(told: str, corpus: Path) -> None:
    """A line for each bad subject, which names its file; none for the good subject; no traceback."""
    assert "Traceback" not in told
    for name in broken.BAD.keys() - broken.UNUSABLE_VOXELS:
        lines = places(told, name)
        assert len(lines) == 1 and str(corpus / name / broken.BAD[name][0]) in lines[0], (name, lines)
    assert places(told, "good") == []


def test_mask_makes_the_good_one_and_tells_the_others(
    corpus: Path, small: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, told = run(
        capsys, monkeypatch, "mask", small / "cohort.csv", "--smallest-mm3", 0, "--thinnest-mm", 0, "--jobs", 1
    )
    assert code == 1
    check_told(told, corpus)
    assert {path.name for path in (small / "masks").iterdir()} == {
        "good.nii.gz",
        "report.csv",
        "cohort.csv",
        "check-sheet.html",
    }
    assert (load_volume(small / "masks" / "good.nii.gz").data > 0).any()
    rows = {subject.name: subject for subject in read_cohort(small / "masks" / "cohort.csv", predict=True).subjects}
    assert [name for name, subject in rows.items() if subject.mask] == ["good"]


def test_fit_stops_before_anything_is_written(
    corpus: Path, small: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small)
    code, told = run(
        capsys,
        monkeypatch,
        "fit",
        "--model",
        "guided",
        "--cohort",
        "cohort.csv",
        "--outcome",
        "recurrence",
        "--out",
        "run",
        "--cache",
        "cache",
    )
    assert code == 1
    check_told(told, corpus)
    assert [path.name for path in small.iterdir()] == ["cohort.csv"]


def test_predict_stops_before_anything_is_written(
    corpus: Path, small: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small / "run").mkdir()
    settings = for_model(preset("demo"), "guided")
    (small / "run" / "settings.json").write_text(json.dumps({**as_dict(settings), "outcome": "recurrence"}))
    code, told = run(
        capsys, monkeypatch, "predict", small / "run", "--cohort", small / "cohort.csv", "--out", small / "out"
    )
    assert code == 1
    check_told(told, corpus)
    assert {path.name for path in small.iterdir()} == {"cohort.csv", "run"}


def test_a_mask_that_was_damaged_since_is_an_error_and_stays(
    small: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = "mask", small / "cohort.csv", "--smallest-mm3", 0, "--thinnest-mm", 0, "--jobs", 1
    run(capsys, monkeypatch, *arguments)
    kept = small / "masks" / "good.nii.gz"
    shutil.copy(kept, small / "whole")
    kept.write_bytes(kept.read_bytes()[:-9])
    code, told = run(capsys, monkeypatch, *arguments)
    assert code == 1 and len(places(told, "good")) == 1 and str(kept) in places(told, "good")[0]
    assert kept.read_bytes() == (small / "whole").read_bytes()[:-9]
    code, told = run(capsys, monkeypatch, *arguments, "--overwrite")
    assert places(told, "good") == [] and kept.read_bytes() == (small / "whole").read_bytes()
