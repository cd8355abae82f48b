# Thin names for the real commands. Every target begins with `make install`, which does nothing when nothing changed.
PYTHON ?= python3
BIN := .venv/bin
CPP := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)

SANITIZED ?= tests/ops

.PHONY: install demo test test-fast test-sanitized lint docs bench campaign test-gpu

install: .venv/fastdarts.installed

.venv/constraints.installed: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement constraints.txt
	@touch $@

# the native module may be left out only where there is no compiler
.venv/fastdarts.installed: .venv/constraints.installed pyproject.toml setup.py CMakeLists.txt $(CPP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
		--constraint constraints.txt --editable '.[dev]'
	@if command -v c++ || command -v g++ || command -v clang++; then \
		$(BIN)/python -m fastdarts.info --require-native; fi >/dev/null
	@touch $@

demo: install
	$(BIN)/python -m fastdarts.search_imagenet --save runs/demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/codespell
	$(BIN)/ty check --python .venv --error-on-warning --output-format concise fastdarts kernels bench examples

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: install lint
	$(BIN)/python -m pytest -n 2 --benchmark-disable --junitxml=build/tests.xml tests bench

# without processes, Triton's interpreter and compilers
test-fast: install
	$(BIN)/python -m pytest -n 2 -m "not campaign and not slow" --benchmark-disable tests

# the ops' tests on a module of its own, built with the address and undefined behaviour sanitizers; minutes
test-sanitized: install
	CMAKE_ARGS=-DFASTDARTS_SANITIZE=ON $(BIN)/python setup.py --quiet build --build-lib build/sanitized
	env PYTHONSAFEPATH=1 PYTHONPATH=build/sanitized:. ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest --override-ini=pythonpath=build/sanitized $(SANITIZED)

bench: install
	$(BIN)/python -m pytest bench --full-size --benchmark-json=build/suite.json
	$(BIN)/python -m bench.records add build/suite.json

campaign: install
	$(BIN)/python -m pytest -m campaign

test-gpu: install
	$(BIN)/python -m pytest -m "gpu and not campaign"
