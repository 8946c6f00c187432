# make demo   sets up and runs the main job on the built-in model
# make test   sets up and passes the tests
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
# spinning OpenMP threads make parallel jobs collapse on few cores
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: $(shell sed -nE 's/^([a-z-]+):.*/\1/p' $(MAKEFILE_LIST))

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup:  ## the virtual environment, with what the tests need
	@PYTHON=$(or $(PYTHON),python3) tools/setup $(VENV) test

demo: setup  ## the main job on the built-in model: fit, steer both ways, measure, report (minutes)
	@$(BIN)/steerlab demo --out runs/demo

test: setup  ## the whole suite, pairwise over architectures, parts and edits
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: setup  ## the same with the full product (many minutes)
	@time OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --full

test-kernels: setup  ## the suite under every set of kernels that this processor has (hours; KINDS="default plain", FILES=tests/…)
	@OMP_NUM_THREADS=1 tools/kernels $(BIN)/python -n $(WORKERS) --dist worksteal $(FILES)

slowest: setup  ## the suite, and the 30 tests that take most of the processor
	@OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m pytest -p slowest -n $(WORKERS) --dist worksteal $(FILES)

test-llamacpp: setup  ## exported control vectors in real llama.cpp, which is compiled first (minutes)
	@tools/llamacpp $(VENV)-llamacpp
	@OMP_NUM_THREADS=1 STEERLAB_LLAMACPP=$(abspath $(VENV)-llamacpp)/bin/python $(BIN)/python -m pytest tests/test_verify.py -k llama_cpp

test-lm-eval: setup  ## lm-evaluation-harness: the model type steerlab, and exported files in its own steered model (2 GB)
	@tools/lm-eval $(VENV)-lmeval
	@OMP_NUM_THREADS=1 STEERLAB_LMEVAL=$(abspath $(VENV)-lmeval)/bin/python $(BIN)/python -m pytest tests/test_exports.py -k harness
	@OMP_NUM_THREADS=1 $(abspath $(VENV)-lmeval)/bin/python -m pytest -p no:warnings tests/test_harness.py

test-ray:  ## two replicas on Ray Serve: steerings and replicas replaced under load, no failed request (minutes, 2 GB)
	@PYTHON=$(or $(PYTHON),python3) tools/setup $(VENV)-ray test,ray
	@STEERLAB_RAY=1 OMP_NUM_THREADS=1 $(VENV)-ray/bin/python -m pytest tests/test_serve_replicas.py

test-vllm: setup  ## stock vLLM with the plug-in, eager and compiled, in an environment of its own (tens of minutes, 3.5 GB)
	@tools/vllm $(VENV)-vllm
	@for mode in eager uncached compiled; do \
	  OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 STEERLAB_VLLM_TEST=$$mode $(abspath $(VENV)-vllm)/bin/python -m pytest -p no:warnings -s tests/test_vllm.py tests/test_vllm_v2.py || exit 1; done
	@OMP_NUM_THREADS=1 STEERLAB_VLLM_PYTHON=$(abspath $(VENV)-vllm)/bin/python $(BIN)/python -m pytest tests/test_vllm_used.py

bench-vllm: setup  ## tokens a second in compiled vLLM: nobody steered, and 1 to 256 steerings at every block (tens of minutes)
	@tools/vllm $(VENV)-vllm
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(abspath $(VENV)-vllm)/bin/python benchmarks/bench_vllm.py

test-architectures: setup  ## every causal model type of transformers, tiny: steered or refused, alone = in company (minutes; resumable)
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/architectures.py

mutants: setup  ## break things on purpose and see that the laws catch each
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py

lint: setup  ## ruff, pyright (strict on src), import-linter
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --no-cache

format: setup  ## ruff's formatter
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench-pilot: setup  ## CDAS on both organisms at unit strength and tuned, with bars (tens of minutes)
	@$(BIN)/python benchmarks/bench_pilot.py

table: setup  ## every method on refusal, backdoor and every seventh concept (an hour; resumable; WORLD=second, stories)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/table.py --world $(or $(WORLD),pilot)

table-order: setup  ## whether two finished tables agree on the order of methods (seconds)
	@$(BIN)/python benchmarks/table.py --against second

suites: setup  ## every suite on the built-in model, 120 items of each kind (many minutes; resumable)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/suites.py

