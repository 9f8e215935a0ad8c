// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of which processes and threads may make asynchronous requests, and when: not before
 * SETUP, not without a surface, not from another process. The kernel's threads may, for the
 * process that they work for.
 */
#include <poll.h>

#include "request.h"

/*
 * Before SETUP every request is refused with EBADF. Without a backing file READ and WRITE are
 * refused with EOPNOTSUPP, and ALLOC and FREE work.
 */
TEST(uring_before_setup_or_without_a_file)
{
	int fd = exmap_open();
	char *surface = map_surface(fd, MIB);
	struct exmap_iov *entries;
	struct io_uring ring;

	ring_init(&ring, 8);
	entries = ring_entries(&ring);
	entries[0] = entry_of(1, 1);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, fd, surface, PAGE, 0), -EBADF);
	ck_assert_int_eq(cmd(&ring, fd, place(0, EXMAP_OP_ALLOC), surface, PAGE), -EBADF);
	prep_fixed(&ring, fd, place(0, EXMAP_OP_ALLOC), entries, 8);
	ck_assert_int_eq(ring_result(&ring), -EBADF);
	assert_ok(exmap_setup(fd, 1, 10, 0));
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, fd, surface, PAGE, 0), -EOPNOTSUPP);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, fd, surface, PAGE, EXMAP_OP_ALLOC << 8),
			 PAGE);
	ck_assert_int_eq(cmd(&ring, fd, place(0, EXMAP_OP_READ), surface, PAGE), -EOPNOTSUPP);
	ck_assert_int_eq(cmd(&ring, fd, place(0, EXMAP_OP_WRITE), surface, PAGE), -EOPNOTSUPP);
	prep_fixed(&ring, fd, place(0, EXMAP_OP_READ), entries, 8);
	ck_assert_int_eq(ring_result(&ring), -EOPNOTSUPP);
	ck_assert_uint_eq(entries[0].value, entry_of(1, 1).value);
	ck_assert_int_eq(cmd(&ring, fd, place(0, EXMAP_OP_FREE), surface, 4 * PAGE), 4 * PAGE);
}

/* Requests are refused if the surface was never mapped. */
TEST(uring_without_a_surface_is_eproto)
{
	char *memory = aligned_alloc(PAGE, PAGE);
	struct exmap_iov *entries;
	struct io_uring ring;
	int fd = exmap_open();

	assert_ok(exmap_setup_file(fd, 1, 100, 0, backing_open(false, O_RDWR)));
	ring_init(&ring, 8);
	entries = ring_entries(&ring);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, fd, memory, PAGE, 0), -EPROTO);
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++) {
		ck_assert_int_eq(cmd(&ring, fd, place(0, op), memory, PAGE), -EPROTO);
		entries[0] = entry_of(1, 1);
		prep_fixed(&ring, fd, place(0, op), entries, 8);
		ck_assert_int_eq(ring_result(&ring), -EPROTO);
		ck_assert_uint_eq(entries[0].value, entry_of(1, 1).value);
	}
}

/* A child's requests are refused, by a ring of its own and by one that its parent has made. */
TEST(uring_of_another_process_is_eperm)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	struct io_uring shared, own;
	struct exmap_iov *entries;
	io_context_t aio = NULL;
	struct iocb iocb;
	pid_t pid;

	ring_init(&shared, 8);
	pid = fork();
	if (!pid) {
		ring_init(&own, 8);
		for (struct io_uring *ring = &own; ring; ring = ring == &own ? &shared : NULL) {
			ck_assert_int_eq(uring_rw(ring, IORING_OP_READ, ex->fd, ex->surface, PAGE,
						  0), -EPERM);
			ck_assert_int_eq(uring_rw(ring, IORING_OP_WRITE, ex->fd, ex->surface, PAGE,
						  place(0, EXMAP_OP_WRITE)), -EPERM);
			for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++)
				ck_assert_int_eq(cmd_pages(ring, ex, op, 0, 1), -EPERM);
		}
		entries = ring_entries(&own);
		entries[0] = entry_of(1, 1);
		prep_fixed(&own, ex->fd, place(0, EXMAP_OP_ALLOC), entries, 8);
		ck_assert_int_eq(ring_result(&own), -EPERM);
		ck_assert_int_eq(io_setup(1, &aio), 0);
		io_prep_pread(&iocb, ex->fd, ex->surface, PAGE, 0);
		ck_assert_int_eq(libaio_result(aio, &iocb), -EPERM);
		_exit(0);
	}
	wait_child(pid, 0);
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
}

