/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * exmap: explicit control over a piece of virtual memory.
 *
 * A program opens /dev/exmap, maps the surface at EXMAP_OFF_EXMAP, calls EXMAP_IOCTL_SETUP, and
 * maps one interface per thread at EXMAP_OFF_INTERFACE(n). A thread writes entries to its
 * interface, and EXMAP_IOCTL_ACTION carries them out. exmap(4) is the reference, and lists all
 * errors. A page has 4 KiB. The numbers in this file never change.
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

/*
 * The version of this header. /sys/module/exmap/version is that of the loaded module.
 */
#define EXMAP_VERSION_MAJOR	1
#define EXMAP_VERSION_MINOR	1
#define EXMAP_VERSION		"1.1"

/*
 * Offsets for mmap(2) on the file descriptor. The offset says what is mapped: the surface, once
 * per exmap; or the page of interface n. Both need MAP_SHARED.
 */
#define EXMAP_OFF_EXMAP		0x0000000000000000ULL	/* the surface */
#define EXMAP_OFF_PTEXPORT	0x1000000000000000ULL	/* reserved */
#define EXMAP_OFF_INTERFACE_BASE 0xe000000000000000ULL
#define EXMAP_OFF_INTERFACE_MAX	0xf000000000000000ULL
#define EXMAP_OFF_INTERFACE(n)	\
	(EXMAP_OFF_INTERFACE_BASE | ((unsigned long long)(n) << 12))
/* The same page, at an offset that is a positive off_t: Python's mmap refuses others. */
#define EXMAP_OFF_INTERFACE_POSITIVE_BASE 0x6000000000000000LL
#define EXMAP_OFF_INTERFACE_POSITIVE(n)	\
	(EXMAP_OFF_INTERFACE_POSITIVE_BASE | ((long long)(n) << 12))

/* The most interfaces that an exmap can have. */
#define EXMAP_MAX_INTERFACES	1024

/* The most pages that an interface can hold back until their TLB shootdown. */
#define EXMAP_MAX_QUARANTINE	16384

/**
 * enum exmap_flags - flags of EXMAP_IOCTL_ACTION and EXMAP_IOCTL_SETUP
 * @EXMAP_ALLOC_PROBE: ACTION, with EXMAP_OP_ALLOC or EXMAP_OP_READ: skip each entry whose first
 *	page is mapped; other opcodes ignore it
 * @EXMAP_PAGEFAULT_ALLOC: SETUP: a touch of a page that is not mapped maps one, instead of raising
 *	SIGSEGV
 * @EXMAP_FREE_DEFER: ACTION, with EXMAP_OP_FREE only: defer the TLB shootdown
 */
enum exmap_flags {
	EXMAP_ALLOC_PROBE	= 1,
	EXMAP_PAGEFAULT_ALLOC	= 2,
	EXMAP_FREE_DEFER	= 4,
};
typedef enum exmap_flags exmap_flags;

/**
 * struct exmap_ioctl_setup - argument of EXMAP_IOCTL_SETUP
 * @fd: the backing file, open for reading; or -1
 * @max_interfaces: how many interfaces, 1 to EXMAP_MAX_INTERFACES; they are numbered from 0
 * @buffer_size: the most pages that can be mapped at a time, at least 1
 * @flags: 0 or EXMAP_PAGEFAULT_ALLOC; a word with any other bit set counts as 0,
 *	because programs for the first exmap leave it uninitialized
 *
 * The ioctl returns 0, or -1 with errno EBADF, EBUSY, EFAULT, EINTR, EINVAL, EISDIR, ENOMEM,
 * EPERM or ESPIPE.
 */
struct exmap_ioctl_setup {
	int		fd;
	int		max_interfaces;
	size_t		buffer_size;
	uint64_t	flags;
};

