"""mgkeras info: versions, devices and sizes, and what to do about a GPU that TensorFlow does not see."""

from __future__ import annotations

from click.testing import CliRunner
from mgkeras.cli import info
from mgkeras.cli.main import cli

import mgkeras


def told(*options):
    found = CliRunner().invoke(cli, ["info", *options])
    assert found.exit_code == 0, found.output
    return found.output


def test_versions_cores_and_the_cache_are_told(tmp_path):
    assert "cache" in told("--cache", str(tmp_path)) and "empty" in told("--cache", str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.h5").write_bytes(bytes(2**20))
    output = told("--cache", str(tmp_path))
    assert f"mgkeras {mgkeras.__version__}" in output and "tensorflow 2." in output and " cores, " in output
    assert "1 files, 0.00 GiB" in output and "cluster" in output and "dicom" in output


def test_a_gpu_that_tensorflow_does_not_see_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr(info, "_nvidia", lambda: ["NVIDIA H100"])
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert "this machine has NVIDIA H100, which TensorFlow does not see: pip install 'mgkeras[gpu]'" in told()
    monkeypatch.setattr(info, "_nvidia", lambda: [])
    assert "no GPU: training runs on the CPU" in told()


def test_the_drivers_tool_is_read(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA A100\necho NVIDIA A100\n")
    tool.chmod(0o755)
    monkeypatch.setattr(info.shutil, "which", lambda name: str(tool))
    assert info._nvidia() == ["NVIDIA A100", "NVIDIA A100"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert info._nvidia() == []
    monkeypatch.setattr(info.shutil, "which", lambda name: None)
    assert info._nvidia() == []
