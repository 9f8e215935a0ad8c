/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The part of exmap_user.h that does without the module: the calls of an exmap by madvise(2),
 * pread(2) and pwrite(2) on a private mapping. Programs include exmap_user.h, and choose this by
 * EXMAP_BACKEND=madvise in the environment or by EXMAP_WITH_MADVISE. exmap_user(3) lists what is
 * different.
 */
#ifndef EXMAP_MADVISE_H
#define EXMAP_MADVISE_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/exmap.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EXMAP_PAGE_SIZE ((size_t)4096)

/* Constants of Linux that strict ISO C hides. */
#define EXMAP_MAP_ANONYMOUS 0x20
#define EXMAP_MAP_NORESERVE 0x4000
#define EXMAP_MADV_DONTNEED 4
#define EXMAP_MADV_DONTFORK 10
#define EXMAP_MADV_NOHUGEPAGE 15
#define EXMAP_F_DUPFD_CLOEXEC 1030

#ifndef __cplusplus
/* Strict ISO C hides it in unistd.h. C++ does not. */
long syscall(long number, ...);
#endif

/* A lock guards the pages of every EXMAP_MADVISE_LOCKS-th region. */
#define EXMAP_MADVISE_REGION 512
#define EXMAP_MADVISE_LOCKS 64

/**
 * struct exmap_madvise - an exmap without the module
 * @surface: address of page 0
 * @surface_pages: size of the surface, in pages
 * @stats: what the exmap was set up with; @stats.alloc_count is atomic, and also counts pages that
 *	calls under way have reserved
 * @backing: a descriptor of the backing file, or -1
 * @pagemap: /proc/self/pagemap, which tells what a touch has mapped; or -1 without
 *	EXMAP_PAGEFAULT_ALLOC
 * @lock: see EXMAP_MADVISE_LOCKS
 * @mapped: a bit for each page; changed with the lock of its region held
 */
struct exmap_madvise {
	char *surface;
	uint64_t surface_pages;
	struct exmap_ioctl_stats stats;
	int backing;
	int pagemap;
	pthread_mutex_t lock[EXMAP_MADVISE_LOCKS];
	uint64_t *mapped;
};

/* A call on an entry. */
struct exmap_madvise_call {
	struct exmap_madvise *to;
	unsigned int opcode;
	uint64_t reserved;	/* pages of the pool that the call may still map */
	uint64_t done;
	int err;		/* 0, or the first error */
};

/* How many bytes the struct takes, with its bits for the surface. */
static inline size_t exmap_madvise_size(uint64_t surface_pages)
{
	return sizeof(struct exmap_madvise) + (surface_pages + 63) / 64 * sizeof(uint64_t);
}

/* Check a backing file as SETUP does. Returns 0 or a negative errno. */
static inline int exmap_madvise_check(int backing)
{
	struct stat file;
	int flags = fcntl(backing, F_GETFL);

	if (flags < 0 || fstat(backing, &file))
		return -errno;
	if (S_ISDIR(file.st_mode))
		return -EISDIR;
	if (lseek(backing, 0, SEEK_CUR) < 0)
		return -errno;
	if ((flags & O_ACCMODE) == O_WRONLY)
		return -EBADF;
	return S_ISREG(file.st_mode) || S_ISBLK(file.st_mode) ? 0 : -EINVAL;
}

/* Free the struct, but not the surface. */
static inline void exmap_madvise_close(struct exmap_madvise *to)
{
	if (to->backing >= 0)
		close(to->backing);
	if (to->pagemap >= 0)
		close(to->pagemap);
	munmap(to, exmap_madvise_size(to->surface_pages));
}

/*
 * Do what SETUP does for @surface. @setup->fd stays the caller's. Returns 0, with *@opened set; or
 * a negative errno.
 */