/**
 * enum exmap_opcode - opcodes of EXMAP_IOCTL_ACTION
 * @EXMAP_OP_READ: map a page at each address that has none, filled from the backing file
 * @EXMAP_OP_ALLOC: map a page at each address that has none
 * @EXMAP_OP_FREE: unmap pages
 * @EXMAP_OP_WRITE: write mapped pages to the backing file
 * @EXMAP_OP_FLUSH: do the TLB shootdown that EXMAP_FREE_DEFER has deferred; takes no entries
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
 * @interface: number of the interface whose entries are carried out
 * @iov_len: how many entries, 0 to EXMAP_USER_INTERFACE_PAGES; 0 for EXMAP_OP_FLUSH
 * @opcode: one of enum exmap_opcode
 * @flags: 0 or EXMAP_ALLOC_PROBE; with EXMAP_OP_FREE also EXMAP_FREE_DEFER; 0 for
 *	EXMAP_OP_FLUSH
 *
 * The ioctl returns how many entries failed; the answer of each says why. Or it returns -1 with
 * errno EBADF, EFAULT, EINTR, EINVAL, ENOMEM, EOPNOTSUPP, EPERM or EPROTO; then nothing has
 * happened, and no entry was overwritten.
 */
struct exmap_action_params {
	uint16_t	interface;
	uint16_t	iov_len;
	uint16_t	opcode;
	uint64_t	flags;
};

/**
 * struct exmap_ioctl_stats - result of EXMAP_IOCTL_STATS
 * @flags: the flags of EXMAP_IOCTL_SETUP that are in effect
 * @buffer_size: as given to EXMAP_IOCTL_SETUP or EXMAP_IOCTL_RESIZE, in pages
 * @alloc_count: how many pages are mapped now
 * @max_interfaces: as given to EXMAP_IOCTL_SETUP
 *
 * The ioctl returns 0, or -1 with errno EBADF, EFAULT or EPERM.
 */
struct exmap_ioctl_stats {
	uint64_t	flags;
	uint64_t	buffer_size;
	uint64_t	alloc_count;
	uint32_t	max_interfaces;
};

/**
 * struct exmap_ioctl_resize - argument of EXMAP_IOCTL_RESIZE
 * @buffer_size: the most pages that can be mapped from now on, at least 1
 * @surplus: answer: how many pages the exmap still has beyond that
 *
 * Free pages beyond a smaller size go back to the system at once, others when they are freed. Until
 * then no page that is not mapped yet can be mapped.
 *
 * The ioctl returns 0, or -1 with errno EBADF, EFAULT, EINVAL, ENOMEM, EPERM or EPROTO; then
 * nothing has changed.
 */
struct exmap_ioctl_resize {
	uint64_t	buffer_size;
	uint64_t	surplus;
};

/* Flag of EXMAP_IOCTL_TRIM: give page tables back, not pages. */
#define EXMAP_TRIM_TABLES	1

/**
 * struct exmap_ioctl_trim - argument of EXMAP_IOCTL_TRIM
 * @flags: 0 to give free pages back to the system; EXMAP_TRIM_TABLES to give back page tables of
 *	the surface in which no page is mapped
 * @page: with EXMAP_TRIM_TABLES, the first page of the range to look at; otherwise 0
 * @pages: the most free pages to give back, or the length of the range; 0 for all
 * @done: answer: how many pages or page tables were given back
 *
 * The ioctl returns 0, or -1 with errno EBADF, EFAULT, EINTR, EINVAL, EPERM or EPROTO.
 */
struct exmap_ioctl_trim {
	uint64_t	flags;
	uint64_t	page;
	uint64_t	pages;
	uint64_t	done;
};

/* Width of a length in struct exmap_iov, in bits; every length is below EXMAP_PAGE_MAX_PAGES. */
#define EXMAP_PAGE_LEN_BITS	12
#define EXMAP_PAGE_MAX_PAGES	(1 << EXMAP_PAGE_LEN_BITS)

/**
 * struct exmap_iov - an entry: the request, then its answer in the same place
 * @value: the whole word
 * @page: request: the first page, counted from the start of the surface
 * @len: request: how many pages, 0 to EXMAP_PAGE_MAX_PAGES - 1
 * @res: answer: 0 or a negative errno
 * @pages: answer: how many pages were newly mapped, unmapped, read or written
 *
 * The answers are for the thread that made the call, once it has returned. Another thread may see
 * an answer earlier, and must not touch the pages because of it.
 */
