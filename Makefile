# The commands of this project; continuous integration calls the same ones.
#
#   make demo    a complete small fine-tuning run, results in demo-output/
#   make test    the laws
#   make slow    those that take minutes
#   make lint    formatting, style, types
#   make kernels laws of the kernels on their compiled code: executed for sm_80, sm_90 and sm_100, and
#                for aarch64 under emulation
#   make docs    the site of README, docs/ and docstrings, into site/; strict
#   make dist    the source distribution and Linux wheels of x86-64 and aarch64, into dist/; checked
#   make bench   speed next to the peers, into bench/results/; DEVICE=cuda, QUICK=--quick
#   make ext     compile the CPU kernel in place, for a checkout that is not installed
#
# Each makes what it needs: a virtual environment in .venv, filled once and again when one of the
# files named in SETUP changes. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip -qq --disable-pip-version-check install --no-compile -c constraints.txt
DEVICE := cpu
RECORD := bench/results/step-$(DEVICE)
SETUP  := pyproject.toml setup.py constraints.txt $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h)

MAKEFLAGS += --no-print-directory
# Modules are compiled when first imported, and kept: pip would compile 15,000, a run uses 3,500.
# Installing costs 65 s of processor time instead of 150 s, and the first import 18 s more.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test slow lint kernels docs dist bench ext clean

demo: $(VENV)/xglue.stamp
	@$(VENV)/bin/graddrop demo --output demo-output

# A file's tests stay on one worker, which makes what they share once; each worker has one thread.
test: $(VENV)/dev.stamp
	@OMP_NUM_THREADS=1 $(RUN) -m pytest --quiet --numprocesses 2 --dist loadfile

# What takes minutes, and needs both cores.
slow: $(VENV)/dev.stamp
	@$(RUN) -m pytest --quiet -m slow

lint: $(VENV)/dev.stamp
	@$(RUN) -m ruff format --check --quiet .
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m mypy

# What PTX leaves open differs by target: the order of warps, and how approximate instructions err.
kernels: kernels-sm_90 kernels-sm_80 kernels-sm_100 kernels-aarch64
EXECUTED := $(addprefix tests/,kernels/test_triton.py kernels/test_loaded.py kernels/executed \
	step/test_alignments.py step/test_clipping.py step/test_rounding.py)
kernels-sm_80: RULES := --order 1 --lean down
kernels-sm_100: RULES := --order 2 --lean up
kernels-sm_%: $(VENV)/dev.stamp
	@OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) -m pytest -p ptx.plugin --execute sm_$* $(RULES) \
		--quiet $(EXECUTED) -k 'triton or executed'

kernels-aarch64: $(VENV)/dev.stamp
	@OMP_NUM_THREADS=1 $(RUN) -m pytest --quiet -m slow tests/kernels/emulated

# A link or a reference that leads nowhere is an error.
docs: $(VENV)/docs.stamp
	@$(RUN) -m sphinx --quiet --fail-on-warning --keep-going --builder html docs site
	@echo site/index.html

# The other processor's by a cross compiler. auditwheel names the oldest C library that will do.
CROSS := aarch64-linux-gnu
dist: $(VENV)/dist.stamp
	@command -v $(CROSS)-g++ >/dev/null || \
		{ echo "make dist needs $(CROSS)-g++ (Debian: g++-aarch64-linux-gnu)" >&2; exit 1; }
	@rm -rf build dist
	@$(RUN) -m build --no-isolation --outdir dist/plain >/dev/null
	@CC=$(CROSS)-gcc CXX=$(CROSS)-g++ _PYTHON_HOST_PLATFORM=linux-aarch64 \
		$(RUN) -m build --no-isolation --wheel --outdir dist/plain >/dev/null
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(RUN) -m auditwheel repair -w dist dist/plain/*.whl
	@mv dist/plain/*.tar.gz dist && rm -r dist/plain
	@$(RUN) -m pytest --quiet -m slow tests/packaging

bench: $(VENV)/bench.stamp
	@mkdir -p bench/results
	@$(RUN) -m pytest bench/bench_step.py --device $(DEVICE) $(QUICK) --benchmark-quiet \
		--benchmark-json $(RECORD).json
	@$(RUN) -m bench.render $(RECORD).json | tee $(RECORD).md

ext: $(VENV)/torch.stamp
	@$(RUN) setup.py --quiet build_ext --inplace

clean:
	rm -rf $(VENV) build dist site *.egg-info demo-output graddrop/kernels/cpu/*.so

# torch comes first and alone: where a build without CUDA has been laid out for pip, asking for the
# exact version takes it, and what follows is then satisfied by what is there.
$(VENV)/torch.stamp: constraints.txt
	@echo "Setting up $(VENV) (some minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(shell grep '^torch==' constraints.txt)
	@touch $@

# Editable: the environment follows the source without another installation.
$(VENV)/xglue.stamp: $(VENV)/torch.stamp $(SETUP)
	@$(PIP) --editable '.[xglue]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp $(SETUP)
	@$(PIP) --editable '.[xglue,dev]'
	@touch $@ $(VENV)/xglue.stamp

$(VENV)/dist.stamp: $(VENV)/dev.stamp
	@$(PIP) --editable '.[xglue,dev,dist]'
	@touch $@

$(VENV)/docs.stamp: $(VENV)/xglue.stamp
	@$(PIP) --editable '.[xglue,docs]'
	@touch $@

# Peers that cannot be installed here are rows that say so.
$(VENV)/bench.stamp: $(VENV)/dev.stamp
	@for package in bitsandbytes flashoptim torch-optimi torchao; do $(PIP) $$package || true; done
	@touch $@
