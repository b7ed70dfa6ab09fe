# Everything is made from a clean checkout by `make demo` or `make test`; nothing needs root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TORCH_DEVICE_BACKEND_AUTOLOAD := 0
# Which command does the heavy lifting is chosen by run-time: emulated where there is no NPU, or asked for by name.
RUN := TORCH_DEVICE_BACKEND_AUTOLOAD=1 $(BIN)/python -m torch_llm_datadist
SOURCES := setup.py pyproject.toml torch_llm_datadist_emulator.pth $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc')

.PHONY: demo test build lint format bench clean

demo: build
	$(RUN) demo $(if $(TOKENS),--tokens $(TOKENS)) $(ARGS)

test: build
	TORCH_DEVICE_BACKEND_AUTOLOAD=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q $(ARGS)

build: $(VENV)/built

bench: build
	$(RUN) run benchmarks/bench_push.py $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.cpp' -o -name '*.h')

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -name '*.cpp' -o -name '*.h')

# The dependencies, pinned by pyproject.toml. torch first: torch_npu and the build need exactly that one.
$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check setuptools==84.2.1 wheel==0.48.0 ninja==1.13.2 \
	  torch==2.13.0 torch_npu==2.13.0
	$(BIN)/python -c "import tomllib as t; p = t.load(open('pyproject.toml', 'rb'))['project']; o = p['optional-dependencies']; \
	  print('\n'.join(p['dependencies'] + o['demo'] + [d for d in o['test'] if '[' not in d] + o['lint']))" > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt
	touch $@

# Editable: Python sources are used where they lie, the libraries are built next to them.
$(VENV)/built: $(VENV)/installed $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf build $(VENV) *.egg-info torch_llm_datadist/_built_for.py
	find torch_llm_datadist -name '*.so' -delete
