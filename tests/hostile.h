/* SPDX-License-Identifier: GPL-2.0 */
/*
 * An exmap for the tests of hostile users. Any user may open the device, so exmap must take
 * every user to be hostile. These tests try each way in, as a user without privileges. After
 * each way the surface holds what it should and nothing else, the pool has lost no page, and
 * the kernel has no complaint.
 */
#ifndef TEST_HOSTILE_H
#define TEST_HOSTILE_H

#include <setjmp.h>

#include "common.h"

enum {
	KEPT = 64,		/* how many pages map_kept() maps and stamps */
	ABSENT = 300,		/* a page that is absent when a way begins */
	BATCH = 384,		/* how many pages the busy thread maps: see busy_page() */
	NEIGHBOURS = 1500,	/* the first of eight that the busy thread reads by pread */
	PAGES = 2048 + 16,	/* of the surface; its last page table is not full */
	POOL = 500,		/* pages */
	FENCE = 1024,		/* unused pages on each side of the surface */
};

/* The address of a page of the surface. */
static inline char *where(struct exmap *ex, uint64_t page)
{
	return ex->surface + page * PAGE;
}

/* What the first word of a page holds. The last word holds its complement. */
static inline uint64_t stamp(uint64_t page)
{
	return (page + 1) * 0x9e3779b97f4a7c15;
}

/*
 * Access to words of pages that may be absent
 */

/* on_fault() resumes here after an access has faulted. */
static __thread sigjmp_buf fault_jump;

static inline void on_fault(int sig)
{
	siglongjmp(fault_jump, 1);
}

/* Read a word. Returns false if the page is absent. */
static inline bool peek(const void *address, uint64_t *value)
{
	if (sigsetjmp(fault_jump, 0))
		return false;
	*value = *(const volatile uint64_t *)address;
	return true;
}

/* Write a word. Returns false if the page is absent. */
static inline bool poke(void *address, uint64_t value)
{
	if (sigsetjmp(fault_jump, 0))
		return false;
	*(volatile uint64_t *)address = value;
	return true;
}

/*
 * The exmap of a user without privileges
 */

/*
 * Become a user without privileges, with no limit on locked memory and core dumps. From here
 * on peek() and poke() survive absent pages.
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

/* A backing file as long as the surface, full of zeroes. */
static inline int sparse_file(void)
{
	int fd = open("/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);

	assert_ok(fd);
	assert_ok(ftruncate(fd, PAGES * PAGE));
	return fd;
}

/* Make the only exmap of the process. FENCE unused pages lie on each side of its surface. */
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

/* Map the first KEPT pages, and stamp each at both ends. */
static inline void map_kept(struct exmap *ex)
{
	ck_assert_int_eq(alloc(ex, 0, 0, KEPT), KEPT);
	for (int page = 0; page < KEPT; page++) {
		*(uint64_t *)where(ex, page) = stamp(page);
		*(uint64_t *)(where(ex, page + 1) - 8) = ~stamp(page);
	}
}

/* Make an exmap on which map_kept() has been called. */
static inline struct exmap *stamped_exmap(int file)
{
	struct exmap *ex = fenced_exmap(PAGES, POOL, file);

	map_kept(ex);
	return ex;
}

/* How many of these pages are resident, by mincore. */
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

/* Nothing was mapped on either side of the surface. */
static inline void assert_fence(struct exmap *ex)
{
	ck_assert_uint_eq(resident_in(ex->surface - FENCE * PAGE, FENCE), 0);
	ck_assert_uint_eq(resident_in(ex->surface + ex->size, FENCE), 0);
}

/* ALLOC or FREE of the first @pages of the surface; they may be too many for one entry. */
static inline long run_long(struct exmap *ex, int interface, int opcode, long pages)
{
	long sum = 0;

	for (long page = 0; page < pages; page += 4095)
		sum += run(ex, interface, opcode, page, pages - page < 4095 ? pages - page : 4095);
	return sum;
}

/*
 * The pool has lost no page and hands out none twice: after all pages are freed, ALLOC gets
 * @pool of them, and not one more.
 */
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
	KEEPS,	/* no visible change */
	LOSES,	/* pages may be absent */
	ENDS,	/* the surface is gone for good */
};

/* The pages of map_kept() hold their stamps. Only after LOSES may pages be absent. */
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

/* The surface is as @fate says, and the pool is whole. */
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

/* Reserve addresses for @size bytes, which nothing can access. */
static inline void *elsewhere(size_t size)
{
	void *address = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ok(address);
	return address;
}

#endif /* TEST_HOSTILE_H */
