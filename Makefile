# Everything that a fresh Debian machine needs is set up by these two, and kept for the next time:
#   make demo    a registry on three real hosts, a pull through containerd, a power cut, the measured gap
#   make test    lint, unit tests, alert rules and the lab
#   make dist    kubeadm-registry as one file that needs no Python, with its checksum, in dist/
# Other goals: make unit | lint | lab | test-monitoring | test-operator | test-operator-long | test-kubernetes | day-two | simulate | kills | soak | fuzz | bench, make lab-down, make clean.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
# Compiled sources are kept, whatever the environment says: the tests start Python a thousand times.
unexport PYTHONDONTWRITEBYTECODE

CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/kubeadm-registry
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PYTHON := .venv/bin/python
DAY_TWO := members large recover killed disk vip vip_move upgrade rollout rotation certificates backup status pulls pull_in_flight \
           doctor images retention retention_full space helper operator_space operator_replace reset conformance
KILLED := killed members members_killed recovery replacing operator_freeing
KUBERNETES := kubelet etcd coredns bridge pause guest

# For the lab (hosts by systemd-nspawn), for Garage from its source, and for the tests.
PACKAGES := python3-venv debootstrap systemd-container nftables iproute2 e2fsprogs openssh-client openssh-server sudo \
            skopeo busybox shellcheck gcc libc6-dev pkg-config libsodium-dev protobuf-compiler

.PHONY: help demo test dist unit lint lab day-two test-monitoring test-operator test-operator-long test-kubernetes kubernetes-programs kubernetes-cached kubernetes-bundle simulate kills soak fuzz bench docs manifests lab-down clean setup packages programs

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

packages:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing Debian packages:" $$missing; \
	  $(SUDO) apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing > /dev/null; \
	fi

# The virtual environment is remade when its requirements change.
.venv/.ready: pyproject.toml
	@echo "setting up Python in .venv"
	@python3 -m venv .venv
	@.venv/bin/pip install -q --upgrade 'pip>=25.1'
	@.venv/bin/pip install -q -e . --group dev
	@touch $@

# Compilers are not packages of every Debian release in the version needed, so they are asked for, not installed.
programs: packages .venv/.ready
	@command -v cargo > /dev/null || { echo "cargo is missing, which builds Garage: install Rust 1.85 or newer (rustup.rs)"; exit 1; }
	@command -v go > /dev/null || { echo "go is missing, which builds crane, crictl and kubeadm: install Go 1.25 or newer"; exit 1; }
	@$(PYTHON) -m tests.lab.programs $(if $(SUDO),,--system) garage crane crictl kubeadm > /dev/null

setup: packages .venv/.ready

demo: programs
	@$(SUDO) $(PYTHON) -m tests.lab.demo

test: lint unit test-monitoring lab

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --cache-dir=$(CACHE)/mypy -p kubeadm_registry -p tests.lab -p tests.kubernetes -p tests.operator -p tests.monitoring -p tests.bench -p tests.simulation
	.venv/bin/lint-imports

# Needs apt and pip to reach their mirrors. Debian's keys are not part of Ubuntu.
dist: PACKAGES := python3-venv debian-archive-keyring
dist: setup
	@$(PYTHON) -m kubeadm_registry.bundle.make.onefile dist
	@cat dist/SHA256SUMS

docs: setup
	$(PYTHON) docs/reference.py

manifests: setup
	$(PYTHON) -m kubeadm_registry.custom_resources manifests
	$(PYTHON) -m tests.monitoring.wrapped

# In CI apart: make unit UNIT='not slow', and make unit UNIT=slow beside the lab. Many wait for processes or a time-out
# half of their time.
UNIT ?= slow or not slow
WORKERS ?= $(shell echo $$(($$(nproc) * 2)))
unit: setup
	@$(PYTHON) -m tests.lab.programs haproxy > /dev/null
	.venv/bin/pytest -q -m 'not long and ($(UNIT))' --numprocesses=$(WORKERS) --dist=worksteal tests/unit tests/simulation

lab: programs
	@$(PYTHON) -m tests.lab.programs keepalived > /dev/null
	$(SUDO) env "PATH=$$PATH" $(PYTHON) -m tests.lab.lanes -m 'not long' --durations=20

