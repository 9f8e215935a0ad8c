#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Build the module for the running kernel, load it, and show the device.
set -euo pipefail
cd "$(dirname "$0")"

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo

[ -d "/lib/modules/$(uname -r)/build" ] || {
	echo "load.sh: the headers of kernel $(uname -r) are missing: run apt install linux-headers-$(uname -r)" >&2
	exit 1
}
make module || { echo "load.sh: cannot build the module: see the messages above" >&2; exit 1; }
if [ -d /sys/module/exmap ]; then
	$sudo rmmod exmap || { echo "load.sh: cannot unload the old module: end the programs that have /dev/exmap open" >&2; exit 1; }
fi
$sudo insmod exmap.ko || { echo "load.sh: cannot load the module: see dmesg" >&2; exit 1; }
ls -l /dev/exmap
