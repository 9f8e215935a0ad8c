/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A busy thread: it allocates, reads and frees at full speed, and checks every answer.
 */
#ifndef TEST_BUSY_H
#define TEST_BUSY_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "hostile.h"

struct busy {
	struct exmap *ex;
	int fd;			/* of the exmap */
	bool may_close;		/* the test closes @fd, so EBADF is a valid answer */
	atomic_bool stop;	/* the thread must end */
	atomic_bool gone;	/* an answer has said that the surface or @fd is gone */
	atomic_int rounds;	/* how many are done; INT32_MAX after the last */
	bool came[BATCH];	/* which pages the last call has mapped */
	char error[128];	/* the first wrong answer */
	pthread_t thread;
};

/* Note a wrong answer, unless there was one before. */
static inline void busy_error(struct busy *b, const char *what, long a, long c)
{
	if (!b->error[0])
		snprintf(b->error, sizeof(b->error), "%s: %ld, %ld (errno %d)", what, a, c, errno);
}

/* The last eight pages of the surface, then every second page from 512 on. */
static inline uint64_t busy_page(int i)
{
	return i < 8 ? PAGES - 1 - i : 512 + 2 * i;
}

/* Does @error say that the surface or the file is gone? Notes it if so. */
static inline bool busy_gone(struct busy *b, int error)
{
	if (error != EPROTO && !(b->may_close && error == EBADF))
		return false;
	atomic_store(&b->gone, true);
	return true;
}

/* Make one call for the first @nr pages, and check all answers. */
static inline void busy_call(struct busy *b, int opcode, int nr)
{
	struct exmap_iov *iov = b->ex->interface[1]->iov;
	int ret, failed = 0;

	for (int i = 0; i < nr; i++)
		entry(b->ex, 1, i, busy_page(i), 1);
	ret = action(b->fd, 1, opcode, nr, 0);
	if (ret < 0) {
		if (!busy_gone(b, errno))
			busy_error(b, "ACTION", opcode, ret);
		return;
	}
	for (int i = 0; i < nr; i++) {
		b->came[i] = iov[i].pages;
		failed += iov[i].res < 0;
		if (iov[i].pages < 0 || iov[i].pages > 1 || iov[i].value >> 48 ||
		    (iov[i].res && !busy_gone(b, -iov[i].res)))
			busy_error(b, "entry", opcode, iov[i].value);
	}
	if (ret != failed)
		busy_error(b, "failed entries", ret, failed);
}

/*
 * Find out by an empty FREE whether the surface is gone. If so, other memory may have its
 * addresses.
 */
static inline bool busy_at_an_end(struct busy *b)
{
	entry(b->ex, 1, 0, 0, 0);
	return action(b->fd, 1, EXMAP_OP_FREE, 1, 0) < 0 && busy_gone(b, errno);
}

/* No other thread writes to these pages: each holds what was put there, or is absent. */
static inline void busy_look(struct busy *b, int opcode, int nr)
{
	uint64_t value;

	for (int i = 0; opcode == EXMAP_OP_ALLOC && i < nr; i++)
		b->came[i] = poke(where(b->ex, busy_page(i)), stamp(i));
	for (int i = 0; i < nr; i++)
		if (b->came[i] && peek(where(b->ex, busy_page(i)), &value) &&
		    value != (opcode == EXMAP_OP_ALLOC ? stamp(i) : 0) && !busy_at_an_end(b))
			busy_error(b, "page contents", opcode, value);
}

/* Read eight pages by pread on the exmap's file, and free them. */
static inline void busy_pread(struct busy *b)
{
	ssize_t ret = pread(b->fd, where(b->ex, NEIGHBOURS), 8 * PAGE, 2);

	if (ret < 0 && !busy_gone(b, errno))
		busy_error(b, "pread", ret, 0);
	entry(b->ex, 2, 0, NEIGHBOURS, 8);
	if (action(b->fd, 2, EXMAP_OP_FREE, 1, 0) < 0 && !busy_gone(b, errno))
		busy_error(b, "FREE", 0, 0);
}

/* READ gets fewer pages than ALLOC, because reading a page takes longer. */
static inline void *busy_thread(void *arg)
{
	static const struct { int opcode, nr; } calls[] = {
		{ EXMAP_OP_ALLOC, BATCH }, { EXMAP_OP_READ, 20 },
	};
	struct busy *b = arg;

	while (!atomic_load(&b->stop) && !atomic_load(&b->gone) && !b->error[0]) {
		for (int i = 0; i < 2 && !atomic_load(&b->gone); i++) {
			busy_call(b, calls[i].opcode, calls[i].nr);
			if (!atomic_load(&b->gone))
				busy_look(b, calls[i].opcode, calls[i].nr);
			busy_call(b, EXMAP_OP_FREE, calls[i].nr);
		}
		if (!atomic_load(&b->gone))
			busy_pread(b);
		atomic_fetch_add(&b->rounds, 1);
	}
	/* Do not let a test wait for rounds that will not come. */
	atomic_store(&b->rounds, INT32_MAX);
	return NULL;
}

/* Start the thread. Returns after its first round. */
static inline void busy_start(struct busy *b, struct exmap *ex, int fd, bool may_close)
{
	*b = (struct busy){ .ex = ex, .fd = fd, .may_close = may_close };
	ck_assert(!pthread_create(&b->thread, NULL, busy_thread, b));
	while (!atomic_load(&b->rounds))
		sched_yield();
}

/*
 * Wait for the end of the thread: until an answer says that the surface is gone if @gone is
 * set, or else after the current round.
 */
static inline void busy_join(struct busy *b, bool gone)
{
	atomic_store(&b->stop, !gone);
	pthread_join(b->thread, NULL);
	ck_assert_msg(!b->error[0], "busy thread: %s", b->error);
	ck_assert_int_eq(atomic_load(&b->gone), gone);
}

#endif /* TEST_BUSY_H */
