/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A thread that makes calls at an interface while its test does something else.
 */
#ifndef TEST_WORKER_H
#define TEST_WORKER_H

#include <pthread.h>
#include <stdatomic.h>

#include "common.h"

struct worker {
	struct exmap *ex;
	int interface;
	int pages;		/* per call */
	int rounds;		/* how many; or until @stop is set */
	atomic_bool *stop;
	pthread_t thread;
	bool surface_gone;	/* the thread ended because calls returned EPROTO */
	char error[128];	/* the first error; empty if none */
};

/* Record an error, unless the worker has recorded one before. */
static inline void worker_error(struct worker *w, const char *what, int ret)
{
	if (!w->error[0])
		snprintf(w->error, sizeof(w->error), "%s: returned %d (%s), first entry %d", what,
			 ret, ret < 0 ? strerror(errno) : "-",
			 w->ex->interface[w->interface]->iov[0].res);
}

/* Allocate and free every other page of the worker's own 4 MiB, until @stop or munmap. */
static inline void *alloc_free_worker(void *arg)
{
	struct worker *w = arg;
	const struct exmap_iov *iov = w->ex->interface[w->interface]->iov;
	uint64_t first = w->interface * 1024;
	int ret = 0;

	while (!atomic_load(w->stop) && !w->error[0]) {
		for (int op = EXMAP_OP_ALLOC; op <= EXMAP_OP_FREE; op++) {
			for (int i = 0; i < w->pages; i++)
				entry(w->ex, w->interface, i, first + i * 2, 1);
			ret = action(w->ex->fd, w->interface, op, w->pages, 0);
			/* munmap may come before the call or in the middle of it. */
			if ((ret < 0 && errno == EPROTO) ||
			    (ret > 0 && iov[w->pages - 1].res == -EPROTO)) {
				w->surface_gone = true;
				return NULL;
			}
			if (ret)
				worker_error(w, op == EXMAP_OP_ALLOC ? "ALLOC" : "FREE", ret);
		}
	}
	return NULL;
}

#endif /* TEST_WORKER_H */
