# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# The shared beginning of the scripts, which source this file first:
#
#	. "$(dirname "$0")/../tools/prologue.sh"
#
# It makes the shell strict and changes to the checkout. If the first argument of the script is
# -h or --help, it prints the script's usage and ends the script. It defines functions, and
#
#	$checkout	the absolute path of the checkout
#	$script		the path of the script in the checkout, such as vm/run
#	$cache		the directory for everything that scripts build: $EXMAP_CACHE
#	$mirror		Debian's mirror: $EXMAP_MIRROR
#	$slow_host	options for the kernel of a machine: its processors are threads of the
#			host, which may have to wait for long
#
# vm/kernel, vm/preinit, vm/init and vm/package-test do not source it: they run in a root or in a
# machine, where the checkout cannot be reached.
set -euo pipefail

# A relative $EXMAP_CACHE is relative to the caller's directory.
[[ ${EXMAP_CACHE:-/} = /* ]] || export EXMAP_CACHE=$PWD/$EXMAP_CACHE
script=$(cd "$(dirname "$0")" && pwd)/${0##*/}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck disable=SC2034  # the scripts use these variables
checkout=$PWD cache=${EXMAP_CACHE:-$HOME/.cache/exmap} mirror=${EXMAP_MIRROR:-http://deb.debian.org}
# shellcheck disable=SC2034
slow_host="watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120"
script=${script#"$checkout"/}

# usage: print the comment at the top of the script
usage()
{
	sed -n '3,${/^#/!q; /^# shellcheck/d; s/^# \{0,1\}//p}' "$script"
}

# say MESSAGE: print it to standard error, after the script's name
say()
{
	echo "$script: $1" >&2
}

# fail MESSAGE [STATUS]: end the script with that message and exit status (default 1)
fail()
{
	say "$1"
	exit "${2:-1}"
}

# kernel_name KERNEL: what files in the cache call that kernel; the path of a tree without slashes
kernel_name()
{
	case $1 in
	/*) echo "tree${1//\//-}" ;;
	*) echo "$1" ;;
	esac
}

# as_root ARGUMENT...: if the user is not root, run the script again by sudo, with these arguments
# and with the variables that the scripts read
as_root()
{
	local variables=EXMAP_CACHE,EXMAP_MIRROR,EXMAP_VM_TIMEOUT,BRIEF,JOBS,KERNEL,QEMU_INCLUDE

	[ "$(id -u)" = 0 ] || exec sudo --preserve-env="$variables" \
		"$checkout/$script" "$@"
}

case ${1-} in
-h | --help) usage && exit ;;
esac
