# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Devices for tests, which are removed at the end of the script. To be sourced after
# tests/prologue.sh.
nullb=/sys/kernel/config/nullb

# null_blk: load the module null_blk, whose first device, /dev/nullb0, has memory behind it, and
# mount configfs
null_blk()
{
	modprobe null_blk nr_devices=1 gb=1 bs=4096 memory_backed=1 no_sched=1 &&
		{ mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config; }
}

# null_device NAME ATTRIBUTE=VALUE...: make /dev/NAME, a null_blk with memory behind it
null_device()
{
	local setting device=$nullb/$1
	shift
	mkdir "$device" || return
	at_exit rmdir "$device"
	for setting in memory_backed=1 blocksize=4096 "$@" power=1; do
		echo "${setting#*=}" >"$device/${setting%%=*}" || return
	done
}

# disk_on_each_cpu: create and remove a disk on each CPU. This fills the CPU's store of radix tree
# nodes (blkcg_init_disk() calls radix_tree_preload()), unless the store is full already. Tests
# with a memory limit take nodes from it. The next write to io.max then fills it on its CPU:
# blkg_conf_prep() calls radix_tree_preload(GFP_KERNEL) under blkcg_mutex, and lockdep on 7.3
# reports a deadlock with memory reclaim. That is a bug of the kernel, and not of exmap.
disk_on_each_cpu()
{
	local cpu
	for ((cpu = 0; cpu < $(nproc); cpu++)); do
		# shellcheck disable=SC2016  # the inner shell expands it
		taskset -c "$cpu" bash -euc '
			mkdir "$1" && echo 1 >"$1/power" && echo 0 >"$1/power" && rmdir "$1"
		' - "$nullb/exmap-cpu" || return
	done
}

# scsi_debug: set $scsi_disk to a SCSI disk that can be removed
scsi_debug()
{
	local i disk sysfs='/sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block/*'
	modprobe sd_mod && modprobe scsi_debug dev_size_mb=16 sector_size=4096 ndelay=100000 || return
	# The kernel finds it in the background.
	for ((i = 0; i < 100; i++)); do
		disk=/dev/$(basename "$(compgen -G "$sysfs")")
		[ -b "$disk" ] && break
		sleep 0.1
	done
	# shellcheck disable=SC2034  # the caller uses it
	[ -b "$disk" ] && scsi_disk=$disk
}

# virtio_disk SERIAL: print the path of a virtio disk of vm/run
virtio_disk()
{
	local serial
	serial=$(grep -l "^$1\$" /sys/block/vd*/serial) && echo "/dev/$(cut -d/ -f4 <<<"$serial")"
}

# loop_device FILE SIZE: create the file, and set $loop to a loop device on it
loop_device()
{
	truncate -s "$2" "$1" && modprobe loop && loop=$(losetup --find --show "$1") &&
		at_exit losetup -d "$loop"
}

# mount_at DIRECTORY OPTION...: create the directory, and mount a file system there with "mount
# OPTION... DIRECTORY"
mount_at()
{
	mkdir "$1" && mount "${@:2}" "$1" && at_exit umount "$1"
}
