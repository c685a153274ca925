.PHONY: help test lint docs bench answers

help:
	@echo "test     all tests, including the long ones"
	@echo "lint     ruff, mypy and the order of imports"
	@echo "docs     the tests that run the documents' code and compare their tables"
	@echo "bench    every benchmark in a short form; benchmarks/README.md names the full ones"
	@echo "answers  docs/answers.md and its figures (over two hours)"

test:
	pytest -m ''

lint:
	ruff check .
	ruff format --check .
	mypy
	lint-imports

docs:
	pytest tests/docs tests/routers/test_docstrings.py

bench:
	python benchmarks/kernels.py --rounds 3
	python benchmarks/layer.py --rounds 3 --experts 8 --tables choice
	python benchmarks/routing.py --rounds 3 --experts 8 --routers relu --tables selection
	python benchmarks/loop.py --rounds 2 --arms dense switch
	python benchmarks/ensembles.py --rounds 1 --members 2 --epochs 2
	python -m benchmarks.sweeps storages

answers:
	bash docs/answers/commands.sh
	python docs/answers/render.py
