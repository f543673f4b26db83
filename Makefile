PYTHON ?= python

.PHONY: install test train lint format ci

install:
	$(PYTHON) -m pip install --editable '.[dev,metrics]'

test:
	$(PYTHON) -m pytest -n 2

train:
	$(PYTHON) train.py --config configs/telugu.py

lint:
	ruff check .
	ruff format --check .
	mypy

format:
	ruff check --fix .
	ruff format .

ci:
	bash .ci/run
