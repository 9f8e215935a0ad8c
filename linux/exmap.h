/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * exmap: explicit control over a piece of virtual memory.
 *
 * A program opens /dev/exmap, maps its surface at EXMAP_OFF_EXMAP, sets it up
 * with EXMAP_IOCTL_SETUP, maps one control interface per thread at
 * EXMAP_OFF_INTERFACE(n), fills in the interface's entries and has them carried
 * out by EXMAP_IOCTL_ACTION. The numbers here never change.
 */
#ifndef _UAPI_LINUX_EXMAP_H
#define _UAPI_LINUX_EXMAP_H

#ifdef __KERNEL__
#include <linux/types.h>
#include <linux/uio.h>
#else
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#endif
#include <linux/ioctl.h>

/* Offsets for mmap(2) on the file descriptor. */
#define EXMAP_OFF_EXMAP		0x0000000000000000ULL	/* the surface */
#define EXMAP_OFF_PTEXPORT	0x1000000000000000ULL	/* reserved */
#define EXMAP_OFF_INTERFACE_BASE 0xe000000000000000ULL
#define EXMAP_OFF_INTERFACE_MAX	0xf000000000000000ULL
#define EXMAP_OFF_INTERFACE(n)	\
	(EXMAP_OFF_INTERFACE_BASE | ((unsigned long long)(n) << 12))

/* The most interfaces that one exmap can have. */
#define EXMAP_MAX_INTERFACES	1024

/**
 * enum exmap_flags - flags of EXMAP_IOCTL_ACTION and EXMAP_IOCTL_SETUP
 * @EXMAP_ALLOC_PROBE: ACTION: skip entries whose first page is mapped
 * @EXMAP_PAGEFAULT_ALLOC: SETUP: a touch maps a missing page
 * @EXMAP_FREE_DEFER: ACTION with EXMAP_OP_FREE: put the TLB shootdown off
 */
enum exmap_flags {
	EXMAP_ALLOC_PROBE	= 1,
	EXMAP_PAGEFAULT_ALLOC	= 2,
	EXMAP_FREE_DEFER	= 4,
};
typedef enum exmap_flags exmap_flags;

/**
 * struct exmap_ioctl_setup - argument of EXMAP_IOCTL_SETUP
 * @fd: the backing file, -1 for none
 * @max_interfaces: interfaces 0 .. max_interfaces - 1 exist
 * @buffer_size: the most pages, 4 KiB each, that can be mapped at a time
 * @flags: 0 or EXMAP_PAGEFAULT_ALLOC; a word with any other bit set counts as 0,
 *	because programs for the first exmap leave it uninitialized
 */
struct exmap_ioctl_setup {
	int		fd;
	int		max_interfaces;
	size_t		buffer_size;
	uint64_t	flags;
};

/**
 * enum exmap_opcode - opcodes of EXMAP_IOCTL_ACTION
 * @EXMAP_OP_READ: map pages that come filled from the backing file
 * @EXMAP_OP_ALLOC: map pages from the pool
 * @EXMAP_OP_FREE: unmap pages
 * @EXMAP_OP_WRITE: write mapped pages to the backing file
 * @EXMAP_OP_FLUSH: do the TLB shootdown that EXMAP_FREE_DEFER has put off; no entries
 */
enum exmap_opcode {
	EXMAP_OP_READ	= 0,
	EXMAP_OP_ALLOC	= 1,
	EXMAP_OP_FREE	= 2,
	EXMAP_OP_WRITE	= 3,
	EXMAP_OP_FLUSH	= 4,
};

/**
 * struct exmap_action_params - argument of EXMAP_IOCTL_ACTION
 * @interface: whose entries are carried out
 * @iov_len: how many of them, 0 .. EXMAP_USER_INTERFACE_PAGES; for EXMAP_OP_FLUSH 0
 * @opcode: one of enum exmap_opcode
 * @flags: 0 or EXMAP_ALLOC_PROBE; for EXMAP_OP_FREE EXMAP_FREE_DEFER, too; for
 *	EXMAP_OP_FLUSH 0
 */
struct exmap_action_params {
	uint16_t	interface;
	uint16_t	iov_len;
	uint16_t	opcode;
	uint64_t	flags;
};

/**
 * struct exmap_ioctl_stats - result of EXMAP_IOCTL_STATS
 * @flags: the flags of EXMAP_IOCTL_SETUP that hold
 * @buffer_size: as given to EXMAP_IOCTL_SETUP
 * @alloc_count: pages that are mapped now
 * @max_interfaces: as given to EXMAP_IOCTL_SETUP
 */
struct exmap_ioctl_stats {
	uint64_t	flags;
	uint64_t	buffer_size;
	uint64_t	alloc_count;
	uint32_t	max_interfaces;
};

#define EXMAP_PAGE_LEN_BITS	12
#define EXMAP_PAGE_MAX_PAGES	(1 << EXMAP_PAGE_LEN_BITS)

/**
 * struct exmap_iov - an entry: the request, then its answer in the same place
 * @value: the whole word
 * @page: request: the first page, counted from the start of the surface
 * @len: request: how many pages
 * @res: answer: 0 or a negative errno
 * @pages: answer: pages newly mapped, unmapped, read or written
 */
/* To ISO C++ anonymous structs are an extension. */
__extension__ struct exmap_iov {
	union {
		uint64_t	value;
		struct {
			uint64_t	page : 52;	/* 64 - EXMAP_PAGE_LEN_BITS */
			uint64_t	len : EXMAP_PAGE_LEN_BITS;
		};
		struct {
			int32_t		res;
			int16_t		pages;
		};
	};
};

#define EXMAP_USER_INTERFACE_PAGES	512

/* An interface: one page, shared between the program and the kernel. */
struct exmap_user_interface {
	struct exmap_iov iov[EXMAP_USER_INTERFACE_PAGES];
};

/*
 * On the exmap's file pread(2) and the like, to and from addresses on the surface,
 * take the interface in bits 0-7 and the opcode in bits 8-15 of the offset; so does
 * io_uring's IORING_OP_URING_CMD in cmd_op, for all opcodes but EXMAP_OP_FLUSH (none
 * takes flags), and has in its command area a struct exmap_uring_cmd.
 */

/**
 * struct exmap_uring_cmd - the command area of IORING_OP_URING_CMD
 * @iov: a range of the surface; or, with IORING_URING_CMD_FIXED, the part of a
 *	registered buffer that holds struct exmap_iov
 */
struct exmap_uring_cmd {
	struct iovec iov;
};

#define EXMAP_IOCTL_SETUP	_IOC(_IOC_WRITE, 'k', 1, sizeof(struct exmap_ioctl_setup))
#define EXMAP_IOCTL_ACTION	_IOC(_IOC_WRITE, 'k', 2, sizeof(struct exmap_action_params))
#define EXMAP_IOCTL_CLONE	_IOC(_IOC_WRITE, 'k', 3, sizeof(int))
#define EXMAP_IOCTL_STATS	_IOC(_IOC_WRITE, 'k', 4, sizeof(struct exmap_ioctl_stats))

#endif /* _UAPI_LINUX_EXMAP_H */
