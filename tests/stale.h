/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A thread on another CPU that writes to one address all the time and survives SIGSEGV. If that
 * CPU's TLB still has the page of that address after FREE, the writes reach the freed page.
 */
#ifndef TEST_STALE_H
#define TEST_STALE_H

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>

#include "cpu.h"

#define STALE_WORD 0x5741e5741e5741e5

/*
 * Pages of its own that the writer uses all the time, so that QEMU gives its CPU a large TLB. On
 * arm64, a flush of one page empties a TLB with fewer than 256 entries. Then no test could see that
 * exmap left another page out.
 */
#define STALE_OWN_PAGES 256

static volatile char stale_own[STALE_OWN_PAGES * PAGE];

struct stale_writer {
	volatile uint64_t *where;
	pthread_t thread;
	atomic_bool stop;
	atomic_ulong rounds;
};

static __thread sigjmp_buf stale_jump;

static void stale_segv(int sig)
{
	siglongjmp(stale_jump, 1);
}

static void *stale_write(void *arg)
{
	struct stale_writer *w = arg;

	run_on(1);
	while (!atomic_load(&w->stop)) {
		if (!sigsetjmp(stale_jump, 0))
			for (;;) {
				atomic_fetch_add(&w->rounds, 1);
				for (int i = 0; i < 100; i++)
					*w->where = STALE_WORD;
				for (int i = 0; i < STALE_OWN_PAGES; i++)
					stale_own[i * PAGE] = 1;
				if (atomic_load(&w->stop))
					break;
			}
	}
	return NULL;
}

/* Start the writer on CPU 1, and move the calling thread to CPU 0. */
static void stale_writer_start(struct stale_writer *w, void *where)
{
	struct sigaction sa = { .sa_handler = stale_segv, .sa_flags = SA_NODEFER };

	*w = (struct stale_writer){ .where = where };
	ck_assert_msg(sysconf(_SC_NPROCESSORS_ONLN) > 1, "this test needs two CPUs");
	run_on(0);
	assert_ok(sigaction(SIGSEGV, &sa, NULL));
	ck_assert(!pthread_create(&w->thread, NULL, stale_write, w));
}

/* Wait until the writer has written to the page, so that CPU 1 has the page in its TLB. */
static void stale_writer_wait(struct stale_writer *w)
{
	unsigned long before;

	/*
	 * The caller's own write to the page must be visible before the first look at rounds.
	 * Pairs with the atomic_fetch_add() in stale_write(), which is a full barrier.
	 */
	atomic_thread_fence(memory_order_seq_cst);
	before = atomic_load(&w->rounds);
	while (atomic_load(&w->rounds) < before + 2)
		;
}

static void stale_writer_stop(struct stale_writer *w)
{
	atomic_store(&w->stop, true);
	pthread_join(w->thread, NULL);
}

#endif /* TEST_STALE_H */
