// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the flush within FREE: how many TLB shootdowns it sends, and that no stale TLB entry
 * reaches a page after it. tests/defer.c tests flushes that are put off.
 */
#include "common.h"
#include "stale.h"

/* Keep a CPU busy in user space: the kernel sends shootdowns only to CPUs that use this mm. */
static void *spinning_worker(void *arg)
{
	atomic_bool *spinning = arg;

	for (;;)
		atomic_store(spinning, true);
	return NULL;
}

/* TLB shootdowns that this CPU has received since boot, among other interrupts of their kind. */
static long shootdowns(int cpu)
{
	FILE *f = fopen("/proc/interrupts", "r");
	char line[4096], *number;
	long count = 0;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f)) {
		if (!strstr(line, ARCH_SHOOTDOWNS))
			continue;
		number = strchr(line, ':') + 1;
		for (int i = 0; i <= cpu; i++)
			count = strtol(number, &number, 10);
	}
	fclose(f);
	return count;
}

/*
 * FREE sends one shootdown for a whole batch to the other CPU, not one per page. On arm64, which
 * broadcasts its invalidations, FREE sends none.
 */
TEST(free_flushes_once_per_call)
{
	struct exmap *ex = exmap_new(64 * MIB, 512, 2);
	static atomic_bool spinning;
	long before, rounds;
	pthread_t thread;

	run_on(1);
	ck_assert(!pthread_create(&thread, NULL, spinning_worker, &spinning));
	run_on(0);
	before = shootdowns(1);
	/* If the other CPU runs another task in a round, the kernel sends it no shootdown. */
	for (rounds = 0; rounds < 50 || shootdowns(1) - before < 50 * ARCH_FLUSH_INTERRUPTS;
	     rounds++) {
		atomic_store(&spinning, false);
		while (!atomic_load(&spinning))
			;
		for (int i = 0; i < 512; i++)
			entry(ex, 0, i, i * 31, 1);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 512, 0), 0);
		for (int i = 0; i < 512; i++)
			entry(ex, 0, i, i * 31, 1);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FREE, 512, 0), 0);
	}
	/* Other parts of the kernel send such interrupts, too, but not for each call. */
	ck_assert_int_le(shootdowns(1) - before, ARCH_FLUSH_INTERRUPTS ? 2 * rounds : rounds / 2);
}

/*
 * Another CPU writes to page 0, while FREE unmaps it and ALLOC maps the same frame as page 1.
 * After FREE has returned, no write to page 0 may reach that frame.
 */
TEST(stale_tlb_entries_reach_nothing)
{
	struct exmap *ex = exmap_new(MIB, 1, 1);
	volatile uint64_t *ours = (void *)(ex->surface + PAGE);
	struct stale_writer w;

	stale_writer_start(&w, ex->surface);
	for (int round = scaled(2000); round; round--) {
		ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
		stale_writer_wait(&w);
		ck_assert_int_eq(release(ex, 0, 0, 1), 1);
		ck_assert_int_eq(alloc(ex, 0, 1, 1), 1);
		*ours = round;
		for (int i = 0; i < 200; i++)
			ck_assert_uint_eq(*ours, round);
		ck_assert_int_eq(release(ex, 0, 1, 1), 1);
	}
	stale_writer_stop(&w);
}

/*
 * The same if FREE unmaps pages far from each other, of which the other CPU writes to one. arm64
 * flushes each of them by its address.
 */
TEST(stale_tlb_entries_of_scattered_pages_reach_nothing)
{
	enum { PAGES = 4 };
	struct exmap *ex = exmap_new(64 * MIB, PAGES, 1);

	for (int which = 0; which < PAGES; which++) {
		struct stale_writer w;

		stale_writer_start(&w, ex->surface + which * 1000 * PAGE);
		for (int round = scaled(100); round; round--) {
			for (int i = 0; i < PAGES; i++)
				ck_assert_int_eq(alloc(ex, 0, i * 1000, 1), 1);
			stale_writer_wait(&w);
			for (int i = 0; i < PAGES; i++)
				entry(ex, 0, i, i * 1000, 1);
			ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FREE, PAGES, 0), 0);
			ck_assert_int_eq(alloc(ex, 0, 100, PAGES), PAGES);
			memset(ex->surface + 100 * PAGE, 'x', PAGES * PAGE);
			stale_writer_wait(&w);
			for (int i = 0; i < PAGES; i++)
				ck_assert_int_eq(ex->surface[(100 + i) * PAGE], 'x');
			ck_assert_int_eq(release(ex, 0, 100, PAGES), PAGES);
		}
		stale_writer_stop(&w);
	}
}

struct thief {
	struct exmap *ex;
	atomic_bool stop;
	atomic_int caught;
};

/*
 * Allocate the only page as soon as it is free, and write to it. If another value appears there, a
 * stale TLB entry of another CPU still reaches the page.
 */
