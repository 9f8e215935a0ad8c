// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of who may make asynchronous requests, and when: not before SETUP, not without a surface,
 * not in another process; and what the kernel's own threads may do.
 */
#include <poll.h>

#include "request.h"

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

/* Neither by its own ring, nor by one that it shares with the owner. */
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
 * Whoever carries a request out for a process has its memory, and is told whose it is by
 * that. The one that has none is the kernel thread for libaio's fsync.
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
		/* That is what the kernel says of every file that does not know. */
		io_prep_poll(&iocb, ex->fd, POLLIN);
		ck_assert_int_eq(libaio_result(aio, &iocb), POLLIN);
		io_prep_fsync(&iocb, ex->fd);
		ck_assert_int_eq(libaio_result(aio, &iocb), 0);
		/* This ring's thread is the parent's, whoever fills the queue. */
		ck_assert_int_eq(uring_rw(&shared, IORING_OP_READ, ex->fd, ex->surface, PAGE, 0),
				 PAGE);
		_exit(0);
	}
	wait_child(pid, 0);
	assert_mapped(ex, 1);
	ck_assert(holds(ex->surface, 0, 0));
	assert_nothing_lost(ex);
}

/* It is done by a kernel thread. */
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
