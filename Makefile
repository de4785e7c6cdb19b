# make demo: see it work.  make test: the tests.  make test-slow: the long ones.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint clean

$(BIN)/mgkeras: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else "TensorFlow needs Python 3.10 to 3.13. Received: " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || (echo "venv is missing: on Debian, apt install python3-venv" && false)
	@echo "installing mgkeras and TensorFlow into $(VENV) (some minutes the first time)"
	$(BIN)/python -m pip install --quiet --editable .
	touch $(BIN)/mgkeras

$(VENV)/.tests-installed: $(BIN)/mgkeras
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(BIN)/mgkeras
	$(BIN)/mgkeras fit --model guided --out runs/demo/guided
	$(BIN)/mgkeras fit --model no-mask --out runs/demo/no-mask
	$(BIN)/mgkeras compare runs/demo/no-mask runs/demo/guided --out runs/demo/comparison
	$(BIN)/mgkeras report runs/demo/no-mask runs/demo/guided --out runs/demo/report.html

test: $(VENV)/.tests-installed lint
	$(BIN)/python -m pytest -m 'not slow'

test-slow: $(VENV)/.tests-installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.tests-installed
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
