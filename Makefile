# Everything is made from a clean checkout by `make demo` or `make test`; nothing needs root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TORCH_DEVICE_BACKEND_AUTOLOAD := 0
# Which command does the heavy lifting is chosen by run-time: emulated where there is no NPU, or asked for by name.
RUN := TORCH_DEVICE_BACKEND_AUTOLOAD=1 $(BIN)/python -m torch_llm_datadist
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := TORCH_DEVICE_BACKEND_AUTOLOAD=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q
UNDER_RACES := -p torch_llm_datadist.emulator.pytest_races --races-between-processes
SOURCES := setup.py pyproject.toml torch_llm_datadist/messages.inc torch_llm_datadist_emulator.pth $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.map' -o -name 'since.txt')

.PHONY: demo test conformance races build lint format bench bench-wire sim-fleet bench-emulator peers compare-peers plots performance callgrind op-table api-docs clean

demo: build
	$(RUN) demo $(if $(MODE),--mode $(MODE)) $(if $(TOKENS),--tokens $(TOKENS)) $(ARGS)

test: build
	$(PYTEST) tests/emulated_runtime $(ARGS)
	$(PYTEST) $(ARGS)

# The calls of the API, the layer ops and the deadlines over one transport: mapped, nixl or hixl.
TRANSPORT ?= mapped
conformance: build
	TORCH_LLM_DATADIST_TRANSPORT=$(TRANSPORT) $(PYTEST) tests/conformance $(addprefix tests/test_,$(addsuffix .py,\
		ordering failures push_blocks push_blocks_compiled tickets transfer_async entry_transfers binding_graphs)) $(ARGS)

# The whole suite under the race checker, all processes together.
races: build
	$(PYTEST) $(UNDER_RACES) tests/emulated_runtime $(ARGS)
	$(PYTEST) $(UNDER_RACES) $(ARGS)

build: $(VENV)/built

# The short set, within 5 minutes. What it finds goes to build/bench, for `make plots` and `make performance`.
# CHECK=--check fails, here and in compare-peers, where a figure misses what benchmarks/bounds.py wants.
bench: build
	$(RUN) run -m benchmarks.bench_blocks --json build/bench/blocks.json $(CHECK) $(ARGS)
	$(RUN) run -m benchmarks.bench_blocks --profile a3 --json build/bench/projected.json
	$(RUN) run -m benchmarks.bench_scale --json build/bench/scale.json
	$(RUN) run -m benchmarks.bench_dispatch --calls 200 --json build/bench/dispatch.json $(CHECK)
	$(RUN) run -m benchmarks.bench_layerwise_overlap --json build/bench/overlap.json

# Pushes over NIXL's TCP against bare NIXL, between two network namespaces; ARGS=--check fails where a share is too small.
bench-wire: build
	$(RUN) run -m benchmarks.bench_wire --json build/bench/wire.json $(ARGS)

# Thousands of processes in simulated time; ARGS=--check compares the model with real ones.
sim-fleet: build
	$(RUN) run -m benchmarks.sim_fleet --json build/bench/fleet.json $(ARGS)

