# The commands in the README work on a bare clone: they create .venv and install what they need.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check
CPU_WHEELS := https://download.pytorch.org/whl/cpu
# Without an NVIDIA GPU, torch's CPU build saves gigabytes of CUDA libraries.
TORCH_INDEX = $$(command -v nvidia-smi >/dev/null || $(PYTHON) -c "import urllib.request as r; \
	r.urlopen('$(CPU_WHEELS)/torch/', timeout=5); print('--extra-index-url $(CPU_WHEELS)')" \
	2>/dev/null)

.PHONY: demo test lint types tests crash fuzz mutation protos bench-peft bench-gpu chaos overload \
	soak needle clean

demo: .venv/server
	$(BIN)/loramux demo

test: lint types tests

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/dev
	$(BIN)/mypy

tests: .venv/dev
	$(BIN)/pytest --numprocesses 2 --dist loadfile

crash: .venv/dev  # ten minutes or more
	$(BIN)/python -m tests.crash.campaign --output benchmarks/results/$$(date +%F)-crash.json

fuzz: .venv/dev  # five minutes: malformed files, messages and metadata
	GRPC_VERBOSITY=NONE $(BIN)/python -m tests.fuzz --seconds 300 \
		--output benchmarks/results/$$(date +%F)-fuzz.json

mutation: .venv/dev  # an hour or more; ten minutes with `--count 50` of each group
	$(BIN)/python -m tests.mutation --seconds 7200 \
		--output benchmarks/results/$$(date +%F)-mutation.json

protos: .venv/dev
	$(BIN)/python protos/generate.py

bench-peft: .venv/dev
	$(BIN)/python -m benchmarks.vs_peft

chaos: .venv/dev  # half an hour: faults under load, with a fake engine and real ones
	$(BIN)/python -m tests.chaos --engine fake --seconds 300 \
		--output benchmarks/results/$$(date +%F)-chaos-fake-engine.json
	$(BIN)/python -m tests.chaos --engine real --seconds 300 \
		--output benchmarks/results/$$(date +%F)-chaos-real-engine.json
	$(BIN)/python -m tests.chaos --engine hybrid --seconds 300 \
		--output benchmarks/results/$$(date +%F)-chaos-hybrid-engine.json
	$(BIN)/python -m tests.chaos --engine encoder --seconds 300 \
		--output benchmarks/results/$$(date +%F)-chaos-encoder-engine.json
	$(BIN)/python -m tests.chaos --engine seq2seq --seconds 300 \
		--output benchmarks/results/$$(date +%F)-chaos-seq2seq-engine.json

overload: .venv/dev  # seven minutes: up to ten times the capacity
	$(BIN)/python -m tests.overload --seconds 30 \
		--output benchmarks/results/$$(date +%F)-overload.json

soak: .venv/dev  # fifty minutes: everything that clients do, checked for leaks
	$(BIN)/python -m tests.soak --seconds 600 \
		--output benchmarks/results/$$(date +%F)-soak.json
	$(BIN)/python -m tests.soak --base hybrid --seconds 600 \
		--output benchmarks/results/$$(date +%F)-soak-hybrid.json
	$(BIN)/python -m tests.soak --base vision --seconds 600 \
		--output benchmarks/results/$$(date +%F)-soak-vision.json
	$(BIN)/python -m tests.soak --base encoder --seconds 600 \
		--output benchmarks/results/$$(date +%F)-soak-encoder.json
	$(BIN)/python -m tests.soak --base seq2seq --seconds 600 \
		--output benchmarks/results/$$(date +%F)-soak-seq2seq.json

needle: .venv/dev  # minutes: results must not depend on the batch, to the bit
	$(BIN)/python -m tests.needle --output benchmarks/results/$$(date +%F)-needle.json

bench-gpu: .venv/dev  # 15 minutes; needs a CUDA device
	$(BIN)/python -m benchmarks.gpu.everything --seconds 900 \
		--output-folder benchmarks/results/$$(date +%F)-gpu

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/server: $(BIN)/python pyproject.toml
	@echo "Installing into .venv (once; a minute or two)"
	$(PIP) install $(TORCH_INDEX) --editable '.[server,gateway]'
	@touch $@

.venv/dev: .venv/server
	$(PIP) install $(TORCH_INDEX) --editable '.[server,dev]'
	@touch $@

clean:
	rm -rf .venv
