# SPDX-License-Identifier: GPL-2.0
# The verbs of this project; each is a program in harness/ that says what it does.
#
#	CONFIG=name	configuration (a line of configs/table)
#	TREE=dir	kernel tree, default build/linux
#	KERNEL_SRC=dir	kernel source of your own instead of Debian's
#	P2P_CACHE=dir	where downloads and their git repository are kept

MAKEFLAGS += --no-print-directory
export TREE KERNEL_SRC P2P_CACHE

.PHONY: help
help:		## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

.PHONY: tree export series
tree:		## build/linux: the kernel source in git, one commit per patch
	@harness/prereqs tree
	@harness/series tree

export:		## commits of build/linux -> patches/ and the files that they add
	@harness/series export

series:		## build/series: patches ready to mail (SIGNOFF=no: without sign-off)
	@harness/prereqs tree
	@harness/series mail
