// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * A small buffer manager in the style of vmcache (Leis et al., "Virtual-Memory Assisted Buffer
 * Management", SIGMOD 2023). Page n of the file has its place at memory + n, even while it is not
 * in memory. The only other thing that a page needs is one word, its state: no hash table, no
 * pointers to frames. The program decides which pages are in memory, by exmap, or by pread and
 * madvise.
 * To compile: gcc -O2 -D_GNU_SOURCE -pthread bufferpool.c -o bufferpool
 */
#include <argp.h>
#include <err.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "exmap_user.h"

#define BATCH 64		/* pages that are evicted at a time */
#define PAGE EXMAP_PAGE_SIZE
#define WORDS (PAGE / sizeof(uint64_t))

enum { CHECKSUM, ID, UPDATES, DATA };	/* the words of a page; all from DATA on are data */
/* Words are atomic, because read_page() reads them while others write. x86-64: a plain load. */
struct page {
	_Alignas(PAGE) _Atomic uint64_t word[WORDS];
};

static unsigned long threads = 2, pool = 64, pages = 512, ops = 500000, percent = 20;
static const char *path, *only;		/* FILE and --backend */
static bool with_exmap, overwrite;
static int file;
static struct page *memory;		/* the addresses of all pages */
static _Atomic uint64_t *states;	/* a state for each page */
static bool *dirty;			/* guarded by the page's lock */
static atomic_ulong used;		/* how many pages are in memory, or soon will be */
static atomic_ulong hand;		/* the clock's hand: the page that it visits next */
static struct exmap exmap;
static _Thread_local struct exmap_interface interface;

static void must(int error)
{
	if (error)
		errx(error == -ENOENT ? 77 : 1, "%s", exmap_strerror(error));	/* 77: no exmap */
}

static void open_memory(void)
{
	if (with_exmap) {
		must(exmap_open(&exmap, pages, pool, threads + 1, file, 0));
		memory = exmap_address(&exmap, 0);
		return;
	}
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		err(1, "%lu pages of address space", pages);
	/* 4 KiB pages, as with exmap. A kernel without huge pages refuses this: no harm. */
	madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
}

static bool without_exmap(unsigned int opcode, uint64_t nr)
{
	return opcode == EXMAP_OP_READ ? pread(file, memory + nr, PAGE, nr * PAGE) == PAGE :
	       opcode == EXMAP_OP_WRITE ? pwrite(file, memory + nr, PAGE, nr * PAGE) == PAGE :
	       madvise(memory + nr, PAGE, MADV_DONTNEED) == 0;
}

/* READ, WRITE or FREE pages. With exmap this is one call, and FREE has one TLB shootdown. */
static void transfer(unsigned int opcode, const uint64_t *nr, size_t count)
{
	long done = with_exmap ? exmap_list(&interface, opcode, nr, count) : 0;

	for (size_t i = 0; !with_exmap && i < count; i++)
		done += without_exmap(opcode, nr[i]);
	if (done != (long)count)
		errx(1, "opcode %u, %zu pages, the first %lu: %s", opcode, count, *nr,
		     done >= 0 && with_exmap ? "some were unexpectedly mapped or missing" :
		     strerror(done < 0 ? -done : errno));
}

/*
 * A state is a lock in the upper byte and a version in the other 56 bits. Each exclusive lock
 * changes the version. An EVICTED page is not in memory. A MARKED page is not locked. The clock
 * evicts it when its hand visits the page again, unless the page is used before.
 */
enum { UNLOCKED, SHARED, SHARED_MAX = 252, LOCKED, MARKED, EVICTED };
#define LOCK(state) ((state) >> 56)
#define VERSION(state) ((state) << 8 >> 8)
#define STATE(version, lock) (VERSION(version) | (uint64_t)(lock) << 56)

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
 * Evict up to a batch of pages that no thread has used since the clock's last visit. Two turns of
 * the clock find some, if there are any. A shared lock is held while pages are written, so that
 * other threads can read them. This never waits for a lock, because the caller holds one already.
 */
