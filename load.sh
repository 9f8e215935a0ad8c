#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Build the module for the running kernel, load it, and show the device.
. "$(dirname "$0")/tools/prologue.sh"

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo

release=$(uname -r)
[ -d "/lib/modules/$release/build" ] ||
	fail "the headers of kernel $release are missing: run apt install linux-headers-$release"
make module || fail "cannot build the module: see the messages above"
if [ -d /sys/module/exmap ]; then
	$sudo rmmod exmap ||
		fail "cannot unload the old module: end the programs that have /dev/exmap open"
fi
$sudo insmod exmap.ko || fail "cannot load the module: see dmesg"
ls -l /dev/exmap
