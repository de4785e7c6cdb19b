# make demo: see it work.  make test: the tests.  make test-slow: the long ones.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint clean

$(BIN)/mgkeras: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("mgkeras needs Python 3.10 or newer. Received: " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
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

test: $(VENV)/.tests-installed lint
	$(BIN)/python -m pytest -m 'not slow'

test-slow: $(VENV)/.tests-installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.tests-installed
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
