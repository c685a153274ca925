.PHONY: answers
# docs/answers.md and its figures, from the commands behind them.
answers:
	bash docs/answers/commands.sh
	python docs/answers/render.py
