// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of CLONE, with which several files share one exmap, and of files that a call refuses.
 */
#include <sched.h>

#include "common.h"

/* Calls on a clone and on the first file work on the same exmap. */
TEST(clone_shares_everything)
{
	struct exmap *ex = exmap_new(MIB, 10, 2);
	struct exmap clone = *ex;

	clone.fd = exmap_open();
	assert_ok(exmap_clone(clone.fd, ex->fd));
	ck_assert_int_eq(alloc(&clone, 1, 3, 2), 2);
	ex->surface[3 * PAGE] = 1;
	assert_mapped(ex, 2);
	ck_assert_int_eq(release(ex, 0, 3, 1), 1);
	assert_mapped(&clone, 1);
	assert_errno(exmap_setup(clone.fd, 1, 1, 0), EBUSY);
	assert_errno(map_surface(clone.fd, MIB), EBUSY);
	clone.interface[1] = map_interface(clone.fd, 1);
	ck_assert_uint_eq(clone.interface[1]->iov[0].value, ex->interface[1]->iov[0].value);
}

TEST(clone_works_after_the_first_is_closed)
{
	struct exmap *ex = exmap_new(MIB, 10, 2);
	struct exmap clone = *ex;

	ck_assert_int_eq(alloc(ex, 0, 0, 5), 5);
	clone.fd = exmap_open();
	assert_ok(exmap_clone(clone.fd, ex->fd));
	close(ex->fd);
	assert_mapped(&clone, 5);
	ck_assert_int_eq(alloc(&clone, 0, 5, 5), 5);
	ck_assert_int_eq(release(&clone, 1, 0, 10), 10);
}

/* SETUP, mmap and ACTION may each use another file of the exmap. */
TEST(clone_before_setup)
{
	struct exmap ex = { .fd = exmap_open() }, clone = { .fd = exmap_open() };

	assert_ok(exmap_clone(clone.fd, ex.fd));
	assert_ok(exmap_setup(clone.fd, 1, 10, 0));
	ex.surface = map_surface(clone.fd, MIB);
	ex.interface[0] = map_interface(ex.fd, 0);
	close(clone.fd);
	ck_assert_int_eq(alloc(&ex, 0, 0, 1), 1);
}

TEST(clone_of_no_exmap_is_refused)
{
	int fd = exmap_open();

	assert_errno(exmap_clone(fd, 999), EBADF);
	assert_errno(exmap_clone(fd, -1), EBADF);
	assert_errno(exmap_clone(fd, open("/dev/null", O_RDWR)), EINVAL);
	assert_ok(exmap_setup(fd, 1, 1, 0));
}

TEST(clone_of_itself_is_einval)
{
	int fd = exmap_open(), clone = exmap_open();

	assert_errno(exmap_clone(fd, fd), EINVAL);
	assert_errno(exmap_clone(fd, dup(fd)), EINVAL);
	assert_ok(exmap_clone(clone, fd));
	assert_errno(exmap_clone(clone, fd), EINVAL);
	assert_errno(exmap_clone(fd, clone), EINVAL);
}

/* A file whose exmap another file shares cannot become a clone itself. */
TEST(clone_into_one_that_was_cloned_is_ebusy)
{
	int a = exmap_open(), b = exmap_open(), c = exmap_open();
	pid_t pid;

	assert_ok(exmap_clone(b, a));
	assert_errno(exmap_clone(a, c), EBUSY);
	/* A process that outlives the exmap's own process closes the last file of the exmap. */
	pid = fork();
	if (!pid) {
		int mine = exmap_open(), clone = exmap_open();
		pid_t parent = getpid();

		assert_ok(exmap_clone(clone, mine));
		pid = fork();
		if (!pid) {
			close(mine);
			while (getppid() == parent)
				sched_yield();
			close(clone);
		}
		_exit(0);
	}
	wait_child(pid, 0);
	assert_ok(exmap_setup(b, 1, 1, 0));
}

/* A file that has been set up, mapped or cloned before cannot become a clone. */
TEST(clone_into_one_in_use_is_ebusy)
{
	struct exmap *ex = exmap_new(MIB, 10, 1), *other = exmap_new(MIB, 10, 1);
	int mapped = exmap_open(), set_up = exmap_open(), clone = exmap_open();

	assert_errno(exmap_clone(other->fd, ex->fd), EBUSY);
	assert_ok(map_surface(mapped, MIB));
	assert_errno(exmap_clone(mapped, ex->fd), EBUSY);
	assert_ok(exmap_setup(set_up, 1, 1, 0));
	assert_errno(exmap_clone(set_up, ex->fd), EBUSY);
	assert_ok(exmap_clone(clone, ex->fd));
	assert_errno(exmap_clone(clone, other->fd), EBUSY);
}

TEST(clone_twice_is_ebusy)
{
	int a = exmap_open(), b = exmap_open(), clone = exmap_open();

	assert_ok(exmap_clone(clone, a));
	assert_errno(exmap_clone(clone, b), EBUSY);
}

/* After all files are closed, CLONE keeps no exmap alive: each round can charge a new pool. */
TEST(clone_keeps_nothing)
{
	set_memlock(100 * PAGE);
	drop_privileges();
	for (int round = 0; round < 3; round++) {
		int a = exmap_open(), b = exmap_open(), c = exmap_open();

		assert_ok(exmap_setup(a, 1, 90, 0));
		assert_ok(exmap_setup(b, 1, 8, 0));
		assert_errno(exmap_clone(b, a), EBUSY);
		assert_ok(exmap_clone(c, a));
		close(a);
		close(b);
		close(c);
	}
}

/* Assert that closing this end of the pipe closes it: no call has kept a reference. */
static void assert_no_leak(int pipes[2])
{
	char byte;

	close(pipes[1]);
	fcntl(pipes[0], F_SETFL, O_NONBLOCK);
	ck_assert_int_eq(read(pipes[0], &byte, 1), 0);
}

/* SETUP and CLONE put the reference to a file that they refuse. */
TEST(refused_files_are_let_go)
{
	struct exmap_ioctl_setup setup = { .max_interfaces = 1, .buffer_size = 1 };
	int pipes[2], fd = exmap_open();

	assert_ok(pipe(pipes));
	setup.fd = pipes[1];
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), ESPIPE);
	assert_no_leak(pipes);
	assert_ok(pipe(pipes));
	assert_errno(exmap_clone(fd, pipes[1]), EINVAL);
	assert_no_leak(pipes);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of CLONE.");
}
