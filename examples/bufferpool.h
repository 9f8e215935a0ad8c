/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * A small buffer manager in the style of vmcache (Leis et al., "Virtual-Memory Assisted Buffer
 * Management", SIGMOD 2023). Page n of the file has its place in memory, even while it is not
 * there. The only other thing that a page needs is one word, its state: no hash table, no pointers
 * to frames. The program decides which pages are in memory, by exmap, or by pread and madvise.
 *
 * A program sets pool, pages, size and file, calls open_memory(), and starts threads. A thread
 * calls attach(), fixes and reads pages, and calls detach().
 */
#ifndef BUFFERPOOL_H
#define BUFFERPOOL_H

#include <err.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "exmap_user.h"

#define BATCH 64		/* pages that are evicted or prefetched at a time */

static bool with_exmap;
static unsigned long pool, pages;	/* the most pages in memory, and how many there are */
static size_t size = EXMAP_PAGE_SIZE;	/* of a page, in bytes; exmap sees it as a run of pages */
static int file;
static char *memory;			/* where page 0 has its place */
static _Atomic uint64_t *states;	/* a state for each page */
static bool *dirty;			/* guarded by the page's lock */
static _Atomic uint64_t *clock_face;	/* for each page in memory: its number + 1; others are 0 */
static atomic_ulong used;		/* how many pages are in memory, or soon will be */
static atomic_ulong hand;		/* the clock's hand: the place that it visits next */
static atomic_ulong vacant;		/* where to look for a vacant place on the clock's face */
static struct exmap exmap;
static _Thread_local struct exmap_interface interface;

/*
 * A state is a lock in the upper byte and a version in the other 56 bits. Each exclusive lock
 * changes the version. An EVICTED page is not in memory. A MARKED page is not locked. The clock
 * evicts it when its hand visits the page again, unless the page is used before.
 */
enum { UNLOCKED, SHARED, SHARED_MAX = 252, LOCKED, MARKED, EVICTED };
#define LOCK(state) ((state) >> 56)
#define VERSION(state) ((state) << 8 >> 8)
#define STATE(version, lock) (VERSION(version) | (uint64_t)(lock) << 56)

static void must(int error)
{
	if (error)
		errx(error == -ENOENT ? 77 : 1, "%s", exmap_strerror(error));	/* 77: no exmap */
}

/* For as many threads as there are interfaces. */
static void open_memory(unsigned int interfaces)
{
	const uint64_t run = size / EXMAP_PAGE_SIZE;

	states = calloc(pages, sizeof(*states));
	dirty = calloc(pages, sizeof(*dirty));
	clock_face = calloc(pool, sizeof(*clock_face));
	if (!states || !dirty || !clock_face)
		err(1, "%lu pages", pages);
	for (uint64_t nr = 0; nr < pages; nr++)
		states[nr] = STATE(0, EVICTED);
	if (with_exmap) {
		must(exmap_open(&exmap, pages * run, pool * run, interfaces, file, 0));
		memory = exmap_address(&exmap, 0);
		return;
	}
	memory = mmap(NULL, pages * size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		err(1, "%lu pages of address space", pages);
	/* 4 KiB pages, as with exmap. A kernel without huge pages refuses this: no harm. */
	madvise(memory, pages * size, MADV_NOHUGEPAGE);
}

/* Words are atomic, because read_page() reads them while others write. x86-64: a plain load. */
static _Atomic uint64_t *page_at(uint64_t nr)
{
	return (_Atomic uint64_t *)(memory + nr * size);
}

static bool without_exmap(unsigned int opcode, uint64_t nr)
{
	switch (opcode) {
	case EXMAP_OP_READ:
		return pread(file, page_at(nr), size, nr * size) == (ssize_t)size;
	case EXMAP_OP_WRITE:
		return pwrite(file, page_at(nr), size, nr * size) == (ssize_t)size;
	default:
		return madvise(page_at(nr), size, MADV_DONTNEED) == 0;
	}
}

/* Returns whether all pages were done. */
static bool run_batch(unsigned int opcode, const uint64_t *nr, size_t count)
{
	const int run = size / EXMAP_PAGE_SIZE;
	bool done;

	exmap_batch_clear(&interface);
	for (size_t i = 0; i < count; i++)
		exmap_batch_add(&interface, nr[i] * run, run);
	done = exmap_batch_run(&interface, opcode, 0) == 0;
	for (size_t i = 0; done && i < count; i++)
		done = exmap_batch_answer(&interface, i) == run;
	return done;
}

/*
 * READ, WRITE or FREE pages, at most a batch. With exmap this is one call: all requests of READ and
 * WRITE are under way at once, and FREE has one TLB shootdown.
 */
static void transfer(unsigned int opcode, const uint64_t *nr, size_t count)
{
	bool done = !count || !with_exmap || run_batch(opcode, nr, count);

	for (size_t i = 0; done && !with_exmap && i < count; i++)
		done = without_exmap(opcode, nr[i]);
	if (!done)
		errx(1, "opcode %u fails for some of %zu pages, the first %lu", opcode, count, *nr);
}

/* Change exactly this state to another lock, with the same version. */
static bool try_lock(uint64_t nr, uint64_t state, unsigned int lock)
{
	return atomic_compare_exchange_strong(&states[nr], &state, STATE(state, lock));
}

static void unfix_shared(uint64_t nr)
{
	states[nr] -= STATE(0, SHARED);
}

/* Unlock the page, with a new version: it is UNLOCKED or EVICTED after this. */
static uint64_t unfix_exclusive(uint64_t nr, unsigned int lock)
{
	return states[nr] = STATE(states[nr] + 1, lock);
}

/*
 * Find up to a batch of pages that no thread has used since the clock's last visit, and lock them
 * shared. Two turns of the clock find some, if there are any.
 */
static size_t find_victims(uint64_t *victim, uint64_t *place)
{
	uint64_t state, left, nr, at;
	size_t n = 0;

	for (left = 2 * pool; left && n < BATCH; left--) {
		at = hand++ % pool;
		nr = clock_face[at] - 1;
		if (nr == UINT64_MAX)
			continue;
		state = states[nr];
		if (LOCK(state) == UNLOCKED)
			try_lock(nr, state, MARKED);
		if (LOCK(state) != MARKED || !try_lock(nr, state, SHARED))
			continue;
		place[n] = at;
		victim[n] = nr;
		if (clock_face[at] == nr + 1)
			n++;
		else	/* it was evicted meanwhile, and has another place now */
			unfix_shared(nr);
	}
	return n;
}

/*
 * Evict up to a batch of pages. A shared lock is held while pages are written, so that other
 * threads can read them. This never waits for a lock, because the caller holds one already.
 */
static void evict(void)
{
	uint64_t victim[BATCH], place[BATCH], changed[BATCH], state;
	size_t i, n = find_victims(victim, place), writes = 0, gone = 0;

	for (i = 0; i < n; i++) {
		if (dirty[victim[i]])
			changed[writes++] = victim[i];
		dirty[victim[i]] = false;
	}
	transfer(EXMAP_OP_WRITE, changed, writes);
	/* Pages that other threads read by now stay. */
	for (i = 0; i < n; i++) {
		state = states[victim[i]];
		if (LOCK(state) == SHARED && try_lock(victim[i], state, LOCKED)) {
			clock_face[place[i]] = 0;
			victim[gone++] = victim[i];
		} else {
			unfix_shared(victim[i]);
		}
	}
	transfer(EXMAP_OP_FREE, victim, gone);
	for (i = 0; i < gone; i++)
		unfix_exclusive(victim[i], EVICTED);
	used -= gone;
}

/* Reserve room in memory for a page. */
static bool reserve(void)
{
	if (++used <= pool)
		return true;
	used--;
	return false;
}

/* Read pages that the caller has locked exclusively, and for which it has reserved room. */
static void bring(const uint64_t *nr, size_t count)
{
	uint64_t none;

	transfer(EXMAP_OP_READ, nr, count);
	for (size_t i = 0; i < count; i++) {
		/* A place is vacant, because room was reserved; mostly it is behind the hand. */
		do
			none = 0;
		while (!atomic_compare_exchange_weak(&clock_face[vacant++ % pool], &none,
						     nr[i] + 1));
		unfix_exclusive(nr[i], UNLOCKED);
	}
}

/* Read those pages of a run that are not in memory, as far as there is room. Waits for no lock. */
static void prefetch(uint64_t first, uint64_t count)
{
	uint64_t wanted[BATCH], nr, state;
	size_t n = 0;

	for (nr = first; nr < first + count && nr < pages && n < BATCH; nr++) {
		state = states[nr];
		if (LOCK(state) != EVICTED || !try_lock(nr, state, LOCKED))
			continue;
		if (!reserve()) {
			evict();
			if (!reserve()) {
				unfix_exclusive(nr, EVICTED);
				break;
			}
		}
		wanted[n++] = nr;
	}
	bring(wanted, n);
}

/* Bring a page into memory. Returns a state in which no thread held an exclusive lock. */
static uint64_t get(uint64_t nr)
{
	uint64_t state;

	for (;; sched_yield()) {
		state = states[nr];
		if (LOCK(state) != EVICTED && LOCK(state) != LOCKED)
			return state;
		if (LOCK(state) == LOCKED || !try_lock(nr, state, LOCKED))
			continue;
		while (!reserve())
			evict();
		bring(&nr, 1);
	}
}

static _Atomic uint64_t *fix_shared(uint64_t nr)
{
	uint64_t state, lock;

	for (;; sched_yield()) {
		state = get(nr);
		lock = LOCK(state) == MARKED ? SHARED : LOCK(state) + 1;
		if (lock <= SHARED_MAX && try_lock(nr, state, lock))
			return page_at(nr);
	}
}

static _Atomic uint64_t *fix_exclusive(uint64_t nr)
{
	uint64_t state;

	for (;; sched_yield()) {
		state = get(nr);
		if ((LOCK(state) == UNLOCKED || LOCK(state) == MARKED) &&
		    try_lock(nr, state, LOCKED)) {
			dirty[nr] = true;
			return page_at(nr);
		}
	}
}

/*
 * Where read_page() goes on if exmap frees the page under it. A load of look() raises SIGSEGV.
 * look() locks and changes nothing, so it can simply be left. SA_NODEFER is set, so SIGSEGV is not
 * blocked after siglongjmp(), which restores no signal mask.
 */
static _Thread_local sigjmp_buf *_Atomic restart;

static void on_segv(int number, siginfo_t *info, void *context)
{
	sigjmp_buf *to = atomic_exchange(&restart, NULL);

	if (to && (uintptr_t)info->si_addr - (uintptr_t)memory < pages * size)
		siglongjmp(*to, 1);
	signal(SIGSEGV, SIG_DFL);	/* a bug: the load repeats, and ends the program */
}

/*
 * Read a page without a lock. Repeat this until no thread wrote to the page or evicted it meanwhile
 * (reads and marks are harmless); then the result of look() is right. Before that, look() may see
 * half of an update. Of an evicted page it may see zeros (madvise), or the old contents until
 * SIGSEGV (exmap: FREE returns, and the page is used elsewhere, only after every CPU has dropped
 * the address from its TLB). So look() must trust nothing, and must not lock or change anything.
 */
static bool read_page(uint64_t nr, bool (*look)(_Atomic uint64_t *page, uint64_t nr))
{
	uint64_t before, after;
	sigjmp_buf here;
	bool seen;

	for (;;) {
		before = get(nr);
		if (LOCK(before) == MARKED)
			try_lock(nr, before, UNLOCKED);
		if (sigsetjmp(here, 0))
			continue;
		restart = &here;
		seen = look(page_at(nr), nr);
		restart = NULL;
		after = states[nr];
		if (VERSION(after) == VERSION(before) && LOCK(after) != LOCKED)
			return seen;
	}
}

static void attach(void)
{
	must(with_exmap ? exmap_attach(&exmap, &interface) : 0);
}

static void detach(void)
{
	if (with_exmap)
		exmap_detach(&interface);
}

/* Evict all pages, and so write the dirty ones. The only thread that is attached does this. */
static void close_memory(void)
{
	while (used)
		evict();
	must(fdatasync(file) ? -errno : 0);
	detach();
	if (with_exmap)
		exmap_close(&exmap);
	else
		munmap(memory, pages * size);
	free(clock_face);
	free(dirty);
	free(states);
}

#endif /* BUFFERPOOL_H */
