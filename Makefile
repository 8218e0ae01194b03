# `make test` and `make demo` do all their own set-up on a fresh Debian 12 or 13 as root.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PZB_VENV ?= build/venv
export PZB_LAB_CACHE ?= /var/cache/pve-zfsbackup-lab

PYTHON ?= python3
PHASES := $(PYTHON) tools/phases.py
IN_VENV := $(abspath $(PZB_VENV))/bin/python

# tests/package runs the unit tests with the libraries of both releases: the build need not as well.
test test-package test-lab test-long lab demo bench: export DEB_BUILD_OPTIONS ?= nocheck

.PHONY: help deb test check test-package test-report test-lab lab matrix demo bench setup clean distclean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

deb: ## build the Debian packages into build/deb/ and check them with lintian
	@tools/build-deb

test: ## everything: ruff, mypy, unit tests, package tests, lab tests (virtual machines with ZFS)
	@$(PHASES) set-up ruff mypy unit deb package lab

check: ## ruff, mypy and the unit tests: no root, no virtual machines
	@$(PHASES) set-up ruff mypy unit

test-package: ## install, use and purge the package on bookworm and trixie
	@$(PHASES) set-up deb package

test-lab: ## the tests on real ZFS
	@$(PHASES) set-up deb lab

test-report: ## the report and the terminal in a real browser (installs chromium); pictures in build/reports
	@$(PHASES) set-up chromium report

test-long: ## all of the package and lab tests, with what takes too long for `make test`: hours
	@$(PHASES) set-up deb long

setup: ## only the set-up: the virtual environment of the tests
	@$(PYTHON) tools/venv.py $(PZB_VENV)

lab: setup deb ## the lab's hosts, left running with a prompt
	@$(IN_VENV) -m tests.lab up

matrix: setup deb ## every fault row on the lab's hosts, into build/matrix.json; ROWS=16,24-31 picks some
	@$(IN_VENV) -m tests.lab.matrix $(ROWS)

demo: setup deb ## install, set up, back up and restore on the lab's hosts
	@$(IN_VENV) -m tests.lab.demo

# WHAT=archive,w1-20,w1-100,w2,w3,w4  WHO=floor,pve-zfsbackup,bzfs,zfs-autobackup,sanoid  REPEAT=3  NOTE='what else runs here'
bench: setup deb ## against the least possible and the peers, in the lab: build/bench.json, build/archive-bench.json
	@$(IN_VENV) -m tests.bench --what '$(WHAT)' --who '$(WHO)' --repeat '$(or $(REPEAT),3)' --note '$(NOTE)'

clean: ## remove what builds and tests left here (the lab's cached images stay)
	rm -rf build/deb build/deb-src build/reports .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './build/*' -prune -exec rm -rf {} +

distclean: clean ## and the virtual environment
	rm -rf build
