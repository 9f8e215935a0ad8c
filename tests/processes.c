// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of an exmap and other processes: fork, exec, a file passed over a socket, exit and kill.
 */
#include <sys/socket.h>

#include "common.h"

static void send_fd(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { };
	struct iovec iov = { .iov_base = "x", .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	assert_ok(sendmsg(socket, &msg, 0));
}

static int receive_fd(int socket)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	int fd;

	assert_ok(recvmsg(socket, &msg, 0));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	return fd;
}

/* Assert that every call on @fd returns EPERM, because its exmap belongs to another process. */
static void assert_all_eperm(int fd)
{
	struct exmap_ioctl_stats s;

	assert_errno(action(fd, 0, EXMAP_OP_ALLOC, 1, 0), EPERM);
	assert_errno(action(fd, 0, EXMAP_OP_FREE, 1, 0), EPERM);
	assert_errno(ioctl(fd, EXMAP_IOCTL_STATS, &s), EPERM);
	assert_errno(exmap_setup(fd, 1, 1, 0), EPERM);
	assert_errno(exmap_clone(fd, fd), EPERM);
	assert_errno(exmap_clone(fd, exmap_open()), EPERM);
	assert_errno(exmap_clone(exmap_open(), fd), EPERM);
	assert_errno(map_surface(fd, MIB), EPERM);
	assert_errno(map_interface(fd, 0), EPERM);
}

/* A child inherits no mapping, and every call on its fd returns EPERM. */
TEST(fork_inherits_only_a_useless_fd)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	int unused = exmap_open();
	pid_t pid;

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	ex->surface[0] = 7;
	pid = fork();
	if (!pid) {
		assert_all_eperm(ex->fd);
		assert_all_eperm(unused);
		/* The child has inherited neither surface nor interface. */
		assert_errno(msync(ex->surface, PAGE, MS_ASYNC), ENOMEM);
		assert_errno(msync(ex->interface[0], PAGE, MS_ASYNC), ENOMEM);
		_exit(0);
	}
	wait_child(pid, 0);
	ck_assert_int_eq(ex->surface[0], 7);
	assert_mapped(ex, 10);
	ck_assert_int_eq(release(ex, 0, 0, 10), 10);
	assert_ok(exmap_setup(unused, 1, 1, 0));
}

TEST(fork_after_madv_dofork_inherits_nothing)
{
	struct exmap *ex = exmap_new_flags(MIB, 10, 1, EXMAP_PAGEFAULT_ALLOC);
	pid_t pid;

	ck_assert_int_eq(alloc(ex, 0, 0, 5), 5);
	ex->surface[0] = 7;
	/* Newer kernels refuse MADV_DOFORK. */
	if (madvise(ex->surface, ex->size, MADV_DOFORK))
		ck_assert_int_eq(errno, EINVAL);
	pid = fork();
	if (!pid) {
		*(volatile char *)ex->surface;
		_exit(0);
	}
	wait_child(pid, SIGSEGV);
	ck_assert_int_eq(ex->surface[0], 7);
	assert_mapped(ex, 5);
	ck_assert_int_eq(release(ex, 0, 0, 5), 5);
}

TEST(fork_after_madv_dofork_inherits_no_interface)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	pid_t pid;

	entry(ex, 0, 7, 3, 1);
	if (madvise(ex->interface[0], PAGE, MADV_DOFORK))
		ck_assert_int_eq(errno, EINVAL);
	/* Undo VM_WIPEONFORK, in case that is what keeps the page from a child. */
	assert_ok(madvise(ex->interface[0], PAGE, MADV_KEEPONFORK));
	pid = fork();
	if (!pid) {
		entry(ex, 0, 7, 5, 1);
		_exit(0);
	}
	wait_child(pid, SIGSEGV);
	ck_assert_uint_eq(ex->interface[0]->iov[7].value, 1ULL << 52 | 3);
	ck_assert_int_eq(alloc(ex, 0, 0, 5), 5);
}

TEST(fd_passed_to_another_process_is_eperm)
{
	int sockets[2];
	pid_t pid;

	assert_ok(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	pid = fork();
	if (!pid) {
		struct exmap *ex = exmap_new(MIB, 10, 1);

		ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
		doomed = true;
		send_fd(sockets[1], ex->fd);
		pause();
	}
	int fd = receive_fd(sockets[0]);

	assert_all_eperm(fd);
	kill(pid, SIGKILL);
	wait_child(pid, SIGKILL);
	/* The exmap's process is gone, and its pages are, too. This fd is the last reference. */
	assert_all_eperm(fd);
	close(fd);
}

/*
 * If the fd stays open across exec, the surface goes with the old program, and the new program may
 * close the fd. The exmap of another process is not affected.
 */
TEST(exec_leaves_a_useless_fd)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	pid_t pid = fork();
	char command[128];

	if (!pid) {
		struct exmap *mine = exmap_new(MIB, 10, 1);

		ck_assert_int_eq(alloc(mine, 0, 0, 10), 10);
		fcntl(mine->fd, F_SETFD, 0);
		snprintf(command, sizeof(command), "exec %d<&-; exit 42", mine->fd);
		execl("/bin/bash", "bash", "-c", command, NULL);
		_exit(1);
	}
	wait_child(pid, 42);
	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
}

/* A process exits with all pages mapped; with its file closed before, or its surface unmapped. */
TEST(exit_with_pages_mapped)
{
	for (int order = 0; order < 3; order++) {
		pid_t pid = fork();

		if (!pid) {
			struct exmap *ex = exmap_new(4 * GIB, 20000, 4);

			for (int i = 0; i < 4; i++)
				ck_assert_int_eq(alloc(ex, i, i * GIB / PAGE, 4095), 4095);
			if (order == 1)
				close(ex->fd);
			if (order == 2)
				munmap(ex->surface, ex->size);
			_exit(0);
		}
		wait_child(pid, 0);
	}
}

/* No memory is lost if processes are killed at random moments. */
TEST(kill_at_random_moments)
{
	enum { PAGES = 1000 };
	long before = available_kib();

	srandom(1);
	for (int round = scaled(1000); round; round--) {
		int ready[2];
		char byte;
		pid_t pid;

		assert_ok(pipe(ready));
		pid = fork();
		if (!pid) {
			struct exmap *ex;

			doomed = true;
			/* SIGKILL comes at any moment after this, even before SETUP. */
			if (write(ready[1], "x", 1) != 1)
				_exit(1);
			ex = exmap_new(GIB, PAGES, 1);
			for (;;) {
				alloc(ex, 0, random() % 200000, PAGES);
				release(ex, 0, 0, 4095);
			}
		}
		ck_assert_int_eq(read(ready[0], &byte, 1), 1);
		for (volatile long spin = random() % 300000; spin > 0; spin--)
			;
		kill(pid, SIGKILL);
		wait_child(pid, SIGKILL);
		close(ready[0]);
		close(ready[1]);
	}
	/* A leak of two pages a round would be about as much as this slack. */
	assert_available(before, 8 * 1024);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of exmap and processes: fork, exec, exit, kill.");
}
