// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of processes that get hold of an exmap by fork, exec or clone: a child must find neither
 * surface nor interfaces, and a program only a file that refuses everything. A process that
 * shares the memory may do everything.
 */
#include <sched.h>

#include "ways.h"

/* A child can access neither surface nor interfaces, and its calls get EPERM. */
static void assert_not_mine(struct exmap *ex)
{
	uint64_t value;

	for (int page = 0; page < PAGES; page += page < KEPT ? 9 : 129) {
		ck_assert_msg(!peek(where(ex, page), &value), "a child can read page %d: %#lx",
			      page, value);
		ck_assert(!poke(where(ex, page), 1));
	}
	for (int i = 0; i < 3; i++) {
		ck_assert_msg(!peek(ex->interface[i], &value), "a child can read interface %d", i);
		ck_assert(!poke(ex->interface[i], 1));
	}
	assert_errno(action(ex->fd, 0, EXMAP_OP_FREE, 1, 0), EPERM);
}

/* Give advice on surface and interfaces. Newer kernels refuse some of it. */
static void advise_all(struct exmap *ex, int advice)
{
	madvise(ex->surface, ex->size, advice);
	for (int i = 0; i < 3; i++)
		madvise(ex->interface[i], PAGE, advice);
}

/* Free the first pages and allocate them again: a child must see neither. */
static void recycle_kept(struct exmap *ex)
{
	ck_assert_int_eq(release(ex, 0, 0, KEPT), KEPT);
	map_kept(ex);
}

/* In a child: look before and after the parent has freed the pages; then let its own child look. */
static void look_and_fork(struct exmap *ex, int pipes[2][2])
{
	char byte = 0;
	pid_t pid;

	assert_not_mine(ex);
	ck_assert_int_eq(write(pipes[0][1], &byte, 1), 1);
	ck_assert_int_eq(read(pipes[1][0], &byte, 1), 1);
	assert_not_mine(ex);
	advise_all(ex, MADV_KEEPONFORK);
	advise_all(ex, MADV_DOFORK);
	madvise(ex->surface, ex->size, MADV_DONTNEED);
	pid = fork();
	assert_ok(pid);
	if (!pid)
		assert_not_mine(ex);
	else
		wait_child(pid, 0);
	_exit(0);
}

/* A child inherits nothing after any advice about fork, each given on top of those before it. */
WAY(fork_after_dofork)
{
	static const int said[] = {
		MADV_DOFORK, MADV_KEEPONFORK, MADV_WIPEONFORK, MADV_DONTFORK, MADV_DOFORK,
	};
	struct exmap_iov *last = &ex->interface[0]->iov[EXMAP_USER_INTERFACE_PAGES - 1];

	for (size_t i = 0; i < sizeof(said) / sizeof(said[0]); i++) {
		int pipes[2][2];
		char byte = 0;
		pid_t pid;

		advise_all(ex, said[i]);
		assert_ok(pipe(pipes[0]));
		assert_ok(pipe(pipes[1]));
		last->value = stamp(i);
		pid = fork();
		assert_ok(pid);
		if (!pid)
			look_and_fork(ex, pipes);
		/* So that read returns if the child has failed. */
		close(pipes[0][1]);
		if (read(pipes[0][0], &byte, 1) == 1)
			recycle_kept(ex);
		ck_assert_int_eq(write(pipes[1][1], &byte, 1), 1);
		wait_child(pid, 0);
		ck_assert_uint_eq(last->value, stamp(i));
		for (int side = 0; side < 4; side++)
			if (side != 1)
				close(pipes[side / 2][side % 2]);
	}
	return KEEPS;
}

/*
 * fork after MADV_DOFORK leaves the kernel's count of mapped pages right. If a child got pages that
 * the kernel did not count at fork, it would still subtract them when the child ends.
 */
TEST(fork_after_dofork_keeps_the_books)
{
	enum { MANY = 4000, SLACK = MANY * 4 / 2 /* half of them, in KiB */ };

	become_hostile();
	struct exmap *ex = fenced_exmap(MANY, MANY, -1);
	long before;

	/* The count never falls below 0: make it larger than the error this test looks for. */
	assert_ok(mmap(NULL, MANY * PAGE, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
	ck_assert_int_eq(alloc(ex, 0, 0, MANY), MANY);
	advise_all(ex, MADV_DOFORK);
	advise_all(ex, MADV_KEEPONFORK);
	before = kib_of("/proc/meminfo", "Mapped:");
	for (int i = 0; i < 8; i++) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid)
			_exit(0);
		wait_child(pid, 0);
	}
	/* CPUs report their part of the count now and then. */
	for (int i = 0; i < 100 && labs(kib_of("/proc/meminfo", "Mapped:") - before) > SLACK; i++)
		usleep(100000);
	ck_assert_int_le(labs(kib_of("/proc/meminfo", "Mapped:") - before), SLACK);
	assert_whole_pool(ex, MANY);
}

