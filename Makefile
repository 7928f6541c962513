# Two commands need nothing but Python >= 3.11, pip and make: `make demo` and `make test`.

# The first interpreter that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for name in python3 python python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
MAPPED := pipelines trainers kernels ui assets

.PHONY: demo test test-ui lint gpu soak base tables formats memory picture web-picture clean

demo: .venv/installed
	$(BIN)/studio demo

test: .venv/installed-test
	$(BIN)/pytest -n logical --dist worksteal --ignore tests/browser

# The web studio in a real browser; CHROMIUM=... names one that lies elsewhere.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
test-ui: .venv/installed-browser
	@[ -x "$(CHROMIUM)" ] || { echo "No Chromium was found. Install one (apt-get install chromium), or name it: make test-ui CHROMIUM=/path/to/chrome"; exit 2; }
	STUDIO_CHROMIUM=$(CHROMIUM) $(BIN)/pytest tests/browser

lint: .venv/installed-dev
	@mkdir -p build/typing/studio
	@ln -sfn ../../../studio/__init__.py build/typing/studio/__init__.py
	@for folder in $(MAPPED); do ln -sfn ../../../$$folder build/typing/studio/$$folder; done
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# What needs a CUDA device: its tests and the benchmarks of speed, within ten minutes, as JSON in out/gpu/. It installs
# nothing and says what is missing; without a device: make gpu GPU_ARGS="--device cpu --tiny".
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/gpu_run.py $(GPU_ARGS)

# Everything again and again, random tests at length and anew each time; ROUNDS=20 chooses how often.
soak: ROUNDS ?= 5
soak: .venv/installed-test
	for round in $$(seq $(ROUNDS)); do echo "round $$round of $(ROUNDS)"; STUDIO_SOAK=1 $(BIN)/pytest -q -n logical --dist worksteal --ignore tests/browser || exit 1; done

# Train the embedded base anew (hours on two CPU cores).
base: .venv/installed
	$(BIN)/python -m studio.trainers.picturebook --run runs/picturebook --out assets/picturebook

# Write the measured figures of docs/benchmarks into the documents, and the page of every setting.
tables: .venv/installed
	$(BIN)/studio bench report docs/benchmarks $(foreach file,README.md $(wildcard docs/*.md) assets/picturebook/README.md,--fill $(file))
	$(BIN)/python docs/settings.py

# Write the table of adapter formats, the studio beside plain diffusers.
formats: .venv/installed-test
	HF_HUB_OFFLINE=1 $(BIN)/python docs/formats.py

# Estimate anew what trainings on bases of full size take.
memory: .venv/installed-test
	$(BIN)/python docs/memory.py

# Draw the README's pictures anew; concepts that the library lacks are trained first.
picture: .venv/installed
	$(BIN)/python docs/picture.py

# Draw the picture of the web studio anew.
web-picture: .venv/installed-browser
	STUDIO_CHROMIUM=$(CHROMIUM) $(BIN)/python docs/web_picture.py

clean:
	rm -rf .venv build out .pytest_cache .ruff_cache

.venv/bin/pip:
	@[ -n "$(PYTHON)" ] || { echo "No Python >= 3.11 was found. Install one, or name it: make PYTHON=/path/to/python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml .venv/bin/pip
	@echo "Installing the studio and its libraries into .venv: some minutes, 1.4 GB with the CPU build of torch."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

.venv/installed-browser: .venv/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,browser]'
	@touch $@

.venv/installed-dev: .venv/installed-browser
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,browser,dev]'
	@touch $@
