#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Build the module for the running kernel, load it, show the device.
set -euo pipefail
cd "$(dirname "$0")"

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo

[ -d "/lib/modules/$(uname -r)/build" ] || {
	echo "load.sh: the headers of kernel $(uname -r) are missing: apt install linux-headers-$(uname -r)" >&2
	exit 1
}
make module || { echo "load.sh: the module does not build" >&2; exit 1; }
if [ -d /sys/module/exmap ]; then
	$sudo rmmod exmap || { echo "load.sh: exmap is in use: end the programs that have /dev/exmap open" >&2; exit 1; }
fi
$sudo insmod exmap.ko || { echo "load.sh: insmod failed: see dmesg" >&2; exit 1; }
ls -l /dev/exmap