/*
 * A kernel thread that carries out a request has the mm of the process that it works for, and
 * may do what that process may. Only the thread for libaio's fsync has no mm: it is let through.
 */
TEST(threads_for_another_process_get_eperm)
{
	static const int flags[] = { 0, IORING_SETUP_SQPOLL };
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	struct io_uring ring, shared;
	io_context_t aio = NULL;
	struct iocb iocb;
	pid_t pid;

	ring_init_flags(&shared, 8, IORING_SETUP_SQPOLL);
	pid = fork();
	if (!pid) {
		for (int i = 0; i < 2; i++) {
			ring_init_flags(&ring, 8, flags[i]);
			prep_rw(&ring, IORING_OP_READ, ex->fd, ex->surface, PAGE, 0)->flags |=
				IOSQE_ASYNC;
			ck_assert_int_eq(ring_result(&ring), -EPERM);
			prep_cmd(&ring, ex->fd, place(0, EXMAP_OP_ALLOC), ex->surface, PAGE)->flags |=
				IOSQE_ASYNC;
			ck_assert_int_eq(ring_result(&ring), -EPERM);
			ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_ALLOC, 0, 1), -EPERM);
			prep_rw(&ring, IORING_OP_FSYNC, ex->fd, NULL, 0, 0);
			ck_assert_int_eq(ring_result(&ring), -EPERM);
		}
		ck_assert_int_eq(io_setup(1, &aio), 0);
		io_prep_pread(&iocb, ex->fd, ex->surface, PAGE, place(0, EXMAP_OP_ALLOC));
		ck_assert_int_eq(libaio_result(aio, &iocb), -EPERM);
		io_prep_pwrite(&iocb, ex->fd, ex->surface, PAGE, place(0, EXMAP_OP_WRITE));
		ck_assert_int_eq(libaio_result(aio, &iocb), -EPERM);
		/* The kernel's answer for every file that has no poll operation. */
		io_prep_poll(&iocb, ex->fd, POLLIN);
		ck_assert_int_eq(libaio_result(aio, &iocb), POLLIN);
		io_prep_fsync(&iocb, ex->fd);
		ck_assert_int_eq(libaio_result(aio, &iocb), 0);
		/* This ring's thread works for the parent, also on what the child has queued. */
		ck_assert_int_eq(uring_rw(&shared, IORING_OP_READ, ex->fd, ex->surface, PAGE, 0),
				 PAGE);
		_exit(0);
	}
	wait_child(pid, 0);
	assert_mapped(ex, 1);
	ck_assert(holds(ex->surface, 0, 0));
	assert_nothing_lost(ex);
}

/* fsync by libaio, which a kernel thread carries out, works if there is a backing file. */
TEST(fsync_by_libaio)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	struct exmap *without = exmap_new(MIB, 10, 1);
	io_context_t aio = NULL;
	struct iocb iocb;

	ck_assert_int_eq(io_setup(1, &aio), 0);
	io_prep_fsync(&iocb, ex->fd);
	ck_assert_int_eq(libaio_result(aio, &iocb), 0);
	io_prep_fdsync(&iocb, without->fd);
	ck_assert_int_eq(libaio_result(aio, &iocb), -EOPNOTSUPP);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of which processes and threads may make asynchronous requests, and when.");
}
