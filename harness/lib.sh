# shellcheck shell=sh disable=SC2034
# Shared by the shell scripts of the harness: where things are, how to speak.

top=$(cd "$(dirname "$0")/.." && pwd)
cache=${P2P_CACHE:-$top/build/cache}

say() { printf '%s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# What configs/table says of a configuration
arch_of() { awk -v name="$1" '$1 == name { print $2 }' "$top/configs/table"; }
fragments_of() { awk -v name="$1" '$1 == name { gsub(/,/, " ", $3); print $3 }' "$top/configs/table"; }

# For one that is built or compiled only: the first of its architecture that is booted,
# if it begins with the same fragment
like() { awk -v name="$1" '
	/^#/ || !NF		{ next }
				{ split($3, fragment, ",") }
	$4 != "build" && $4 != "compile" && $4 != "-" && !($2 in first) {
		first[$2] = $1; base[$2] = fragment[1]
	}
	$1 == name		{ if (($4 == "build" || $4 == "compile") && base[$2] == fragment[1]) print first[$2]; exit }
' "$top/configs/table"; }

use_of() { awk -v name="$1" '$1 == name { print $4 }' "$top/configs/table"; }

# What configs/arches says of an architecture
arch_field() { awk -v arch="$1" -v field="$2" '$1 == arch { print $field == "-" ? "" : $field }' "$top/configs/arches"; }
prefix_of() { arch_field "$1" 2; }
image_of() { arch_field "$1" 3; }
debian_of() { arch_field "$1" 5; }

# What KCSAN looks at: the series' own files. It takes samples, and those of a whole
# kernel would hardly ever be of them; and the races of others are for others.
instrumented() {
	echo KCSAN_SANITIZE=n
	for object in p2pdma_core p2pdma p2pdma_pages vfio_pci_dmabuf vfio_pci_dmabuf_state \
		      vfio_pci_dmabuf_pages vfio_pci_mmap; do
		echo "KCSAN_SANITIZE_$object.o=y"
	done
}

# kmake CONFIG TREE OBJ ARGS...: every make of a kernel, for another compiler
# name or environment would have it all built again.
kmake() {
	kmake_arch=$(arch_of "$1") kmake_tree=$2 kmake_obj=$3
	kmake_prefix=$(prefix_of "$kmake_arch")
	# shellcheck disable=SC2046 # one word each
	[ "$1" != kcsan ] || set -- "$@" $(instrumented)
	shift 3
	CCACHE_DIR=$cache/ccache CCACHE_BASEDIR=$top/build CCACHE_MAXSIZE=4G CCACHE_DEPEND=1 \
	KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' \
	KBUILD_BUILD_USER=p2p KBUILD_BUILD_HOST=build \
	make -C "$kmake_tree" O="$kmake_obj" ARCH="$kmake_arch" CROSS_COMPILE="$kmake_prefix" \
		CC="ccache ${kmake_prefix}gcc" HOSTCC='ccache gcc' "-j$(nproc)" "$@"
}

# kimage CONFIG TREE OBJ: the image that boots, of a vmlinux that is there. In its
# depend mode ccache does not see .incbin: for the object that has the compressed
# kernel in it, it would take that of another kernel of the same size.
kimage() {
	kimage_name=$(image_of "$(arch_of "$1")")
	(export CCACHE_DISABLE=1; kmake "$@" "${kimage_name##*/}")
}

# The Debian main archive that this machine uses: "URI FILE:LINE" of its entry
archive_entry() { # shellcheck disable=SC2016 # apt's own variables
	apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI) $(SOURCESENTRY)' |
		sed -n 's/^Debian|Debian|main|//p' | head -n 1
}

# The keyring file that an entry (FILE:LINE) names, if it names one
signed_by() {
	file=${1%:*} line=${1##*:}
	case $file in
	*.sources) sed -n "$line,/^\$/s/^[Ss]igned-[Bb]y: *\(\/[^ ]*\).*/\1/p" "$file" ;;
	*) sed -n "${line}s/.*signed-by=\(\/[^] ]*\).*/\1/p" "$file" ;;
	esac
}

# apt_elsewhere DIR ARCH SUITE...: readies apt_there for suites of the machine's
# mirror that it has no entry for, or for another architecture, without telling the
# machine's own apt. Sets apt_uri.
apt_elsewhere() {
	apt_dir=$1 apt_arch=$2
	shift 2
	command -v apt-get >/dev/null || die "no apt-get here"
	apt_entry=$(archive_entry)
	[ "$apt_entry" ] || die "apt knows no Debian archive (run apt-get update)"
	apt_uri=${apt_entry% *}
	keyring=$(signed_by "${apt_entry##* }")
	for file in /usr/share/keyrings/debian-archive-keyring.gpg \
		    /usr/share/keyrings/debian-archive-keyring.pgp; do
		[ "$keyring" ] || [ ! -e "$file" ] || keyring=$file
	done
	mkdir -p "$apt_dir/lists/partial" "$apt_dir/cache/archives/partial"
	for suite; do
		echo "deb ${keyring:+[signed-by=$keyring] }$apt_uri $suite main"
	done >"$apt_dir/sources.list"
	# A suite that the mirror lacks is no error here.
	apt_there apt-get update >"$apt_dir/update.log" 2>&1 || true
}

# apt_there COMMAND ARGS...: the machine's own apt configuration (a proxy, say)
# holds, its sources do not.
apt_there() {
	apt_command=$1
	shift
	[ "$(id -u)" != 0 ] || set -- -o APT::Sandbox::User=root "$@"
	"$apt_command" -o Dir::Etc::sourcelist="$apt_dir/sources.list" -o Dir::Etc::sourceparts=- \
		-o Dir::State::lists="$apt_dir/lists" -o Dir::Cache="$apt_dir/cache" \
		-o APT::Get::List-Cleanup=0 -o APT::Architecture="$apt_arch" \
		-o APT::Architectures="$apt_arch" "$@"
}

# need_space DIR GIB WHAT: fails early instead of in the middle of a build
need_space() {
	free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }')
	[ "$free" -ge "$2" ] ||
		die "$3 needs $2 GiB in $1, $free GiB are free: make room, or set P2P_CACHE to another disk"
}
