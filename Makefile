# Everything a user or a developer does with this repository. `make help` lists the targets.
#
#   .venv        the lean runtime (numpy, av, onnxruntime, tqdm), for `make demo` and `make bench`
#   .venv-test   the same plus torch, onnx, openvino and the development tools, for `make test`
#   .venv-gpu    training with the CUDA rasterizer, for `make gpu-check`; needs nvcc
#
# All hold an editable install: edits of Python files are seen at once. Only a change of what is compiled or of
# what is required (NATIVE, below) installs again; otherwise pip is not called at all.

PYTHON ?= python3
# The exact version is what selects the CPU build of torch where a local index carries one.
TORCH ?= torch==2.13.0
# Where `make bench` writes its JSON.
RESULTS ?= out

NATIVE := pyproject.toml CMakeLists.txt $(wildcard cuda/*)
PACKAGES := runtime training export calibration benchmarks
CLANG_FORMATTED := $(wildcard $(foreach type,cpp h inc cu cuh,cuda/*.$(type) tests/rasterizer_cuda/*.$(type) tests/runtime_cuda/*.$(type) tests/rasterizer/*.$(type) examples/cpp/*.$(type)))
PIP := bin/python -m pip --disable-pip-version-check

# Requirements of an extra, as they were installed.
EXTRA = .venv-test/bin/python -c 'import sys, importlib.metadata as m; \
  print(*(r.split(";")[0] for r in m.requires("streamsplat-edge") if r.endswith("\"%s\"" % sys.argv[1])), sep="\n")'

# The tests marked `gpu`. The rest needs packages that .venv-gpu lacks, and one that is missing would end the run.
GPU_TESTS := tests/rasterizer_cuda tests/runtime_cuda tests/runtime/test_decoding.py
# An environment that holds the package with its kernels (STREAMSPLAT_CUDA=ON), torch, CuPy and pytest; nothing is
# installed into another one than .venv-gpu.
GPU_PYTHON ?= .venv-gpu/bin/python
GPU_READY := $(if $(filter .venv-gpu/bin/python,$(GPU_PYTHON)),.venv-gpu/.installed)
# Calls that CUDA refuses are errors of Python already; torch, CuPy and cuda-python ask for some that are not there.
SANITIZER := compute-sanitizer --error-exitcode 9 --report-api-errors no

DEMO_CLIP := demo/clip.mp4
DEMO_BUNDLE := demo/tiny.bundle

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint typing format test-install test-parity test-plans test-plans-20 test-plans-23 test-quantised \
  test-quantised-half test-quantised-rest \
  test-rtsp test-browser test-serve test-cuda test-cupy gpu-check gpu-test gpu-sanitize gpu-bench docs coverage bench clean check-tools

help:  ## list the targets
	@echo "make TARGET [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 17

demo: .venv/.installed  ## install the lean runtime and turn demo/clip.mp4 into Gaussians (out/demo.mp4)
	@mkdir -p out
	.venv/bin/streamsplat-edge run $(DEMO_CLIP) --bundle $(DEMO_BUNDLE) --layout side-by-side \
	  -o out/demo.mp4 --contact-sheet out/demo.png --stats out/stats.json --force

test: lint  ## static checks, then all tests but the slow ones; runtime/ must be covered to 90 %
	.venv-test/bin/python -m pytest --cov --cov-report=term

test-install:  ## wheel, sdist and editable installs into fresh environments, other Pythons too (a few minutes)
test-install: .venv-test/.installed
	.venv-test/bin/python -m pytest -m install

test-parity:  ## full-size comparison with the published model's golden data (minutes)
test-parity: .venv-test/.installed
	.venv-test/bin/python -m pytest -m parity

test-plans: .venv-test/.installed  ## TensorRT-RTX plans of tiny and base, without a GPU (minutes)
	@$(MAKE) --no-print-directory -j2 --output-sync test-plans-20 test-plans-23

# One operator set per core; each needs 4 GB.
test-plans-20 test-plans-23: test-plans-%: .venv-test/.installed
	.venv-test/bin/python -m pytest -m plans -s -k opset$*

test-quantised: .venv-test/.installed  ## INT8 and FP8 graphs of tiny and base in TensorRT-RTX, without a GPU (a minute or two)
	@$(MAKE) --no-print-directory -j2 --output-sync test-quantised-half test-quantised-rest

# Half of base per core, and tiny; each needs 4 GB.
test-quantised-half test-quantised-rest: .venv-test/.installed
	.venv-test/bin/python -m pytest -m plans tests/calibration -k '$(if $(filter %-half,$@),,not )depth-deform'

test-rtsp:  ## live sources against GStreamer's RTSP server on loopback, where it is installed (a minute)
test-rtsp: .venv-test/.installed
	.venv-test/bin/python -m pytest -m rtsp

test-browser:  ## the live view in headless Chromium, where it is installed (a minute)
test-browser: .venv-test/.installed
	@.venv-test/bin/python tests/view/chromium.py || { echo "error: no Chromium was found. \
	  Debian: apt install chromium-headless-shell; others: chromium or google-chrome on PATH." >&2; exit 1; }
	.venv-test/bin/python -m pytest -m browser -s

test-serve:  ## streams on Ray Serve: a killed replica comes back (installs the extra [serve]; a minute)
test-serve: .venv-test/.installed
	.venv-test/bin/python -c 'import ray.serve' 2>/dev/null || .venv-test/$(PIP) install -e '.[serve]'
	.venv-test/bin/python -m pytest -m serve

test-cuda:  ## compile the CUDA code for every architecture; needs nvcc but no GPU (minutes)
test-cuda: .venv-test/.installed
	@command -v nvcc >/dev/null || { echo "error: nvcc was not found. Install the CUDA toolkit and add its bin folder to PATH." >&2; exit 1; }
	.venv-test/bin/python -m pytest -m nvcc

gpu-check:  ## on an NVIDIA GPU: the three that follow, one after the other
	@$(MAKE) --no-print-directory gpu-test && $(MAKE) --no-print-directory gpu-sanitize && \
	  $(MAKE) --no-print-directory gpu-bench

gpu-test: $(GPU_READY)  ## on an NVIDIA GPU: the tests marked gpu (GPU_PYTHON=python3 takes an environment that is there)
	@$(GPU_PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { \
	  echo "error: torch sees no CUDA device. Where it is a CPU build, name another: make gpu-check TORCH=..." >&2; exit 1; }
	$(GPU_PYTHON) -m pytest -m gpu $(GPU_TESTS)

test-cupy: .venv-cupy/.installed  ## our use of CuPy against the real one, and the kernels by NVRTC; needs no GPU (seconds)
	.venv-cupy/bin/python -c 'import cupy'
	.venv-cupy/bin/python -m pytest -rs tests/runtime_cuda/test_cupy_device.py tests/runtime_cuda/test_machine_code.py

# Sanitizers see single allocations, not the pools of torch and CuPy. Their tests are the small ones: they run a hundred
# times slower.
gpu-sanitize: $(GPU_READY)  ## on an NVIDIA GPU: memory errors, races and barriers by compute-sanitizer, where it is installed
	@command -v compute-sanitizer >/dev/null || echo "compute-sanitizer was not found: memory and races were NOT checked"
	@if command -v compute-sanitizer >/dev/null; then for tool in memcheck racecheck synccheck; do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool $$tool \
	    $(GPU_PYTHON) -m pytest -m gpu tests/rasterizer_cuda -k "cpp_version or culled or empty" || exit 1; done; fi
	@if command -v compute-sanitizer >/dev/null; then for tool in memcheck racecheck synccheck; do \
	  STREAMSPLAT_NO_POOL=1 $(SANITIZER) --tool $$tool \
	    $(GPU_PYTHON) -m pytest -m gpu tests/runtime_cuda -k "ties or odd or long or times or turned or finite" || exit 1; done; fi

gpu-bench: $(GPU_READY)  ## on an NVIDIA GPU: speed of the rasterizers (JSON in benchmarks/results, tables in docs)
	name=`$(GPU_PYTHON) -c 'import torch; print("-".join(torch.cuda.get_device_name(0).lower().split()))'` && \
	  $(GPU_PYTHON) -m streamsplat_edge.benchmarks.raster_grad --device cuda \
	  --json benchmarks/results/raster-grad-$$name.json && \
	  $(GPU_PYTHON) -m streamsplat_edge.benchmarks.raster_cuda \
	  --json benchmarks/results/raster-cuda-$$name.json && \
	  $(GPU_PYTHON) -m streamsplat_edge.benchmarks.raster_compare \
	  --json benchmarks/results/raster-compare-$$name.json && \
	  $(GPU_PYTHON) -m streamsplat_edge.benchmarks.gpu_chain \
	  --json benchmarks/results/gpu-chain-$$name.json
	$(GPU_PYTHON) -m streamsplat_edge.benchmarks.table benchmarks/results/*.json --update docs/benchmarks.md

docs: .venv-test/.installed  ## the documentation as a site, links checked (out/site/index.html)
	.venv-test/bin/python -m mkdocs build --strict

coverage: .venv-test/.installed  ## test coverage of runtime/ as text and in out/coverage/index.html
	.venv-test/bin/python -m pytest --cov --cov-report=term-missing --cov-report=html:out/coverage

lint: .venv-test/.installed typing  ## ruff, formatting, mypy, clang-format
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check --quiet .
	.venv-test/bin/clang-format --dry-run -Werror $(CLANG_FORMATTED)
	.venv-test/bin/mypy

format: .venv-test/.installed  ## rewrite the sources in the common style
	.venv-test/bin/ruff check --fix --quiet . || true
	.venv-test/bin/ruff format .
	.venv-test/bin/clang-format -i $(CLANG_FORMATTED)

# mypy follows neither the folder mapping of pyproject.toml nor editable installs: show it the installed layout.
typing:
	@rm -rf build/typing && mkdir -p build/typing/streamsplat_edge
	@for p in src/streamsplat_edge/* $(PACKAGES); do ln -s "$(CURDIR)/$$p" build/typing/streamsplat_edge/; done

bench: .venv/.installed  ## speed of the rasterizer and of the whole chain on this machine (JSON in RESULTS=out)
	@mkdir -p $(RESULTS)
	.venv/bin/python -m streamsplat_edge.benchmarks.rasterizer --json $(RESULTS)/rasterizer.json
	.venv/bin/python -m streamsplat_edge.benchmarks.fps $(DEMO_CLIP) --bundle $(DEMO_BUNDLE) \
	  --json $(RESULTS)/fps.json

clean:  ## remove environments, builds, caches and out/
	rm -rf .venv .venv-test .venv-gpu .venv-cupy build dist out .coverage .pytest_cache .mypy_cache .ruff_cache
	find $(PACKAGES) src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: $(NATIVE)
	@$(MAKE) --no-print-directory check-tools
	@test -x .venv/bin/pip || $(PYTHON) -m venv --clear .venv
	.venv/$(PIP) install -e .
	@touch $@

.venv-test/.installed: $(NATIVE)
	@$(MAKE) --no-print-directory check-tools
	@test -x .venv-test/bin/pip || $(PYTHON) -m venv --clear .venv-test
	.venv-test/$(PIP) install $(TORCH) -e '.[dev,train,export,openvino,tensorrt-rtx]'
	@# By itself and aside: it asks for TensorRT, and would make `import tensorrt` succeed without it.
	.venv-test/$(PIP) install --no-deps --upgrade --target .venv-test/stubs 'tensorrt-stubs==10.13.*'
	@# Two of its signatures are no Python, at which mypy stops.
	sed -i -e 's/\bin: list/in_: list/' -e 's/channel_axis: int)/channel_axis: int = ...)/' \
	  .venv-test/stubs/tensorrt_bindings/tensorrt.pyi
	@touch $@

.venv-gpu/.installed: $(NATIVE)
	@$(MAKE) --no-print-directory check-tools
	@test -x .venv-gpu/bin/pip || $(PYTHON) -m venv --clear .venv-gpu
	.venv-gpu/$(PIP) install $(TORCH) -C cmake.define.STREAMSPLAT_CUDA=ON -e '.[dev,train,export,gpu]'
	@touch $@

# Everything of .venv-test, and CuPy, which is kept out of there: tests must pass without it.
.venv-cupy/.installed: .venv-test/.installed
	.venv-test/bin/python -m venv --clear --without-pip .venv-cupy
	.venv-test/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > `.venv-cupy/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'`/of_test.pth
	$(EXTRA) gpu > .venv-cupy/requirements.txt
	.venv-test/$(PIP) --python .venv-cupy/bin/python install -r .venv-cupy/requirements.txt
	@touch $@

# Says what is missing before pip fails with a page of text.
check-tools:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) was not found. Install Python 3.10 or later, or name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: $(PYTHON) is `$(PYTHON) --version 2>&1`, but 3.10 or later is needed. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments. Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' || { \
	  echo "error: the headers of $(PYTHON) (Python.h) are missing. Debian and Ubuntu: apt install python3-dev" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	  echo "error: no C++ compiler was found. Debian and Ubuntu: apt install g++; or name one: CXX=... make ..." >&2; exit 1; }