static void *stale_thief(void *arg)
{
	struct thief *t = arg;
	volatile uint64_t *ours = (void *)(t->ex->surface + PAGE);
	uint64_t round = 0;

	while (!atomic_load(&t->stop)) {
		entry(t->ex, 1, 0, 1, 1);
		if (action(t->ex->fd, 1, EXMAP_OP_ALLOC, 1, 0))
			continue;
		*ours = ++round;
		for (int i = 0; i < 2000; i++) {
			if (*ours != round) {
				atomic_fetch_add(&t->caught, 1);
				break;
			}
		}
		entry(t->ex, 1, 0, 1, 1);
		action(t->ex->fd, 1, EXMAP_OP_FREE, 1, 0);
		for (volatile int i = 0; i < 3000; i++)	/* let the test allocate it again */
			;
	}
	return NULL;
}

/* A page is not free before its flush, even while FREE still runs. */
TEST(stale_tlb_entries_reach_no_thief)
{
	struct exmap *ex = exmap_new(MIB, 1, 2);
	struct thief t = { .ex = ex };
	struct stale_writer w;
	pthread_t thief;

	/* The thief must not inherit this thread's CPU, so it starts before this thread has one. */
	ck_assert(!pthread_create(&thief, NULL, stale_thief, &t));
	stale_writer_start(&w, ex->surface);
	for (int round = scaled(3000); round; round--) {
		while (alloc(ex, 0, 0, 1) != 1)
			;
		stale_writer_wait(&w);
		ck_assert_int_eq(release(ex, 0, 0, 1), 1);
	}
	stale_writer_stop(&w);
	atomic_store(&t.stop, true);
	pthread_join(thief, NULL);
	ck_assert_int_eq(atomic_load(&t.caught), 0);
}

/* Threads that free their own pages at the same time, and one that writes to all of these pages. */
struct crowd {
	struct exmap *ex;
	pthread_t threads[4];
	int frees;		/* by each thread */
	atomic_int started;
	atomic_bool stop;
	atomic_ulong rounds;	/* of the writer */
	atomic_int caught;
};

#define CROWD ((int)(sizeof(((struct crowd *)0)->threads) / sizeof(pthread_t)))

/*
 * Write zeros to the page of each thread, again and again. The kernel does it, because a write of
 * ours to a page that is not there would cause a signal, and QEMU empties the TLB at each signal.
 */
static void *crowd_write(void *arg)
{
	struct crowd *c = arg;
	int zero = open("/dev/zero", O_RDONLY);

	ck_assert_int_ge(zero, 0);
	run_on(0);
	while (!atomic_load(&c->stop)) {
		for (int i = 0; i < CROWD; i++)
			if (read(zero, c->ex->surface + i * PAGE, sizeof(uint64_t)) < 0)
				ck_assert_int_eq(errno, EFAULT);
		atomic_fetch_add(&c->rounds, 1);
	}
	close(zero);
	return NULL;
}

/*
 * Free a page that the writer's CPU has in its TLB, and allocate the same frame at another address.
 * No write may reach it there.
 */
static void *crowd_free(void *arg)
{
	struct crowd *c = arg;
	int me = atomic_fetch_add(&c->started, 1);
	volatile uint64_t *ours = (void *)(c->ex->surface + (CROWD + me) * PAGE);
	unsigned long seen;

	run_on(me % sysconf(_SC_NPROCESSORS_ONLN));
	for (int round = c->frees / 2; round; round--) {
		ck_assert_int_eq(alloc(c->ex, me, me, 1), 1);
		seen = atomic_load(&c->rounds);
		while (atomic_load(&c->rounds) < seen + 2)
			sched_yield();
		ck_assert_int_eq(release(c->ex, me, me, 1), 1);
		ck_assert_int_eq(alloc(c->ex, me, CROWD + me, 1), 1);
		*ours = round;
		seen = atomic_load(&c->rounds);
		while (atomic_load(&c->rounds) < seen + 2)
			sched_yield();
		if (*ours != (uint64_t)round)
			atomic_fetch_add(&c->caught, 1);
		ck_assert_int_eq(release(c->ex, me, CROWD + me, 1), 1);
	}
	return NULL;
}

/*
 * Threads that FREE at once share flushes, and each still waits for a flush of its own page. On two
 * processors they rarely find a flush under way, and on arm64 they share none.
 */
TEST(stale_tlb_entries_of_threads_that_share_a_flush)
{
	bool share = ARCH_FLUSH_INTERRUPTS && sysconf(_SC_NPROCESSORS_ONLN) > 2;
	struct crowd c = { .ex = exmap_new(MIB, CROWD, CROWD), .frees = 2 * scaled(40) };
	long flushes = 0, frees = 0;
	pthread_t writer;

	ck_assert(!pthread_create(&writer, NULL, crowd_write, &c));
	do {
		atomic_store(&c.started, 0);
		for (int i = 0; i < CROWD; i++)
			ck_assert(!pthread_create(&c.threads[i], NULL, crowd_free, &c));
		for (int i = 0; i < CROWD; i++)
			pthread_join(c.threads[i], NULL);
		frees += CROWD * c.frees;
		flushes = fdinfo(c.ex->fd, "flushes");
		ck_assert_int_le(flushes, frees);
	} while (share && flushes == frees);
	atomic_store(&c.stop, true);
	pthread_join(writer, NULL);
	ck_assert_int_eq(atomic_load(&c.caught), 0);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of TLB shootdowns.");
}
