# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# For the scripts that count with a plugin of QEMU. They source tools/prologue.sh first.

# plugin NAME ARGUMENT...: build bench/NAME-plugin.c, as root: if the user is not root, run the
# script again with these arguments. $plugin is then the option for vm/run, and the plugin writes to
# the file $counted. Exits with 77 if there is no header to build it with.
plugin()
{
	local include=${QEMU_INCLUDE:-/usr/include}

	[ -f "$include/qemu-plugin.h" ] || fail "skipped: $include/qemu-plugin.h is missing. Debian\
 12 has no package with it. It is include/qemu/qemu-plugin.h in QEMU's sources; set QEMU_INCLUDE to\
 its directory" 77
	as_root "${@:2}"
	vm/install
	temporary=$(mktemp -d)
	trap 'rm -r "$temporary"' EXIT
	# shellcheck disable=SC2034  # the scripts use them
	counted=$temporary/counted plugin=$temporary/plugin.so,out=$temporary/counted
	cc -O2 -Wall -Wextra -shared -fPIC -I"$include" -o "$temporary/plugin.so" \
		"bench/$1-plugin.c" || fail "the plugin does not build with $include/qemu-plugin.h"
	say "building and booting"
}
