# SPDX-License-Identifier: GPL-2.0
# The verbs of this project; each is a program in harness/ that says what it does.

CONFIG ?= x86_64
MAKEFLAGS += --no-print-directory
export TREE KERNEL_SRC P2P_CACHE SIGNOFF

.PHONY: help
help:		## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12
	@echo
	@echo 'CONFIG=name     configuration, a line of configs/table (default x86_64)'
	@echo 'STOCK=1         the kernel without the series (build, vm, shell)'
	@echo "KERNEL_SRC=dir  kernel source of your own instead of Debian's"
	@echo 'P2P_CACHE=dir   where downloads and compiled objects are kept (default build/cache)'

.PHONY: demo check bench soak mutants
demo:		## the main job, from nothing: disk to BAR with nothing in between
	@harness/demo

check:		## all tests, from nothing
	@harness/prereqs tree build vm check
	@harness/check

bench:		## what the CPU path costs, counted in instructions, against the stock kernel
	@harness/prereqs tree build vm
	@harness/series stock
	@harness/series tree auto
	@harness/build bench stock
	@harness/build bench
	@harness/bench

MINUTES ?= 30
soak:		## everything at once for MINUTES (30) under lockdep and KASAN, and under KCSAN
	@harness/prereqs tree build vm
	@harness/series tree auto
	@harness/build kasan
	@harness/soak --config kasan $(MINUTES)
	@harness/build kcsan
	@harness/selftests --config kcsan --parallel --list harness/tests/kcsan
	@harness/soak --config kcsan $(MINUTES)

mutants:	## every test fails without the cure that it tests: half an hour
	@harness/prereqs tree build vm
	@harness/series tree auto
	@for config in x86_64 kasan kcsan x86_64-nozone i386; do harness/build $$config || exit; done
	@harness/mutate

.PHONY: tree export series
tree:		## build/linux: the kernel source in git, one commit per patch
	@harness/prereqs tree
	@harness/series tree

export:		## commits of build/linux -> patches/ and the files that they add
	@harness/series export

series:		## build/series: patches ready to mail (SIGNOFF=no: without sign-off)
	@harness/prereqs tree
	@harness/series mail

.PHONY: build vm shell
build:		## kernel and selftests of one configuration
	@harness/prereqs tree build
	@harness/series $(if $(STOCK),stock,tree auto)
	@harness/build $(CONFIG) $(if $(STOCK),stock)

vm: build	## build, boot, run PROGRAM (a path on the host; ARGS=...)
	@harness/prereqs vm
	@harness/vm --config $(CONFIG) $(if $(STOCK),--stock) $(VM) -- $(or $(PROGRAM),uname -a) $(ARGS)

shell: build	## build, boot, a shell in the guest
	@harness/prereqs vm
	@harness/vm --config $(CONFIG) $(if $(STOCK),--stock) $(VM) --shell

.PHONY: clean
clean:		## remove what was built; build/linux and the cache stay
	rm -rf build/obj build/stock build/bisect build/log build/series
