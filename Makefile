# make demo: see it work.  make test: the tests.  make test-slow: the long ones.
# make test-processors: those whose numbers TensorFlow computes, as on processors without AVX-512 and without oneDNN.
# make test-faults N=1000: what comes of kills, flipped bits, edits, full disks and lies.  make lock, sbom,
# image-digests: what the Docker image is made of.  make docs: the documentation as a site.  make test-addons: the tests beside TensorFlow 2.15 and tensorflow-addons, in a virtual environment of their own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ADDONS_VENV ?= .venv-addons
ADDONS_BIN := $(ADDONS_VENV)/bin
# processes that share the tests, a file at a time; each takes 2 GB of memory
WORKERS ?= 2
PYTEST := -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# extras of setup.cfg that the Docker image has
IMAGE_EXTRAS := dicom import radiomics serving tune
DEVICE ?= cpu
N ?= 1000
FAULTS ?= faults

.PHONY: demo test test-slow test-faults test-processors test-addons addons-lane lint docs lock sbom image-digests clean

$(BIN)/mgkeras: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else "TensorFlow needs Python 3.10 to 3.13. Received: " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || (echo "venv is missing: on Debian, apt install python3-venv" && false)
	@echo "installing mgkeras and TensorFlow into $(VENV) (some minutes the first time)"
	$(BIN)/python -m pip install --quiet --editable .
	touch $(BIN)/mgkeras

$(VENV)/.tests-installed: $(BIN)/mgkeras
	$(BIN)/python -m pip install --quiet --editable '.[test,kserve,medicai]'
	touch $@

demo: $(BIN)/mgkeras
	$(BIN)/mgkeras demo

test: $(VENV)/.tests-installed lint
	$(BIN)/python $(PYTEST) -m 'not slow'

test-slow: $(VENV)/.tests-installed
	$(BIN)/python $(PYTEST) -m slow

# kills, flipped bits, edited files, a full disk, a server that lies: N of each, counted; it goes on where it stopped
test-faults: $(VENV)/.tests-installed
	PYTHONPATH=tests $(BIN)/python -m faults --count $(N) --log $(FAULTS)

# other kernels round otherwise; AVX2 alone is many a laptop's, and Eigen's kernels are those of other architectures
test-processors: $(VENV)/.tests-installed
	ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python $(PYTEST) -m 'computes and not slow'
	TF_ENABLE_ONEDNN_OPTS=0 $(BIN)/python $(PYTEST) -m 'computes and not slow'

# weights go from one lane to the other and back, so the main one is needed too
test-addons: $(VENV)/.tests-installed
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))'; \
	then echo "the addons lane is not tested: tensorflow-addons has no build for Python 3.12 or newer. Received: $$($(PYTHON) --version). Name another: make test-addons PYTHON=python3.11"; \
	else $(MAKE) --no-print-directory addons-lane; fi

addons-lane: $(ADDONS_VENV)/.tests-installed
	MGKERAS_OTHER_PYTHON="$(abspath $(BIN))/python" $(ADDONS_BIN)/python $(PYTEST) -m 'not slow'

$(ADDONS_VENV)/.tests-installed: setup.cfg pyproject.toml
	@$(ADDONS_BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(ADDONS_VENV)
	@echo "installing mgkeras, TensorFlow 2.15 and tensorflow-addons into $(ADDONS_VENV) (some minutes the first time)"
	$(ADDONS_BIN)/python -m pip install --quiet --editable '.[addons,test]'
	touch $@

lint: $(VENV)/.tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the documentation as a site that opens without a network: site/index.html
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@! grep -rE 'src="https?://' site --include='*.html' || (echo 'a page loads from the network' && false)
	@! grep -rE '<(p|td|li)>\$$' site --include='*.html' || (echo 'a formula is not drawn' && false)
	@echo site/index.html

$(VENV)/.docs-installed: $(BIN)/mgkeras
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# versions and hashes of what the image installs, newest first by setup.cfg: docker/requirements-{cpu,gpu}.txt
lock: $(BIN)/mgkeras
	$(BIN)/python -m pip install --quiet 'uv>=0.5'
	for device in cpu gpu; do echo 'setuptools>=64' | $(BIN)/uv pip compile setup.cfg - --upgrade --universal \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet $(IMAGE_EXTRAS:%=--extra %) \
	  $$([ $$device = cpu ] || echo --extra gpu) --output-file docker/requirements-$$device.txt || exit 1; done

# the image's Python packages as a CycloneDX bill of materials; DEVICE=gpu for the other image
sbom: $(BIN)/mgkeras
	$(BIN)/python -m pip install --quiet 'cyclonedx-bom>=5'
	$(BIN)/cyclonedx-py requirements docker/requirements-$(DEVICE).txt --output-reproducible --output-file sbom-$(DEVICE).json
	@echo sbom-$(DEVICE).json

# writes the digests of the images that the Dockerfile builds on beside their tags; needs Docker and its registry
image-digests:
	docker/pin-bases.sh Dockerfile

clean:
	rm -rf $(VENV) $(ADDONS_VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
