"""Small cohorts and models, made once."""

from __future__ import annotations

import gc
import os
import sys
from dataclasses import replace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:  # each of the processes that share the tests has one core
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")

import pytest

from mgkeras.data.cache import cached
from mgkeras.data.cohort import read_cohort
from mgkeras.phantom.cohort import make_phantom
from mgkeras.settings import for_model, preset, with_values

LONGEST = ("training", "jobs", "keras_api", "tune", "python_api", "probe_run", "export", "report_browser", "devices")


def pytest_collection_modifyitems(items):
    """The longest files first, so that processes that share the tests end together (xdist, --no-loadscope-reorder)."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


FROZEN: list[bool] = []


def pytest_runtest_setup(item):
    """Takes Keras' and TensorFlow's own objects out of the garbage collector, which each fold calls at its end."""
    if "keras" in sys.modules and not FROZEN:
        FROZEN.append(True)  # gc.get_freeze_count() would count a million objects before each test
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """cohort.csv of 12 phantoms of side 24."""
    return make_phantom(tmp_path_factory.mktemp("phantom"), subjects=12, side=24, seed=5, traps=["spot"])


@pytest.fixture(scope="session")
def cohort(phantom):
    """The phantoms' cohort, read."""
    return read_cohort(phantom, "recurrence")


@pytest.fixture(scope="session")
def cache(cohort, small, tmp_path_factory):
    """The open cache of the phantoms."""
    return cached(cohort.subjects, small, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def small():
    """Settings of a run that takes seconds: side 24, 2 folds, 2 epochs."""
    values = {
        "volume.side": 24,
        "training.folds": 2,
        "training.epochs": 2,
        "training.batch_size": 4,
        "training.shift_voxels": 2,
    }
    return replace(for_model(with_values(preset("demo"), values), "guided"), outcome="recurrence")


@pytest.fixture(scope="session")
def plain(phantom, tmp_path_factory):
    """A deterministic run whose folds were trained one after the other, and the folder of its cache."""
    from test_jobs import fit

    home = tmp_path_factory.mktemp("jobs")
    fit(phantom, home / "plain", home / "cache")
    return home / "plain", home / "cache"


def skip_where_refused(**asked):
    """Skips a test on a device that refuses what it needs, with the reason that a user is told."""
    from mgkeras.training.devices import choose_device

    try:
        choose_device(**asked)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def bfloat16():
    """For tests that compute in bfloat16, which not every processor does."""
    skip_where_refused(precision="bfloat16")


@pytest.fixture
def float16():
    """For tests that compute in float16; folded, as TensorFlow has no max-pool of it on a CPU."""
    skip_where_refused(precision="float16", s2d_blocks=3)