/* __extension__, because anonymous structs are an extension to ISO C++. */
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

/* How many entries an interface has. */
#define EXMAP_USER_INTERFACE_PAGES	512

/**
 * struct exmap_user_interface - an interface: one page, shared by the program and the kernel
 * @iov: its entries
 */
struct exmap_user_interface {
	struct exmap_iov iov[EXMAP_USER_INTERFACE_PAGES];
};

/*
 * pread(2) and the like work on the exmap's file, with memory on the surface. The offset holds the
 * interface in bits 0-7 and the opcode in bits 8-15. The cmd_op of io_uring's IORING_OP_URING_CMD
 * holds the same. A command can have each opcode but EXMAP_OP_FLUSH, and no flags.
 */

/**
 * struct exmap_uring_cmd - the command area of IORING_OP_URING_CMD
 * @iov: a range of the surface; or, with IORING_URING_CMD_FIXED, the part of a
 *	registered buffer that holds 1 to EXMAP_USER_INTERFACE_PAGES entries (struct exmap_iov)
 */
struct exmap_uring_cmd {
	struct iovec iov;
};

/*
 * A call on one range with all arguments in registers: the system call fadvise64 on the exmap's
 * file, with offset and length of the range on the surface, in bytes, and EXMAP_ADVICE() as advice.
 * It returns the number of pages done, or a negative errno. glibc's posix_fadvise() does not return
 * the number.
 */
#define EXMAP_ADVICE_BASE		0x40000000
#define EXMAP_ADVICE_OPCODE_SHIFT	10
#define EXMAP_ADVICE_OPCODE_MASK	0x3f
#define EXMAP_ADVICE_FLAGS_SHIFT	16

/* @opcode: of enum exmap_opcode, but EXMAP_OP_FLUSH; @flags: as for EXMAP_IOCTL_ACTION */
#define EXMAP_ADVICE(opcode, interface, flags)				\
	(EXMAP_ADVICE_BASE | (flags) << EXMAP_ADVICE_FLAGS_SHIFT |	\
	 (opcode) << EXMAP_ADVICE_OPCODE_SHIFT | (interface))

#define EXMAP_IOCTL_SETUP	_IOC(_IOC_WRITE, 'k', 1, sizeof(struct exmap_ioctl_setup))
#define EXMAP_IOCTL_ACTION	_IOC(_IOC_WRITE, 'k', 2, sizeof(struct exmap_action_params))
/*
 * The argument of EXMAP_IOCTL_CLONE is a file descriptor of the exmap to clone, not a pointer. The
 * ioctl returns 0, or -1 with errno EBADF, EBUSY, EINTR, EINVAL or EPERM.
 */
#define EXMAP_IOCTL_CLONE	_IOC(_IOC_WRITE, 'k', 3, sizeof(int))
#define EXMAP_IOCTL_STATS	_IOC(_IOC_WRITE, 'k', 4, sizeof(struct exmap_ioctl_stats))
#define EXMAP_IOCTL_RESIZE	_IOC(_IOC_WRITE, 'k', 5, sizeof(struct exmap_ioctl_resize))
#define EXMAP_IOCTL_TRIM	_IOC(_IOC_WRITE, 'k', 6, sizeof(struct exmap_ioctl_trim))
/*
 * The argument of EXMAP_IOCTL_QUARANTINE is a number, not a pointer: how many pages each interface
 * may defer the TLB shootdown of, 1 to EXMAP_MAX_QUARANTINE. It is 512 otherwise. The ioctl returns
 * 0, or -1 with errno EBUSY if a shootdown has been deferred already, EINVAL or EPERM.
 */
#define EXMAP_IOCTL_QUARANTINE	_IOC(_IOC_WRITE, 'k', 7, sizeof(int))

#endif /* _UAPI_LINUX_EXMAP_H */