static void evict(void)
{
	uint64_t victim[BATCH], changed[BATCH], state, left, nr;
	size_t i, n = 0, writes = 0, gone = 0;

	for (left = 2 * pages; left && n < BATCH; left--) {
		nr = hand++ % pages;
		state = states[nr];
		if (LOCK(state) == UNLOCKED)
			try_lock(nr, state, MARKED);
		else if (LOCK(state) == MARKED && try_lock(nr, state, SHARED))
			victim[n++] = nr;
	}
	for (i = 0; i < n; i++) {
		if (dirty[victim[i]])
			changed[writes++] = victim[i];
		dirty[victim[i]] = false;
	}
	transfer(EXMAP_OP_WRITE, changed, writes);
	/* Pages that other threads read by now stay. */
	for (i = 0; i < n; i++) {
		state = states[victim[i]];
		if (LOCK(state) == SHARED && try_lock(victim[i], state, LOCKED))
			victim[gone++] = victim[i];
		else
			unfix_shared(victim[i]);
	}
	transfer(EXMAP_OP_FREE, victim, gone);
	for (i = 0; i < gone; i++)
		unfix_exclusive(victim[i], EVICTED);
	used -= gone;
}

/* Bring a page into memory. Returns a state in which no thread held an exclusive lock. */
static uint64_t get(uint64_t nr)
{
	uint64_t state;

	for (;; sched_yield()) {
		state = states[nr];
		if (LOCK(state) == EVICTED && try_lock(nr, state, LOCKED))
			break;
		if (LOCK(state) != EVICTED && LOCK(state) != LOCKED)
			return state;
	}
	while (++used > pool) {
		used--;
		evict();
	}
	transfer(EXMAP_OP_READ, &nr, 1);
	return unfix_exclusive(nr, UNLOCKED);
}

static struct page *fix_shared(uint64_t nr)
{
	uint64_t state, lock;

	for (;; sched_yield()) {
		state = get(nr);
		lock = LOCK(state) == MARKED ? SHARED : LOCK(state) + 1;
		if (lock <= SHARED_MAX && try_lock(nr, state, lock))
			return memory + nr;
	}
}

static struct page *fix_exclusive(uint64_t nr)
{
	uint64_t state;

