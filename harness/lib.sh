# shellcheck shell=sh disable=SC2034
# Shared by the shell scripts of the harness: where things are, how to speak.

top=$(cd "$(dirname "$0")/.." && pwd)
cache=${P2P_CACHE:-$top/build/cache}

say() { printf '%s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# A configuration's architecture and fragments
arch_of() { awk -v name="$1" '$1 == name { print $2 }' "$top/configs/table"; }
fragments_of() { awk -v name="$1" '$1 == name { gsub(/,/, " ", $3); print $3 }' "$top/configs/table"; }

# kmake CONFIG TREE OBJ ARGS...: every make of a kernel, for another compiler
# name or environment would have it all built again.
kmake() {
	kmake_arch=$(arch_of "$1") kmake_tree=$2 kmake_obj=$3
	shift 3
	CCACHE_DIR=$cache/ccache CCACHE_BASEDIR=$top/build CCACHE_MAXSIZE=4G CCACHE_DEPEND=1 \
	KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' \
	KBUILD_BUILD_USER=p2p KBUILD_BUILD_HOST=build \
	make -C "$kmake_tree" O="$kmake_obj" ARCH="$kmake_arch" CC='ccache gcc' HOSTCC='ccache gcc' \
		"-j$(nproc)" "$@"
}

# need_space DIR GIB WHAT: fails early instead of in the middle of a build
need_space() {
	free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }')
	[ "$free" -ge "$2" ] ||
		die "$3 needs $2 GiB in $1, $free GiB are free: make room, or set P2P_CACHE to another disk"
}