decay: setup  ## how preference and utility decay with strength, and what a few points foretell (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/decay.py

bench-axbench: setup  ## AxBench on the built-in model, offline: detect, steer, suppress, attack (half an hour; resumable; QUICK=1: minutes)
	@OMP_NUM_THREADS=1 $(BIN)/steerlab bench axbench $(if $(QUICK),--quick)

judges: setup  ## are the judges fooled by keyword lists, shuffled words, echoed prompts?
	@$(BIN)/python benchmarks/table.py --judges

bench-training: setup  ## training against the published loops: time, memory, equality (hours)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_training.py

bench-many: setup  ## many concepts in one batch against one by one, and two workers against one
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_many.py

scaling: setup  ## how a fit's time grows with tokens, vocabulary, layer, concepts and workers
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scaling.py

bench-forecast: setup  ## what --dry-run says against what fits then take
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_forecast.py

preserve: setup  ## what keeps a clamp from harming other prompts, gates with it (an hour; journalled)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/preserve.py

study: setup  ## what of a CDAS fit buys what, on four kinds of models (hours; journalled)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/study_cdas.py

bench-extraction: setup  ## reading activations against steering-vectors and repeng, each in its own environment
	@tools/peers $(VENV)-peers
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_extraction.py --peers $(VENV)-peers/bin/python

bench-weights: setup  ## how near a post-block adapter comes to the weight update it stands for (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_weights.py

intensity: setup  ## an attribute at levels 0 to 4: asked, reached, and how far off (minutes)
	@$(BIN)/python benchmarks/intensity.py

hypersteer: setup  ## a generator of vectors on topics that it never saw, beside fitted ones (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/hypersteer.py

sweep-proof: setup  ## a sweep killed ten times, and one on Ray, end as an undisturbed one (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sweep_proof.py

soak: setup  ## the server under 64 mixed streams for five minutes, every answer compared with its solo run
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py

test-hostile: setup  ## 520 hostile requests, 2,000 dripping clients, 5,000 mutated headers, hypothesis, schemathesis (many minutes)
	@tools/hostile $(VENV)-hostile
	@STEERLAB_HOSTILE=500 STEERLAB_DRIP=$(or $(DRIP),2000) STEERLAB_HEADERS=$(or $(HEADERS),5000) STEERLAB_SCHEMATHESIS=$(abspath $(VENV)-hostile)/bin/schemathesis OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -s tests/test_serve_hostile.py tests/test_hostile.py tests/test_serve_attack.py tests/test_serve_headers.py

test-clients: setup  ## openai, LangChain, LiteLLM and ollama, in an environment of their own, against a served model (minutes)
	@tools/clients $(VENV)-clients
	@STEERLAB_CLIENTS=$(abspath $(VENV)-clients)/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/test_clients.py

test-quantized: setup  ## models in 4 and 8 bits by bitsandbytes, and by torchao, in an environment on top of the tests' own (a minute)
	@tools/quantized $(abspath $(VENV)-quantized) $(abspath $(VENV))
	@OMP_NUM_THREADS=1 $(VENV)-quantized/bin/python -m pytest -rs tests/test_quantize.py

bench-serving: setup  ## what hooks cost, the published steering call against ours, first tokens of mixed streams (minutes)
	@$(BIN)/python benchmarks/bench_serving.py

sizing: setup  ## memory of a thousand steerings, tokens a second of one server (minutes)
	@$(BIN)/python benchmarks/sizing.py

bench-calibrate: setup  ## a calibrated range against a full grid, and whether it holds on test (an hour; resumable)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/calibrate.py --saved
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/calibrate.py --search --guarantee --saved

bench-compose: setup  ## eight steerings together: what each does to the others, and what the composition keeps (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compose.py

bench-make: setup  ## from three descriptions to checked artefacts, beside fits on curated data (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/make.py

compare-proof: setup  ## does `compare` claim what isn't there, and keep the power it promises? 2,000 drawn comparisons (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compare.py

stories: setup  ## sentiment on a model that nobody here trained (shared data needed)
	@$(BIN)/python benchmarks/stories.py

pictures: setup  ## the README's picture, from real output
	@$(BIN)/python benchmarks/picture.py

clean:  ## remove the environment and what runs have left
	rm -rf $(VENV) runs