	for (;; sched_yield()) {
		state = get(nr);
		if ((LOCK(state) == UNLOCKED || LOCK(state) == MARKED) && try_lock(nr, state, LOCKED)) {
			dirty[nr] = true;
			return memory + nr;
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

	if (to && (uintptr_t)info->si_addr - (uintptr_t)memory < pages * PAGE)
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
static bool read_page(uint64_t nr, bool (*look)(struct page *page, uint64_t nr))
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
		seen = look(memory + nr, nr);
		restart = NULL;
		after = states[nr];
		if (VERSION(after) == VERSION(before) && LOCK(after) != LOCKED)
			return seen;
	}
}

/* Evict all pages, and so write the dirty ones. No other thread is at work. */
static void close_memory(void)
{
	must(with_exmap ? exmap_attach(&exmap, &interface) : 0);
	while (used)
		evict();
	must(fdatasync(file) ? -errno : 0);
	if (with_exmap) {
		exmap_detach(&interface);
		exmap_close(&exmap);
	} else {
		munmap(memory, pages * PAGE);
	}
}

/* The workload. The checksum changes if any word changes, and is never 0. */
static uint64_t checksum(struct page *page)
{
	uint64_t sum = 1;

	for (size_t i = ID; i < WORDS; i++)
		sum = (sum ^ page->word[i]) * 0x100000001b3;
	return sum;
}

static bool is_good(struct page *page, uint64_t nr)
{
	uint64_t sum = page->word[CHECKSUM];

	if (nr % 8 == 0)	/* let other threads interfere, if they can */
		sched_yield();
	return page->word[ID] == nr && sum == checksum(page);
}

/* A thread: carries out its operations. Returns how many of them were updates. */
static void *work(void *seed)
{
	uint64_t random = (uintptr_t)seed, updates = 0, nr, i;
	struct page *page;
	bool good;

	must(with_exmap ? exmap_attach(&exmap, &interface) : 0);
	for (i = 0; i < ops; i++) {
		random = random * 6364136223846793005 + 1442695040888963407;
		nr = (random >> 32) % (i % 4 ? pages : 8);	/* 8 pages are hot */
		if ((random >> 24) % 100 < percent) {
			page = fix_exclusive(nr);
			good = is_good(page, nr);
			page->word[DATA + (random >> 8) % (WORDS - DATA)] = random;
			page->word[UPDATES]++;
			page->word[CHECKSUM] = checksum(page);
			unfix_exclusive(nr, UNLOCKED);
			updates++;
		} else if (i % 15) {
			good = read_page(nr, is_good);
		} else {
			page = fix_shared(nr);	/* its neighbor is read meanwhile */
			good = read_page(nr ^ 1, is_good) && is_good(page, nr);
			unfix_shared(nr);
		}
		if (!good)
			errx(1, "page %lu or its neighbor is damaged in memory", nr);
	}
	if (with_exmap)
		exmap_detach(&interface);
	return (void *)updates;
}

/* Fill the file, let threads work on it, and check that every update is in the file. */
static void run(const char *backend)
{
	pthread_t thread[EXMAP_MAX_INTERFACES];
	struct timespec start, end;
	static struct page page;
	long missing = 0;
	void *updates;
	uint64_t nr;

	with_exmap = !strcmp(backend, "exmap");
	open_memory();
	for (nr = 0; nr < pages; nr++) {
		page = (struct page){ .word = { [ID] = nr } };
		page.word[CHECKSUM] = checksum(&page);
		if (pwrite(file, &page, PAGE, nr * PAGE) != PAGE)
			err(1, "%s, page %lu of %lu", path, nr, pages);
		states[nr] = STATE(0, EVICTED);
	}
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (nr = 0; nr < threads; nr++)
		if (pthread_create(&thread[nr], NULL, work, (void *)nr))
			errx(1, "thread %lu cannot be created: try fewer --threads", nr);
	for (nr = 0; nr < threads; nr++) {
		pthread_join(thread[nr], &updates);
		missing += (intptr_t)updates;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	close_memory();
	for (nr = 0; nr < pages; nr++) {
		if (pread(file, &page, PAGE, nr * PAGE) != PAGE || !is_good(&page, nr))
			errx(1, "page %lu is damaged in %s", nr, path);
		missing -= page.word[UPDATES];
	}
	if (missing)
		errx(1, "%ld updates are missing in %s", missing, path);
	printf("%s,%lu,%.0f\n", backend, threads, threads * ops /
	       (end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9));
}

static const struct argp_option options[] = {
	{ "backend", 'b', "exmap|madvise", .doc = "run only this one (default: both in turn)" },
	{ "threads", 1, "N", .doc = "number of threads (default 2)" },
	{ "pool", 2, "MIB", .doc = "size of the pool (default 64)" },
	{ "data", 3, "MIB", .doc = "size of FILE, or of the used part of a device (default 512)" },
	{ "ops", 4, "N", .doc = "operations by each thread (default 500000)" },
	{ "updates", 5, "PERCENT", .doc = "share of the operations that are updates (default 20)" },
	{ "overwrite", 6, .doc = "FILE exists or is a device; its contents are lost" },
	{ }
};

static error_t option(int key, char *text, struct argp_state *state)
{
	unsigned long *const number[] = { &threads, &pool, &pages, &ops, &percent };
	char rest;

	if (key == ARGP_KEY_ARG && !path)
		path = text;
	else if (key == 'b')
		only = text;
	else if (key == 6)
		overwrite = true;
	else if (key < 1 || key > 5)
		return ARGP_ERR_UNKNOWN;
	else if (strchr(text, '-') || sscanf(text, "%9lu%c", number[key - 1], &rest) != 1)
		errx(1, "'%s' is not a number of up to 9 digits: see --help", text);
	return 0;
}

int main(int argc, char **argv)
{
	const struct sigaction segv = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_NODEFER };
	const struct argp argp = { options, option, "FILE", .doc = "A small buffer manager at work." };

	argp_err_exit_status = 1;
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	if (!path || !threads || threads >= EXMAP_MAX_INTERFACES || !pool || !pages || percent > 100 ||
	    (only && strcmp(only, "exmap") && strcmp(only, "madvise")))
		errx(1, "FILE is missing, or an option is out of range: see --help");
	pool *= (1 << 20) / PAGE;
	pages *= (1 << 20) / PAGE;
	must((!only || *only == 'e') && access("/dev/exmap", F_OK) ? -errno : 0);
	file = open(path, O_RDWR | O_EXCL | (overwrite ? 0 : O_CREAT), 0600);
	states = calloc(pages, sizeof(*states));
	dirty = calloc(pages, sizeof(*dirty));
	if (file < 0 || !states || !dirty || sigaction(SIGSEGV, &segv, NULL))
		err(1, "%s with %lu pages, %s --overwrite", path, pages, overwrite ? "with" : "without");
	fcntl(file, F_SETFL, O_DIRECT);		/* some file systems refuse: no harm */
	puts("backend,threads,operations_per_second");
	if (!only || *only == 'e')
		run("exmap");
	if (!only || *only == 'm')
		run("madvise");
	return 0;
}
