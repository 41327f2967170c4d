# geomtraj's pipeline: train -> measure -> contrast -> report. `make help` explains targets and variables.

TASK       ?= pydoc-lm
OPTIMIZERS ?= adam sgdm
SEEDS      ?= 0 1 2
DEVICE     ?= cpu
STEPS      ?=
TEXT       ?=
STATISTICS ?= r_med,spectrum
SETTINGS   ?= r_med.samples=8 r_med.max_matvecs=32 spectrum.steps=32 spectrum.probes=2 spectrum.tol=0.01 spectrum.refine=0
WORKERS    ?= 2
OUT        ?= runs/$(TASK)
PYTHON     ?= python3

VENV     := .venv
BIN      := $(VENV)/bin
GEOMTRAJ := $(BIN)/geomtraj
comma    := ,
# The settings of those statistics that are measured.
CHOSEN   := $(foreach s,$(SETTINGS),$(if $(filter $(firstword $(subst ., ,$(s))),$(subst $(comma), ,$(STATISTICS))),$(s)))
RUNS     := $(foreach o,$(OPTIMIZERS),$(foreach s,$(SEEDS),$(OUT)/$(o)/seed-$(s)))

# A misspelt variable would be passed over in silence.
VARIABLES := TASK OPTIMIZERS SEEDS DEVICE STEPS TEXT STATISTICS SETTINGS WORKERS OUT PYTHON SCALE VENV BIN GEOMTRAJ
GIVEN     := $(strip $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v)))
UNKNOWN   := $(filter-out $(VARIABLES) MAKEFLAGS,$(GIVEN))
$(if $(UNKNOWN),$(error unknown variable $(UNKNOWN): there are $(VARIABLES); see make help))

