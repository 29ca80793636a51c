# make demo   train, translate, score and explain the embedded corpus
# make test   the tests; make test-all adds those that train models; make check adds lint and types
# make test-floor   the tests with the lowest versions that pyproject.toml allows
# make soak   ten minutes of training and translating while everything goes wrong; SOAK='--minutes 60'
# make fuzz   feed the readers of text, config and model with damaged input; FUZZ='--help' tells the options
# make bench  how fast this machine trains and translates; BENCH='--help' tells the options
# Everything is installed into .venv; python3 (3.11 or later) and make are all that is needed.

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo

.PHONY: demo multi30k bench soak fuzz test test-faults test-floor test-all lint types check corpus clean

# The environment is made anew when what it should hold has changed. Without a version pin torch
# may bring gigabytes of CUDA libraries, so constraints.txt pins the build that is tested.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nmt needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/nmt train --config configs/demo.yaml --resume
	$(BIN)/nmt translate --model $(RUN) -i data/demo/test.ko -o $(RUN)/test.en
	$(BIN)/nmt eval --hyp $(RUN)/test.en --ref data/demo/test.en --src data/demo/test.ko
	$(BIN)/nmt attn-dump --model $(RUN) --src data/demo/test.ko --tgt data/demo/test.en \
	  --gold data/demo/test.align --gold-base 0 \
	  --level word --jsonl $(RUN)/attention.jsonl --pharaoh $(RUN)/test.align --html $(RUN)/attention.html
	@echo
	@echo "The model is in       $(RUN)"
	@echo "its translations in   $(RUN)/test.en      (of data/demo/test.ko)"
	@echo "its attention in      $(RUN)/attention.html   (open it in a browser), attention.jsonl, test.align"
	@echo
	@echo "Now try:  echo '나는 밥을 먹었다' | $(BIN)/nmt translate --model $(RUN)"
	@echo "          $(BIN)/nmt train --config configs/demo.yaml --set run_dir=runs/demo-dot --set model.attention.score=dot"

multi30k: .venv/.installed
	$(BIN)/nmt train --config configs/multi30k-de-en.yaml --resume
	$(BIN)/nmt eval --model runs/multi30k-de-en --src data/multi30k/test_2016_flickr.de.gz \
	  --ref data/multi30k/test_2016_flickr.en.gz

bench: .venv/.installed
	$(BIN)/python scripts/bench.py $(BENCH)

soak: .venv/.installed
	$(BIN)/python scripts/soak.py $(SOAK)

fuzz: .venv/.installed-dev
	$(BIN)/python scripts/fuzz.py $(FUZZ)

test: .venv/.installed-dev
	$(BIN)/python -m pytest

test-faults: .venv/.installed-dev
	$(BIN)/python -m pytest tests/faults -m 'not gpu'

# An environment of its own: the lowest versions that pyproject.toml allows, which all must serve.
.venv-floor/.installed: pyproject.toml constraints-floor.txt
	$(PYTHON) -m venv .venv-floor
	.venv-floor/bin/pip install --quiet --disable-pip-version-check -r constraints-floor.txt -e .
	.venv-floor/bin/pip check --disable-pip-version-check
	touch $@

test-floor: .venv-floor/.installed
	.venv-floor/bin/python -m pytest -n 2

test-all: .venv/.installed-dev
	$(BIN)/python -m pytest -m 'not gpu'

lint: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/.installed-dev
	$(BIN)/mypy

check: lint types test

corpus: .venv/.installed
	$(BIN)/python scripts/make_demo_corpus.py

clean:
	rm -rf .venv .venv-floor runs/demo
