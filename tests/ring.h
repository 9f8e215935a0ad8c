/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What tests of io_uring share: rings, and how to prepare requests and wait for them.
 */
#ifndef TEST_RING_H
#define TEST_RING_H

#include <dirent.h>
#include <liburing.h>

#include "common.h"

/*
 * How many threads this process has. There is more than one if io_uring has made worker threads,
 * which it does for requests that would block.
 */
static inline int count_threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	struct dirent *task;
	int nr = 0;

	ck_assert(dir);
	while ((task = readdir(dir)))
		nr += task->d_name[0] != '.';
	closedir(dir);
	return nr;
}

#define assert_threads(nr) ck_assert_int_eq(count_threads(), nr)

static inline void ring_init_flags(struct io_uring *ring, unsigned int entries, unsigned int flags)
{
	int ret = io_uring_queue_init(entries, ring, flags);

	ck_assert_msg(!ret, "io_uring_queue_init with %#x: %s", flags, strerror(-ret));
}

static inline void ring_init(struct io_uring *ring, unsigned int entries)
{
	ring_init_flags(ring, entries, 0);
}

static inline struct io_uring_sqe *ring_sqe(struct io_uring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	ck_assert(sqe);
	memset(sqe, 0, sizeof(*sqe));
	return sqe;
}

static inline void ring_submit(struct io_uring *ring, int nr)
{
	int ret = io_uring_submit(ring);

	/* The kernel's thread may already have taken some of them. */
	if (ring->flags & IORING_SETUP_SQPOLL)
		ck_assert_int_ge(ret, 0);
	else
		ck_assert_int_eq(ret, nr);
}

/* Wait for the next completion. Returns its result; @data, if not NULL, gets its user_data. */
static inline int ring_wait_data(struct io_uring *ring, uint64_t *data)
{
	struct io_uring_cqe *cqe;
	int ret, res;

	do {
		ret = io_uring_wait_cqe(ring, &cqe);
	} while (ret == -EINTR);
	ck_assert_msg(!ret, "io_uring_wait_cqe: %s", strerror(-ret));
	res = cqe->res;
	if (data)
		*data = cqe->user_data;
	io_uring_cqe_seen(ring, cqe);
	return res;
}

static inline int ring_wait(struct io_uring *ring)
{
	return ring_wait_data(ring, NULL);
}

/* Submit the one request that was prepared, and wait for its result. */
static inline int ring_result(struct io_uring *ring)
{
	ring_submit(ring, 1);
	return ring_wait(ring);
}

/* The address of a page of the surface. */
#define where(ex, nr)		((ex)->surface + (nr) * PAGE)

/* Interface and operation as one number: the offset of a READ or WRITE, or a command's cmd_op. */
#define place(interface, op)	((unsigned int)(op) << 8 | (interface))

static inline struct io_uring_sqe *prep_rw(struct io_uring *ring, int op, int fd, void *address,
					   unsigned int len, uint64_t offset)
{
	struct io_uring_sqe *sqe = ring_sqe(ring);

	io_uring_prep_rw(op, sqe, fd, address, len, offset);
	return sqe;
}

/* Prepare a command on a range of memory: of the surface, or of entries (see prep_fixed()). */
static inline struct io_uring_sqe *prep_cmd(struct io_uring *ring, int fd, unsigned int cmd_op,
					    void *address, size_t len)
{
	struct io_uring_sqe *sqe = ring_sqe(ring);
	struct iovec iov = { address, len };

	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, fd, NULL, 0, 0);
	sqe->cmd_op = cmd_op;
	memcpy((char *)sqe + offsetof(struct io_uring_sqe, cmd), &iov, sizeof(iov));
	return sqe;
}

/* Prepare a command with IORING_URING_CMD_FIXED: its entries are in registered buffer 0. */
static inline struct io_uring_sqe *prep_fixed(struct io_uring *ring, int fd, unsigned int cmd_op,
					      void *entries, size_t len)
{
	struct io_uring_sqe *sqe = prep_cmd(ring, fd, cmd_op, entries, len);

	sqe->uring_cmd_flags = IORING_URING_CMD_FIXED;
	sqe->buf_index = 0;
	return sqe;
}

static inline int cmd(struct io_uring *ring, int fd, unsigned int cmd_op, void *address, size_t len)
{
	prep_cmd(ring, fd, cmd_op, address, len);
	return ring_result(ring);
}

static inline int cmd_pages(struct io_uring *ring, struct exmap *ex, int op, uint64_t page,
			    size_t len)
{
	return cmd(ring, ex->fd, place(0, op), where(ex, page), len * PAGE);
}

/* Register two pages of entries as buffer 0 of a ring. */
static inline struct exmap_iov *ring_entries(struct io_uring *ring)
{
	struct iovec iov = { .iov_len = 2 * PAGE };
	int ret;

	iov.iov_base = mmap(NULL, iov.iov_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);
	assert_ok(iov.iov_base);
	ret = io_uring_register_buffers(ring, &iov, 1);
	ck_assert_msg(!ret, "io_uring_register_buffers: %s", strerror(-ret));
	return iov.iov_base;
}

static inline struct exmap_iov entry_of(uint64_t page, unsigned int len)
{
	return (struct exmap_iov){ .value = (uint64_t)len << 52 | page };
}

#define assert_answer(iov, want_res, want_pages) do {				\
	struct exmap_iov iov_ = (iov);						\
	ck_assert_msg(iov_.res == (want_res) && iov_.pages == (want_pages),	\
		      "%s: res %d, pages %d, expected %d, %d", #iov, iov_.res,	\
		      iov_.pages, want_res, want_pages);			\
} while (0)

/* Carry out one request by io_uring, and return its result. READV and WRITEV get one range. */
static inline int uring_rw(struct io_uring *ring, int op, int fd, char *start, size_t len,
			   uint64_t offset)
{
	static struct iovec iov;

	iov = (struct iovec){ start, len };
	if (op == IORING_OP_READV || op == IORING_OP_WRITEV)
		prep_rw(ring, op, fd, &iov, 1, offset);
	else
		prep_rw(ring, op, fd, start, len, offset);
	return ring_result(ring);
}

#endif /* TEST_RING_H */
