# Two commands do all set-up on a fresh Debian 12: `make demo` and `make test`. Both are quick when all is there.
PY := .venv/bin/python
.PHONY: demo test bench lint docs setup clean

demo: setup
	.venv/bin/labctl run three-tier

test: setup lint
	$(PY) -m pytest

bench: setup
	$(PY) -m pytest bench/regression --benchmark-columns=median,iqr,ops,rounds

lint: setup
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

docs: setup
	$(PY) -m bench.commands.reference

setup:
	@bash .ci/setup

clean:
	rm -rf .venv lab/hosts/_build .pytest_cache .mypy_cache .ruff_cache