static inline int exmap_madvise_open(struct exmap_madvise **opened, char *surface,
				     uint64_t surface_pages, const struct exmap_ioctl_setup *setup)
{
	struct exmap_madvise *to;
	void *memory;
	int i, err;

	if (setup->max_interfaces < 1 || setup->max_interfaces > EXMAP_MAX_INTERFACES ||
	    setup->buffer_size < 1 || setup->buffer_size > SIZE_MAX / EXMAP_PAGE_SIZE)
		return -EINVAL;
	err = setup->fd == -1 ? 0 : exmap_madvise_check(setup->fd);
	if (err)
		return err;
	memory = mmap(NULL, exmap_madvise_size(surface_pages), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | EXMAP_MAP_ANONYMOUS | EXMAP_MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return -errno;
	to = (struct exmap_madvise *)memory;
	to->surface = surface;
	to->surface_pages = surface_pages;
	to->mapped = (uint64_t *)(to + 1);
	to->stats.flags = setup->flags;
	to->stats.buffer_size = setup->buffer_size;
	to->stats.max_interfaces = (uint32_t)setup->max_interfaces;
	for (i = 0; i < EXMAP_MADVISE_LOCKS; i++)
		pthread_mutex_init(&to->lock[i], NULL);
	to->pagemap = -1;
	to->backing = setup->fd == -1 ? -1 : fcntl(setup->fd, EXMAP_F_DUPFD_CLOEXEC, 0);
	if (setup->fd != -1 && to->backing < 0)
		goto fail;
	if (setup->flags & EXMAP_PAGEFAULT_ALLOC) {
		to->pagemap = open("/proc/self/pagemap", O_RDONLY);
		if (to->pagemap < 0)
			goto fail;
		fcntl(to->pagemap, F_SETFD, FD_CLOEXEC);
	}
	/* Pages of 4 KiB, and none in a child. A kernel without huge pages refuses the first. */
	syscall(SYS_madvise, surface, surface_pages * EXMAP_PAGE_SIZE, EXMAP_MADV_NOHUGEPAGE);
	syscall(SYS_madvise, surface, surface_pages * EXMAP_PAGE_SIZE, EXMAP_MADV_DONTFORK);
	*opened = to;
	return 0;
fail:
	err = -errno;
	exmap_madvise_close(to);
	return err;
}

static inline int exmap_madvise_mapped(const struct exmap_madvise *to, uint64_t page)
{
	return __atomic_load_n(&to->mapped[page / 64], __ATOMIC_RELAXED) >> page % 64 & 1;
}

/* Change the bits of pages. The lock of their region is held. */
static inline void exmap_madvise_mark(struct exmap_madvise *to, uint64_t page, uint64_t end, int on)
{
	uint64_t bit, *word;

	for (; page < end; page++) {
		bit = UINT64_C(1) << page % 64;
		word = &to->mapped[page / 64];
		__atomic_store_n(word, on ? *word | bit : *word & ~bit, __ATOMIC_RELAXED);
	}
}

/* The first page behind @page whose bit differs, or @end. */
static inline uint64_t exmap_madvise_run(const struct exmap_madvise *to, uint64_t page,
					 uint64_t end)
{
	const int mapped = exmap_madvise_mapped(to, page);
	const uint64_t same = mapped ? ~UINT64_C(0) : 0;

	for (page++; page < end; page++) {
		if (page % 64 == 0 &&
		    __atomic_load_n(&to->mapped[page / 64], __ATOMIC_RELAXED) == same)
			page += 63;
		else if (exmap_madvise_mapped(to, page) != mapped)
			break;
	}
	return page < end ? page : end;
}

/* Take pages out of the pool. Returns whether it has so many. */
static inline int exmap_madvise_reserve(struct exmap_madvise *to, uint64_t pages)
{
	uint64_t used = __atomic_load_n(&to->stats.alloc_count, __ATOMIC_RELAXED);

	do {
		if (used > to->stats.buffer_size || pages > to->stats.buffer_size - used)
			return 0;
	} while (!__atomic_compare_exchange_n(&to->stats.alloc_count, &used, used + pages, 0,
					      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return 1;
}

static inline void exmap_madvise_unreserve(struct exmap_madvise *to, uint64_t pages)
{
	__atomic_fetch_sub(&to->stats.alloc_count, pages, __ATOMIC_RELAXED);
}

/* Fill in what EXMAP_IOCTL_STATS does. */
static inline void exmap_madvise_stats(const struct exmap_madvise *to,
				       struct exmap_ioctl_stats *stats)
{
	stats->flags = to->stats.flags;
	stats->buffer_size = to->stats.buffer_size;
	stats->alloc_count = __atomic_load_n(&to->stats.alloc_count, __ATOMIC_RELAXED);
	stats->max_interfaces = to->stats.max_interfaces;
}

/*
 * With EXMAP_PAGEFAULT_ALLOC: mark pages that a touch has mapped. They may be more than the pool
 * has. The lock of their region is held.
 */
static inline void exmap_madvise_adopt(struct exmap_madvise *to, uint64_t page, uint64_t end)
{
	const uint64_t present_or_swapped = UINT64_C(3) << 62;
	uint64_t state[EXMAP_MADVISE_REGION], i;
	off_t at = (off_t)(((uintptr_t)to->surface / EXMAP_PAGE_SIZE + page) * sizeof(*state));

	if (to->pagemap < 0 || syscall(SYS_pread64, to->pagemap, state, (end - page) *
				       sizeof(*state), at) != (long)((end - page) * sizeof(*state)))
		return;
	for (i = 0; page + i < end; i++) {
		if (!(state[i] & present_or_swapped) || exmap_madvise_mapped(to, page + i))
			continue;
		exmap_madvise_mark(to, page + i, page + i + 1, 1);
		__atomic_fetch_add(&to->stats.alloc_count, 1, __ATOMIC_RELAXED);
	}
}

/* Unmap pages that are mapped or were touched. The lock of their region is held. */
static inline void exmap_madvise_drop(struct exmap_madvise *to, uint64_t page, uint64_t end)
{
	syscall(SYS_madvise, to->surface + page * EXMAP_PAGE_SIZE, (end - page) * EXMAP_PAGE_SIZE,
		EXMAP_MADV_DONTNEED);
	exmap_madvise_mark(to, page, end, 0);
}

/*
 * Read or write the pages of a run, up to the first that fails. The lock of their region is held.
 * Returns the page behind those that were done, and sets *@err to 0 or the error of that page.
 */
static inline uint64_t exmap_madvise_transfer(struct exmap_madvise *to, unsigned int opcode,
					      uint64_t page, uint64_t end, int *err)
{
	const int write = opcode == EXMAP_OP_WRITE;
	char *memory;
	size_t here;
	long done;

	*err = 0;
	while (page < end && !*err) {
		memory = to->surface + page * EXMAP_PAGE_SIZE;
		done = syscall(write ? SYS_pwrite64 : SYS_pread64, to->backing, memory,
			       (end - page) * EXMAP_PAGE_SIZE, (off_t)(page * EXMAP_PAGE_SIZE));
		here = done < 0 ? 0 : (size_t)done;
		if (done < 0 && errno == EINTR)
			continue;
		if (here >= EXMAP_PAGE_SIZE) {
			page += here / EXMAP_PAGE_SIZE;
		} else if (here && !write) {	/* the end of the file lies in the page */
			memset(memory + here, 0, EXMAP_PAGE_SIZE - here);
			page++;
		} else {
			*err = done < 0 ? -errno : write ? -ENOSPC : -ENODATA;
		}
	}
	return page;
}

/* FREE or WRITE mapped pages. The lock of their region is held. */
static inline void exmap_madvise_there(struct exmap_madvise_call *call, uint64_t page,
				       uint64_t end)
{
	struct exmap_madvise *to = call->to;
	uint64_t done;
	int err;

	if (call->opcode == EXMAP_OP_FREE) {
		exmap_madvise_drop(to, page, end);
		exmap_madvise_unreserve(to, end - page);
		call->done += end - page;
	}
	while (call->opcode == EXMAP_OP_WRITE && page < end) {
		done = exmap_madvise_transfer(to, EXMAP_OP_WRITE, page, end, &err) - page;
		if (err && !call->err)
			call->err = err;
		call->done += done;
		page += done + 1;	/* behind the page that failed */
	}
}

/* ALLOC or READ pages that are not mapped. The lock of their region is held. */
static inline void exmap_madvise_absent(struct exmap_madvise_call *call, uint64_t page,
					uint64_t end)
{
	struct exmap_madvise *to = call->to;
	uint64_t behind;
	int err = 0;

	if (call->opcode != EXMAP_OP_ALLOC && call->opcode != EXMAP_OP_READ)
		return;
	/* Others may have freed some since the pages were counted. */
	if (call->reserved < end - page) {
		if (!exmap_madvise_reserve(to, end - page - call->reserved)) {
			call->err = -ENOMEM;
			return;
		}
		call->reserved = end - page;
	}
	while (page < end) {
		behind = call->opcode == EXMAP_OP_ALLOC ? end :
			exmap_madvise_transfer(to, EXMAP_OP_READ, page, end, &err);
		exmap_madvise_mark(to, page, behind, 1);
		call->done += behind - page;
		call->reserved -= behind - page;
		if (!err)
			break;
		if (!call->err)
			call->err = err;
		/* At the end of the file all others fail, too. */
		page = err == -ENODATA ? end : behind + 1;
		exmap_madvise_drop(to, behind, page);
	}
}

/*
 * Whether the end of the file, at which a READ has stopped, is an error: not if pages before it are
 * there, whether this call has read them or another.
 */
static inline int exmap_madvise_no_data(const struct exmap_madvise_call *call, uint64_t page)
{
	struct stat file;

	if (call->done)
		return 0;
	return !exmap_madvise_mapped(call->to, page) || fstat(call->to->backing, &file) ||
		(S_ISREG(file.st_mode) && page >= ((uint64_t)file.st_size + EXMAP_PAGE_SIZE - 1) /
							EXMAP_PAGE_SIZE);
}

/* Carry out an entry. Sets @call->done and @call->err. */
static inline void exmap_madvise_entry(struct exmap_madvise_call *call, uint64_t page, uint64_t end,
				       int probe)
{
	struct exmap_madvise *to = call->to;
	const int maps = call->opcode == EXMAP_OP_ALLOC || call->opcode == EXMAP_OP_READ;
	const uint64_t first = page;
	uint64_t at, from, stop;
	pthread_mutex_t *lock;

	if (probe && maps && page < end && exmap_madvise_mapped(to, page))
		return;
	for (at = page; maps && at < end; at++)
		call->reserved += !exmap_madvise_mapped(to, at);
	if (call->reserved && !exmap_madvise_reserve(to, call->reserved)) {
		call->err = -ENOMEM;
		return;
	}
	for (; page < end && call->err != -ENOMEM; page = stop) {
		stop = (page | (EXMAP_MADVISE_REGION - 1)) + 1;
		stop = stop < end ? stop : end;
		lock = &to->lock[page / EXMAP_MADVISE_REGION % EXMAP_MADVISE_LOCKS];
		pthread_mutex_lock(lock);
		exmap_madvise_adopt(to, page, stop);
		for (from = page; from < stop && call->err != -ENOMEM; from = at) {
			at = exmap_madvise_run(to, from, stop);
			if (exmap_madvise_mapped(to, from))
				exmap_madvise_there(call, from, at);
			else
				exmap_madvise_absent(call, from, at);
		}
		pthread_mutex_unlock(lock);
	}
	exmap_madvise_unreserve(to, call->reserved);
	if (call->err == -ENODATA && !exmap_madvise_no_data(call, first))
		call->err = 0;
}

/* Do what EXMAP_IOCTL_ACTION does. Returns how many entries failed, or a negative errno. */
static inline int exmap_madvise_action(struct exmap_madvise *to, struct exmap_iov *iov,
				       const struct exmap_action_params *action)
{
	const uint64_t known = EXMAP_ALLOC_PROBE |
		(action->opcode == EXMAP_OP_FREE ? EXMAP_FREE_DEFER : 0);
	struct exmap_madvise_call call;
	uint64_t page, pages;
	int i, failed = 0;

	/* A flush has nothing to do. */
	if (action->opcode == EXMAP_OP_FLUSH)
		return action->flags || action->iov_len ? -EINVAL : 0;
	if (action->opcode > EXMAP_OP_WRITE || action->flags & ~known ||
	    action->iov_len > EXMAP_USER_INTERFACE_PAGES)
		return -EINVAL;
	if (to->backing < 0 &&
	    (action->opcode == EXMAP_OP_READ || action->opcode == EXMAP_OP_WRITE))
		return -EOPNOTSUPP;
	memset(&call, 0, sizeof(call));
	call.to = to;
	call.opcode = action->opcode;
	for (i = 0; i < action->iov_len; i++) {
		page = iov[i].page;
		pages = iov[i].len;
		/* After ENOMEM nothing more is done. */
		if (call.err != -ENOMEM) {
			call.reserved = call.done = 0;
			call.err = 0;
			if (page > to->surface_pages || pages > to->surface_pages - page)
				call.err = -EFAULT;
			else
				exmap_madvise_entry(&call, page, page + pages,
						    (int)action->flags & EXMAP_ALLOC_PROBE);
			if (call.err == -ENOMEM && i == 0 && !call.done)
				return -ENOMEM;
		} else {
			call.done = 0;
		}
		iov[i].value = call.done << 32 | (uint32_t)call.err;
		failed += call.err < 0;
	}
	return failed;
}

#ifdef __cplusplus
}
#endif

#endif /* EXMAP_MADVISE_H */