# Other libraries, in an environment of their own; Debian packages are unpacked there, nothing is installed.
PEERS := build/peers
peers: build
	test -x $(PEERS)/venv/bin/python || $(PYTHON) -m venv $(PEERS)/venv
	mkdir -p $(PEERS)/debs $(PEERS)/root
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(PEERS)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth"
	$(PEERS)/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		nixl-cu12==1.5.1 mooncake-transfer-engine-non-cuda==0.3.13
	cd $(PEERS)/debs && apt-get download libibverbs1 libnl-3-200 libnl-route-3-200
	for package in $(PEERS)/debs/*.deb; do dpkg -x "$$package" $(PEERS)/root; done

# 5 rounds of 6 cases, some 10 minutes on 2 idle cores; ARGS="--rounds 1 --cases d" takes less. Draws the bars, too.
compare-peers: build
	$(PIP) matplotlib==3.11.2
	$(RUN) run -m benchmarks.compare_peers --json build/bench/peers.json --picture build/bench/peers.png $(CHECK) $(ARGS)

# What the benchmarks found, as pictures.
plots: build
	$(PIP) matplotlib==3.11.2
	$(BIN)/python -m benchmarks.plots build/bench

# Runs the short set, and where `make peers` was, 5 rounds of the other libraries (some 10 minutes more), and writes
# docs/performance.md of it.
performance: bench
	$(PIP) matplotlib==3.11.2
	if test -x $(PEERS)/venv/bin/python; then \
		$(RUN) run -m benchmarks.compare_peers --json build/bench/peers.json; fi
	$(BIN)/python -m benchmarks.write_performance build/bench docs/performance.md

# Instructions of the planner's paths against recorded figures; needs valgrind.
callgrind: build
	$(BIN)/python benchmarks/count_instructions.py $(ARGS)

# Runs the aten ops that there are samples for on emulated tensors and writes docs/emulated_ops.md; takes minutes.
op-table: build
	TORCH_DEVICE_BACKEND_AUTOLOAD=1 $(BIN)/python -W ignore -m torch_llm_datadist.emulator.op_table docs/emulated_ops.md

# Writes docs/api from the docstrings.
api-docs: build
	$(RUN) run --emulate docs/api_pages.py

# What a task and a copy cost the emulated runtime itself, without torch.
bench-emulator: build
	$(CXX) -O2 -std=c++20 -pthread -isystem "$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("torch_npu").submodule_search_locations[0])')/include" \
		benchmarks/bench_emulator.cpp -o build/bench_emulator \
		-Ltorch_llm_datadist/emulator/lib -lascendcl -Wl,-rpath,'$$ORIGIN/../torch_llm_datadist/emulator/lib'
	build/bench_emulator $(ARGS)

# Breaks the emulated runtime on purpose, one guarantee after the other, and sees a test fail each time; an hour.
.PHONY: mutations
mutations: build
	TORCH_DEVICE_BACKEND_AUTOLOAD=1 $(BIN)/python -m tests.mutations $(ARGS)

# The C++ tests and a smoke test of several processes, under AddressSanitizer and UBSan, and under ThreadSanitizer.
# And compiled for Arm, run by QEMU: needs Debian's g++-aarch64-linux-gnu and qemu-user-static.
.PHONY: asan tsan aarch64
asan tsan aarch64: build
	$(BIN)/python -m tests.cpp $@ $(ARGS)

# Messages and plans that nobody would send. A seed that fails is printed; what atheris finds goes to build/fuzz*.
.PHONY: fuzz
fuzz: build
	mkdir -p build/fuzz
	$(BIN)/python -m tests.cpp asan fuzz_plan $(or $(SEED),1) $(or $(RUNS),1000000)
	$(BIN)/python -m tests.cpp asan fuzz_messages $(or $(SEED),1) $(or $(LINKS),1000)
	$(BIN)/python -m tests.fuzz parser --seed $(or $(SEED),1) --runs $(or $(RUNS),1000000)
	$(BIN)/python -m tests.fuzz listener --seed $(or $(SEED),1) --runs $(or $(MESSAGES),100000)
	$(BIN)/python -m tests.fuzz parser --seed $(or $(SEED),1) --runs $(or $(RUNS),1000000) --atheris build/fuzz
	mkdir -p build/fuzz_plans
	$(RUN) run --emulate -m tests.fuzz planner --seed $(or $(SEED),1) --runs $(or $(RUNS),1000000) --atheris build/fuzz_plans

# Peers that fail at every stage; writes docs/reliability.md.
.PHONY: reliability
reliability: build
	$(PYTEST) tests/test_reliability.py -k survivor -o junit_family=xunit1 --junitxml build/reliability.xml $(ARGS)
	TORCH_LLM_DATADIST_TEST_EVERY_CUT=1 $(PYTEST) -n 1 tests/test_reliability_across_hosts.py \
		-o junit_family=xunit1 --junitxml build/reliability_hosts.xml $(ARGS)
	$(BIN)/python -m tests.reliability.page build/reliability.xml build/reliability_hosts.xml docs/reliability.md

# Hosts that are stopped for as long as serving engines see it, with their device going on or not.
.PHONY: stops
stops: build
	TORCH_LLM_DATADIST_TEST_STOP_S=$(or $(STOP_S),10) $(PYTEST) tests/test_stopped_hosts.py $(ARGS)

# 500 strangers who send 10 MB/s between them; on a machine that has nothing else to do.
.PHONY: flood
flood: build
	TORCH_LLM_DATADIST_TEST_FULL_FLOOD=1 $(PYTEST) -n 0 -s tests/test_strangers.py -k strangers_who_send_garbage $(ARGS)

# Transfers and faults at random, every byte checked; a seed says what happens.
.PHONY: soak
soak: build
	TORCH_DEVICE_BACKEND_AUTOLOAD=1 $(BIN)/python -m tests.soak --seconds $(or $(SECONDS),60) \
		--seed $(or $(SEED),1) --procs $(or $(PROCS),6) $(ARGS)

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc tests -name '*.cpp' -o -name '*.h')

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc tests -name '*.cpp' -o -name '*.h')

# What the build itself needs comes first, since it is not isolated: the plugin is valid for exactly this torch_npu.
$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools==84.2.1 wheel==0.48.0 ninja==1.13.2 torch==2.13.0 torch_npu==2.13.0
	touch $@

# Editable: Python sources are used where they lie, the libraries are built next to them. An editable install leaves out
# the start-up hook, which a wheel brings along.
$(VENV)/built: $(VENV)/installed $(SOURCES)
	$(PIP) --no-build-isolation --editable '.[test,lint,nixl,fuzz]'
	cp torch_llm_datadist_emulator.pth "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	touch $@

clean:
	rm -rf build $(VENV) *.egg-info torch_llm_datadist/_built_for.py
	find torch_llm_datadist -name '*.so' -delete
