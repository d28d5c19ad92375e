# make demo   run the whole thing once: simulated camera, node, plan, LeRobot episode
# make test   every check
# make unit   the unit tests alone
# make lint   ruff
# make setup  what both of them do first; its second run takes a second
# make clean  remove all that make made

.PHONY: demo test unit lint setup clean
SHELL := /bin/bash

demo: setup
	@. scripts/env.sh && mask2iv demo

test: setup
	@scripts/test.sh

unit lint: setup
	@scripts/test.sh $@

setup:
	@scripts/setup.sh

clean:
	rm -rf .venv build install log *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
