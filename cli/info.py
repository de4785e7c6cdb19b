"""`mgkeras info`: what runs here, and what it would need to run faster."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
from mgkeras.cli.command import Command
from mgkeras.cli.options import cache_option
from mgkeras.cli.terminal import answer, echo, import_tensorflow

PACKAGES = ("mgkeras", "tensorflow", "keras", "numpy", "scipy", "scikit-learn", "scikit-fuzzy", "nibabel", "h5py")
EXTRAS = {  # extra: a package that it brings
    "addons": "tensorflow-addons",
    "cluster": "distributed",
    "dicom": "highdicom",
    "import": "pydicom",
    "radiomics": "numpyradiomics",
    "serving": "tensorflow-serving-api",
    "tune": "keras-tuner",
}


@click.command(name="info", cls=Command)
@cache_option("Tell the size of this folder of prepared exams.")
def command(cache: Path) -> None:
    """Print versions, devices, cores, memory and the cache's size.

    Send this with a bug report, and look at it before a long run.
    """
    from mgkeras.training.devices import cores

    versions = {name: installed for name in PACKAGES if (installed := _version(name))}
    have = [extra for extra, package in EXTRAS.items() if _version(package)]
    files = []
    for path in cache.rglob("*") if cache.is_dir() else ():
        with suppress(FileNotFoundError):  # a running fit renames what it has written
            if path.is_file():
                files.append(path.stat().st_size)
    size, free, devices = sum(files) / 2**30, shutil.disk_usage(".").free / 2**30, _devices()
    echo(f"Python {platform.python_version()} on {platform.platform()}")
    echo(", ".join(f"{name} {installed}" for name, installed in versions.items()))
    echo(f"extras: {', '.join(have) or 'none'}; not installed: {', '.join(e for e in EXTRAS if e not in have)}")
    echo(f"{cores()} cores, {_memory()} of memory, {free:.0f} GiB free on this disk")
    echo(devices)
    echo(f"cache {cache}: {f'{len(files)} files, {size:.2f} GiB' if files else 'empty'}")
    answer(
        python=platform.python_version(),
        platform=platform.platform(),
        packages=versions,
        extras=have,
        cores=cores(),
        memory=_memory(),
        free_gib=round(free, 1),
        devices=devices,
        cache={"folder": cache, "files": len(files), "gib": round(size, 3)},
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError):
        return "unknown size"


def _devices() -> str:
    """The GPUs that TensorFlow sees; where it sees none that the machine has, what to do."""
    import_tensorflow()
    import tensorflow as tf

    seen = tf.config.list_physical_devices("GPU")
    if seen:
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in seen]
        return f"GPUs that TensorFlow sees: {', '.join(names)}"
    there = _nvidia()
    if there:
        return (
            f"this machine has {', '.join(there)}, which TensorFlow does not see: pip install 'mgkeras[gpu]' "
            "(TensorFlow with CUDA), or look whether the driver is too old for it"
        )
    return "no GPU: training runs on the CPU"


def _nvidia() -> list[str]:
    """The names of the machine's NVIDIA GPUs by their driver's own tool; none where there is no such tool."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    found = subprocess.run([tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return [line.strip() for line in found.stdout.splitlines() if line.strip()] if found.returncode == 0 else []