# The alert rules, by promtool of Debian's package prometheus, which is fetched once and not installed.
test-monitoring: setup
	@$(PYTHON) -m tests.lab.programs promtool > /dev/null
	.venv/bin/pytest -q tests/monitoring

# The custom resources, their guard and the operator, against a real kube-apiserver with etcd and a real registry on
# loopback: Distribution, and zot where KUBEADM_REGISTRY_ZOT names one. Needs Go once, and no root.
test-operator: setup
	@$(PYTHON) -m tests.lab.programs etcd kubectl registry > /dev/null
	.venv/bin/pytest -m 'not long' --numprocesses=2 --dist=loadfile tests/operator

# What takes hours: retention in a million worlds, its plans and its trash, an hour without an API server, ten minutes at
# rest with as many pods as the machine holds. Shorter: make test-operator-long WORLDS=20000 AWAY=60 REST=60 PODS=2000
WORLDS ?= 1000000
AWAY ?= 3600
REST ?= 600
PODS ?= 50000
IN_WORLDS := retention_properties retention_trash_properties executor_interrupted
test-operator-long: setup
	KUBEADM_REGISTRY_RETENTION=$(WORLDS) .venv/bin/pytest -q --numprocesses=auto $(addprefix tests/unit/test_,$(addsuffix .py,$(IN_WORLDS)))
	@$(PYTHON) -m tests.lab.programs etcd kubectl registry > /dev/null
	KUBEADM_REGISTRY_AWAY=$(AWAY) KUBEADM_REGISTRY_REST=$(REST) KUBEADM_REGISTRY_PODS=$(PODS) \
	  .venv/bin/pytest -s -m long tests/operator

# Day two on real hosts, two hours: nodes come, go and are replaced, upgrades, certificates, backups, what doctor
# finds, the deletion of images and the space that it frees, and the conformance tests of the specification.
day-two: programs
	$(SUDO) env "PATH=$$PATH" .venv/bin/pytest -s $(addprefix tests/lab/test_,$(addsuffix .py,$(DAY_TWO)))

kubernetes-programs: programs
	@$(PYTHON) -m tests.lab.programs $(KUBERNETES) > /dev/null

# Whether they are there already.
kubernetes-cached: setup
	@$(PYTHON) -m tests.lab.programs --cached $(KUBERNETES) > /dev/null

# What test-kubernetes installs from, made ahead of it.
kubernetes-bundle: kubernetes-programs
	@$(PYTHON) -m tests.kubernetes.prepare

# kubeadm init, join and reset on three hosts, every image from the registry.
test-kubernetes: kubernetes-programs
	$(SUDO) env "PATH=$$PATH" $$($(PYTHON) -m tests.lab.machine) .venv/bin/pytest -s -m 'not long' tests/kubernetes

# The long ones: full load for ten minutes, second faults.
soak: kubernetes-programs
	$(SUDO) env "PATH=$$PATH" .venv/bin/pytest -s -m long tests/unit tests/lab tests/kubernetes tests/bench

# A million schedules of faults in simulated servers (docs/simulation.md), some hours on all processors. What has run is
# recorded, so it can be interrupted and started again.
simulate: PACKAGES := python3-venv python3-dev gcc libc6-dev
simulate: setup
	@echo "compiling the simulation, two minutes, once"
	@$(PYTHON) -m tests.simulation.compiled $(CACHE)/simulation/compiled > /dev/null
	cd $(CACHE)/simulation/compiled && $(CURDIR)/$(PYTHON) -m tests.simulation --count 1000000 --into $(CACHE)/simulation/record

# The reader of bundles under many more random changes than the unit tests try: some ten minutes.
fuzz: setup
	KUBEADM_REGISTRY_FUZZ=20000 .venv/bin/pytest -q tests/unit/test_bundle_fuzz.py

# What the unit tests kill at some changes only, in memory: killed at each one.
kills: setup
	KUBEADM_REGISTRY_KILLS=1 .venv/bin/pytest -q --numprocesses=auto $(addprefix tests/unit/test_,$(addsuffix .py,$(KILLED)))

bench: programs
	$(SUDO) env "PATH=$$PATH" .venv/bin/pytest -s -m 'not long' tests/bench

lab-down: setup
	$(SUDO) $(PYTHON) -m tests.lab down

clean:
	rm -rf .venv build dist *.egg-info