# Runs are trained and measured side by side, each in a process of one thread.
MAKEFLAGS += --jobs=$(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help report train measure contrast sweep test lint docs wheel browser clean
.DELETE_ON_ERROR:
.SECONDARY:
.SECONDEXPANSION:

help:  ## show this help
	@echo "Targets:"
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/' | expand -t 12
	@echo
	@echo "Variables (make report SEEDS=\"0 1\" OUT=runs/short STEPS=100):"
	@echo "  TASK        built-in task, such as pydoc-lm, translation, digits-cnn                        [$(TASK)]"
	@echo "  OPTIMIZERS  names; ratios are taken over the first one                       [$(OPTIMIZERS)]"
	@echo "  SEEDS       whole numbers                                                    [$(SEEDS)]"
	@echo "  DEVICE      cpu, cuda or cuda:N                                              [$(DEVICE)]"
	@echo "  STEPS       optimizer steps; empty for the task's default                    [$(STEPS)]"
	@echo "  TEXT        a text file for pydoc-lm instead of pydoc's topics               [$(TEXT)]"
	@echo "  STATISTICS  what to measure, with commas: r_med, spectrum, trace, loss       [$(STATISTICS)]"
	@echo "  SETTINGS    of the statistics  [$(SETTINGS)]"
	@echo "  WORKERS     runs that are trained or measured side by side                   [$(WORKERS)]"
	@echo "  OUT         folder of the runs and the report                                [$(OUT)]"
	@echo "  PYTHON      the Python that makes $(VENV), 3.10 to 3.13                          [$(PYTHON)]"

report: $(OUT)/report.html  ## the main job: train, measure, compare, and write report.html into OUT
	@echo "open $(OUT)/report.html"

train: $(RUNS:%=%/trained.json)  ## train TASK with each of OPTIMIZERS and SEEDS, recording iterates

measure: $(RUNS:%=%/measured.json)  ## measure STATISTICS at every recorded iterate

contrast: $(OUT)/contrast.csv  ## compare the optimizers layer by layer, at equal loss

$(BIN)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[tasks]"
	@touch $@

$(BIN)/.installed-test: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

# Files that hold the variables a stage was run with: a changed variable runs the stage again, and what it finds stored
# under the same settings it keeps; `geomtraj train` refuses to mix runs of other settings.
define settings
$(shell mkdir -p $(OUT) && printf '%s\n' '$(2)' | cmp -s - $(OUT)/$(1).settings || printf '%s\n' '$(2)' > $(OUT)/$(1).settings)
endef
ifneq ($(filter report train measure contrast $(OUT)/%,$(MAKECMDGOALS)),)
$(call settings,train,$(TASK) steps=$(STEPS) text=$(TEXT) $(DEVICE))
$(call settings,measure,$(STATISTICS) $(SETTINGS) $(DEVICE))
$(call settings,report,$(OPTIMIZERS) seeds $(SEEDS))
endif

# The stem is OPTIMIZER/seed-N.
$(OUT)/%/trained.json: $(OUT)/train.settings | $(BIN)/.installed
	$(GEOMTRAJ) train --task $(TASK) --optimizer $(patsubst %/,%,$(dir $*)) --seed $(patsubst seed-%,%,$(notdir $*)) \
	  --device $(DEVICE) $(if $(STEPS),--steps $(STEPS)) $(if $(TEXT),--text "$(TEXT)") --out $(OUT)/$*

# Deleting a result makes its folder newer than measured.json, and only what is missing is measured again.
$(OUT)/%/measured.json: $(OUT)/%/trained.json $(OUT)/measure.settings $$(wildcard $(OUT)/$$*/results)
	$(GEOMTRAJ) measure $(OUT)/$* --statistics $(STATISTICS) $(CHOSEN:%=--set %) --device $(DEVICE)

$(OUT)/contrast.csv: $(RUNS:%=%/measured.json) $(OUT)/report.settings
	$(GEOMTRAJ) contrast $(RUNS) --out $@

$(OUT)/report.html: $(RUNS:%=%/measured.json) $(OUT)/report.settings
	$(GEOMTRAJ) report $(RUNS) --out $@

sweep: | $(BIN)/.installed  ## choose learning rates for TASK and OPTIMIZERS on a log grid (writes the package's own table)
	$(GEOMTRAJ) sweep --task $(TASK) --optimizers $(subst $() $(),$(comma),$(strip $(OPTIMIZERS))) \
	  $(if $(STEPS),--steps $(STEPS)) $(if $(TEXT),--text "$(TEXT)") --device $(DEVICE) --runs runs/sweep --save package

# The paper's questions: one package in analyses/ each, and a page in runs/analyses/. A new one is a name here.
ANALYSES := adam-vs-sgd two-layer-linear region-switch spectra uniformity
SCALE    ?= small
.PHONY: analyses $(ANALYSES)

analyses:  ## answer the paper's questions (SCALE=small, or paper for a GPU); one alone: make two-layer-linear
	$(foreach a,$(ANALYSES),$(MAKE) $(a) &&) true

$(ANALYSES): | $(BIN)/.installed
	$(BIN)/python -m analyses.$(subst -,_,$@) --scale $(SCALE) --device $(DEVICE) --workers $(WORKERS)

# Two files side by side, each in a process of one thread.
test: lint $(BIN)/.installed-test  ## lint, then run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile

lint: $(BIN)/.installed-test  ## ruff (docstrings too) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(BIN)/.installed-test  ## build the documentation into site/, offline; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"

# As a user gets it: built, installed without extras into an environment of its own, looked at from outside the sources.
wheel: | $(BIN)/.installed  ## build wheel and sdist into dist/, install the wheel clean, and let it test itself
	rm -rf dist build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build --outdir dist . > build/wheel/log || (cat build/wheel/log; false)
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd build/wheel && venv/bin/geomtraj doctor && venv/bin/python -c "import geomtraj, pathlib; assert pathlib.Path(geomtraj.__file__).with_name('py.typed').exists()"
	rm -rf build/wheel

browser:  ## install Debian's Chromium, with which the tests look at pages
	$(if $(filter-out 0,$(shell id -u)),sudo) apt-get install --yes --quiet chromium

clean:  ## delete the virtual environment; runs/ stays
	rm -rf $(VENV)