/*
 * Processes that share the memory, or the file
 */

/* exec_with_an_open_file() names the inherited file in this variable of the environment. */
#define INHERITED "EXMAP_TEST_INHERITED"

/* In the program after exec: each use of the file must fail with EPERM. Returns 42 if so. */
static int use_inherited(int fd)
{
	struct exmap_ioctl_stats s;
	char page[PAGE];

	errno = 0;
	if (action(fd, 0, EXMAP_OP_FREE, 1, 0) != -1 || errno != EPERM ||
	    ioctl(fd, EXMAP_IOCTL_STATS, &s) != -1 || errno != EPERM ||
	    exmap_setup(fd, 1, 1, 0) != -1 || errno != EPERM ||
	    map_surface(fd, MIB) != MAP_FAILED || errno != EPERM ||
	    map_interface(fd, 0) != MAP_FAILED || errno != EPERM ||
	    pread(fd, page, PAGE, EXMAP_OP_ALLOC << 8) != -1 || errno != EPERM)
		return 1;
	return 42;
}

/* After exec, an inherited file refuses everything, even if a thread was using it. */
TEST(exec_with_an_open_file)
{
	become_hostile();
	int status;

	for (int threads = 0; threads < 2; threads++) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid) {
			struct exmap *ex = stamped_exmap(sparse_file());
			struct busy b;
			char fd[16];

			if (threads)
				busy_start(&b, ex, ex->fd, false);
			fcntl(ex->fd, F_SETFD, 0);
			snprintf(fd, sizeof(fd), "%d", ex->fd);
			setenv(INHERITED, fd, 1);
			execl("/proc/self/exe", "tests/hostile-fork", NULL);
			_exit(1);
		}
		assert_ok(waitpid(pid, &status, 0));
		ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 42);
	}
}

/* In a process with the same memory: use the exmap. Returns 0 if all calls worked. */
static int sharer(void *arg)
{
	struct exmap *ex = arg;

	return alloc(ex, 0, ABSENT, 5) != 5 || !poke(where(ex, ABSENT), 1) ||
		release(ex, 0, ABSENT, 5) != 5 || !poke(where(ex, 0), stamp(0));
}

/* A process that shares the memory may use the exmap, which survives the end of that process. */
TEST(clone_vm_and_vfork)
{
	static char stack[65536] __attribute__((aligned(16)));

	become_hostile();
	struct exmap *ex = stamped_exmap(-1);

	for (int round = 0; round < 10; round++) {
		pid_t pid = clone(sharer, stack + sizeof(stack),
				  CLONE_VM | SIGCHLD | (round % 2 ? CLONE_VFORK : 0), ex);

		/*
		 * No assertion before the child has ended. The C library sees one thread in both
		 * processes, so a lock that the child holds would look like this thread's own.
		 */
		wait_child(pid, 0);
	}
	assert_fate(ex, KEEPS);
}

/*
 * Use the exmap after the process that opened it has ended. No one can wait for this process, so
 * it reports by a pipe.
 */
static int survivor(void *arg)
{
	struct exmap *ex = arg;
	pid_t parent = *(pid_t *)where(ex, 11);
	char result = 'f';

	while (getppid() == parent)
		sched_yield();
	if (!sharer(ex))
		result = 'p';
	return write(*(int *)where(ex, 10), &result, 1) != 1;
}

/* An exmap works as long as a process has the memory, even after the opener has ended. */
TEST(clone_vm_survives_its_parent)
{
	static char stack[65536] __attribute__((aligned(16)));
	int pipes[2];
	char result;

	become_hostile();
	assert_ok(pipe(pipes));
	pid_t pid = fork();

	assert_ok(pid);
	if (!pid) {
		struct exmap *ex = stamped_exmap(-1);

		*(int *)where(ex, 10) = pipes[1];
		*(pid_t *)where(ex, 11) = getpid();
		assert_ok(clone(survivor, stack + sizeof(stack), CLONE_VM, ex));
		_exit(0);
	}
	wait_child(pid, 0);
	close(pipes[1]);
	ck_assert_int_eq(read(pipes[0], &result, 1), 1);
	ck_assert_int_eq(result, 'p');
}

int main(int argc, char **argv)
{
	const char *inherited = getenv(INHERITED);

	if (inherited)
		return use_inherited(atoi(inherited));
	return check_main(argc, argv,
			  "Tests of processes that get hold of an exmap by fork, exec or clone.");
}
