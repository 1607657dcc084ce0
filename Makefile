# Two commands: `make demo` and `make test`. Both set everything up first; the second time nothing is left to do.
#   make demo BAG=path OUT=folder   plays another recording, writes elsewhere
#   PYTHON=python3.10 make build    chooses the Python (3.10-3.12)

SHELL := /bin/bash
OUT ?= demo_output

.PHONY: demo test build clean

demo: build
	@. ./env.sh && exec event-sam3d demo $(if $(BAG),--bag "$(BAG)") --out "$(OUT)"

test: build
	@. ./env.sh && scripts/check.sh

build:
	@scripts/setup.sh

clean:
	rm -rf .venv build install log demo_output .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find event_sam3d_ros test -name __pycache__ -prune -exec rm -rf {} +
