# The front of the lab: thin, no logic. `make help` lists the targets.
#
# LAB_RUNTIME, LAB_NAME, LAB_HOME, LAB_PORT_BASE, LAB_PASSWORD, LAB_IMAGE and LAB_POSTGRES_BIN_DIR
# reach every target through the environment; inventory/lab/group_vars/all/lab.yml explains them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Paths are relative: make cannot handle a checkout whose path has a space in it, the rest can.
PYTHON_VENV := .venv/bin/python
PLAYBOOK := $(PYTHON_VENV) -m ansible playbook
# Ansible insists on UTF-8, and a bare machine may have set no locale at all.
export LC_ALL ?= C.UTF-8
# A checkout in a folder that others may write to would have its configuration ignored.
export ANSIBLE_CONFIG := ./ansible.cfg
# Variables given on make's command line, make traffic USERS=50, are for the programs too, and as
# they were typed: make itself would take the $ of SQL="... ~ 'com$$'" for a variable of its own.
$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),\
  $(eval override $(name) := $$(value $(name)))))
export

.PHONY: help
help: ## List the targets
	@echo "The geo-sharding lab. make demo shows it, make test tests it."
	@sed -n 's/^\([a-z_ -]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
	  while IFS='|' read -r name text; do printf '  %s\n      %s\n' "$$name" "$$text"; done

.PHONY: setup
setup: ## Install into .venv what the lab needs (other targets do it by themselves)
	@scripts/setup run

.PHONY: setup-dev
setup-dev:
	@scripts/setup dev

.PHONY: demo
demo: setup ## Play the road with traffic in each phase (TIME=30 seconds each), and leave it up
	@$(PYTHON_VENV) -m workload demo

.PHONY: before expand_eu expand_world shard after
before expand_eu expand_world shard after: setup ## Play one phase
	@$(PLAYBOOK) playbooks/$@.yml

.PHONY: failover rejoin
failover rejoin: setup ## Drills: lose the EU's primary, bring it back
	@$(PLAYBOOK) playbooks/$@.yml

.PHONY: traffic
traffic: setup ## Let customers trade: a web page, or HEADLESS=1 USERS=20 SPAWN_RATE=10 TIME=30
	@$(PYTHON_VENV) -m workload traffic

.PHONY: seed
seed: setup ## Make many customers, made by the servers (CUSTOMERS=1000000 PURCHASES_EACH=3)
	@$(PYTHON_VENV) -m workload seed

.PHONY: source_tests
source_tests: setup ## Run the source document's two tests: partitioning, and direct inserts
	@$(PYTHON_VENV) -m workload source_tests

.PHONY: audit
audit: setup ## Say where each region's data is on each node, down to the bytes
	@$(PLAYBOOK) playbooks/audit.yml

.PHONY: find move forget
find: setup ## Say where a customer is at home (CUSTOMER=id)
	@$(PYTHON_VENV) -m workload find

move: setup ## Move a customer with all purchases (CUSTOMER=id COUNTRY=us)
	@$(PYTHON_VENV) -m workload move

forget: setup ## Erase a customer and all purchases, and prove it (CUSTOMER=id)
	@$(PYTHON_VENV) -m workload forget

.PHONY: verify
verify: setup ## Prove that every acknowledged write is in the database
	@$(PYTHON_VENV) -m workload verify

.PHONY: wan
wan: setup ## Measure the WAN, or LINK=us-eu STATE=cut|reset|up [ONE_WAY=1] [RTT=300] to change it
	@$(PYTHON_VENV) -m workload wan

.PHONY: report
report: setup ## Print what the customers experienced and why, and write reports/index.html
	@$(PYTHON_VENV) -m workload report

.PHONY: status
status: setup ## Say how nodes, links and replication are, and what is wrong; fails where anything is
	@$(PYTHON_VENV) -m workload status

.PHONY: resolve
resolve: setup ## Show the row that stops a replica (NODE=us), and go on: KEEP=origin or KEEP=local
	@$(PYTHON_VENV) -m workload resolve

.PHONY: psql
psql: setup ## Open psql on a node (NODE=jp), or run one statement there (SQL="SELECT 1")
	@$(PYTHON_VENV) -m workload psql

.PHONY: exhibit
exhibit: setup ## Show on throw-away data why a step is not taken (NAME=shared-volume)
	@$(PYTHON_VENV) -m exhibits $(NAME)

.PHONY: image
image: ## Build a stand-in for the image postgres:16 where no registry can be reached
	@scripts/build-image

.PHONY: check test soak
check: setup-dev ## Run the quick tests, in about a minute (ARGS= for pytest)
	@scripts/test check $(ARGS)

test: setup-dev ## Run the tests of every change that this machine can run (ARGS= for pytest)
	@scripts/test test $(ARGS)

soak: setup-dev ## Run the tests that take longest (LAB_TEST_SEED= gives random kills again)
	@scripts/test soak $(ARGS)

.PHONY: bad-input
bad-input: setup-dev
	@$(PYTHON_VENV) -m pytest -q --write-refusals docs/bad-input.md $(ARGS) \
	  $$(grep -rl "^from tests.fixtures.refusals import Refusal" tests)

.PHONY: roles-readme
roles-readme: setup-dev
	@$(PYTHON_VENV) scripts/roles-readme >roles/README.md

.PHONY: lint
lint: setup-dev ## Check style and types
	@scripts/lint

.PHONY: bench
bench: setup-dev ## Measure, print each figure beside its goal, write bench.json
	@$(PYTHON_VENV) -m bench

.PHONY: teardown
teardown: setup ## Remove all that this lab made, in any state, and nothing else
	@$(PLAYBOOK) playbooks/teardown.yml
