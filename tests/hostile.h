/* SPDX-License-Identifier: GPL-2.0 */
/*
 * An exmap of a user without privileges: made, looked at, and counted at the end.
 */
#ifndef TEST_HOSTILE_H
#define TEST_HOSTILE_H

#include <setjmp.h>

#include "common.h"

enum {
	KEPT = 64,		/* the first pages: mapped and stamped before each way */
	ABSENT = 300,		/* a page that nobody maps */
	BATCH = 384,		/* what the thread at work maps, here and there from 512 on */
	NEIGHBOURS = 1500,	/* and eight in a row */
	PAGES = 2048 + 16,	/* the surface's: not in whole page tables */
	POOL = 500,
	FENCE = 1024,		/* so many pages around the surface are nobody's */
};

static inline char *where(struct exmap *ex, uint64_t page)
{
	return ex->surface + page * PAGE;
}

static inline uint64_t stamp(uint64_t page)
{
	return (page + 1) * 0x9e3779b97f4a7c15;
}

/*
 * Words of pages that may be gone
 */
static __thread sigjmp_buf fault_jump;

static inline void on_fault(int sig)
{
	siglongjmp(fault_jump, 1);
}

/* False where the page is not there. */
static inline bool peek(const void *address, uint64_t *value)
{
	if (sigsetjmp(fault_jump, 0))
		return false;
	*value = *(const volatile uint64_t *)address;
	return true;
}

static inline bool poke(void *address, uint64_t value)
{
	if (sigsetjmp(fault_jump, 0))
		return false;
	*(volatile uint64_t *)address = value;
	return true;
}

/*
 * An exmap for a user without privileges
 */
static inline void become_hostile(void)
{
	struct sigaction sa = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	set_memlock(RLIM_INFINITY);
	assert_ok(setrlimit(RLIMIT_CORE, &unlimited));
	drop_privileges();
	assert_ok(sigaction(SIGSEGV, &sa, NULL));
	assert_ok(sigaction(SIGBUS, &sa, NULL));
}

/* As long as the surface, and nothing but zeroes. */
static inline int sparse_file(void)
{
	int fd = open("/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);

	assert_ok(fd);
	assert_ok(ftruncate(fd, PAGES * PAGE));
	return fd;
}

/* The process's only one. Its surface has unused addresses on both sides. */
static inline struct exmap *fenced_exmap(size_t pages, size_t pool, int file)
{
	static struct exmap ex;
	char *fence = mmap(NULL, (pages + 2 * FENCE) * PAGE, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	assert_ok(fence);
	ex.fd = exmap_open();
	ex.size = pages * PAGE;
	ex.surface = mmap(fence + FENCE * PAGE, ex.size, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_FIXED, ex.fd, EXMAP_OFF_EXMAP);
	assert_ok(ex.surface);
	assert_ok(exmap_setup_file(ex.fd, 3, pool, 0, file));
	for (int i = 0; i < 3; i++) {
		ex.interface[i] = map_interface(ex.fd, i);
		assert_ok(ex.interface[i]);
	}
	return &ex;
}

/* Map the first pages and stamp them at both ends. */
static inline void map_kept(struct exmap *ex)
{
	ck_assert_int_eq(alloc(ex, 0, 0, KEPT), KEPT);
	for (int page = 0; page < KEPT; page++) {
		*(uint64_t *)where(ex, page) = stamp(page);
		*(uint64_t *)(where(ex, page + 1) - 8) = ~stamp(page);
	}
}

/* With the first pages mapped and stamped. */
static inline struct exmap *stamped_exmap(int file)
{
	struct exmap *ex = fenced_exmap(PAGES, POOL, file);

	map_kept(ex);
	return ex;
}

static inline size_t resident_in(const char *start, size_t pages)
{
	unsigned char vec[8192];
	size_t sum = 0;

	ck_assert_uint_le(pages, sizeof(vec));
	assert_ok(mincore((void *)start, pages * PAGE, vec));
	for (size_t i = 0; i < pages; i++)
		sum += vec[i] & 1;
	return sum;
}

/* Nothing was mapped beside the surface. */
static inline void assert_fence(struct exmap *ex)
{
	ck_assert_uint_eq(resident_in(ex->surface - FENCE * PAGE, FENCE), 0);
	ck_assert_uint_eq(resident_in(ex->surface + ex->size, FENCE), 0);
}

/* ALLOC or FREE of the first pages of the surface, more than fit into an entry. */
static inline long run_long(struct exmap *ex, int interface, int opcode, long pages)
{
	long sum = 0;

	for (long page = 0; page < pages; page += 4095)
		sum += run(ex, interface, opcode, page, pages - page < 4095 ? pages - page : 4095);
	return sum;
}

/* No page is lost and none is there twice: nobody has one, and all can be had. */
static inline void assert_whole_pool(struct exmap *ex, long pool)
{
	long pages = ex->size / PAGE, mapped = resident_in(ex->surface, pages);

	assert_mapped(ex, mapped);
	ck_assert_int_eq(run_long(ex, 0, EXMAP_OP_FREE, pages), mapped);
	assert_mapped(ex, 0);
	ck_assert_int_eq(run_long(ex, 0, EXMAP_OP_ALLOC, pool), pool);
	if (pool < pages)
		ck_assert_int_eq(alloc(ex, 1, pool, 1), -ENOMEM);
	ck_assert_int_eq(run_long(ex, 2, EXMAP_OP_FREE, pool), pool);
	assert_mapped(ex, 0);
	assert_fence(ex);
}

/* What a way does to the surface. */
enum fate {
	KEEPS,	/* nothing that one could see */
	LOSES,	/* pages may be gone */
	ENDS,	/* all of it is gone, for good */
};

static inline void assert_kept(struct exmap *ex, enum fate fate)
{
	uint64_t first, last;

	for (int page = 0; page < KEPT; page++) {
		if (peek(where(ex, page), &first) && peek(where(ex, page + 1) - 8, &last))
			ck_assert_msg(first == stamp(page) && last == ~stamp(page),
				      "page %d holds something else", page);
		else
			ck_assert_msg(fate == LOSES, "page %d is gone", page);
	}
}

static inline void assert_fate(struct exmap *ex, enum fate fate)
{
	if (fate == ENDS) {
		assert_mapped(ex, 0);
		ck_assert_int_eq(alloc(ex, 0, 0, 1), -EPROTO);
		ck_assert_int_eq(release(ex, 0, 0, 1), -EPROTO);
		return;
	}
	assert_kept(ex, fate);
	assert_whole_pool(ex, POOL);
}

static inline void *elsewhere(size_t size)
{
	void *address = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ok(address);
	return address;
}

#endif /* TEST_HOSTILE_H */
