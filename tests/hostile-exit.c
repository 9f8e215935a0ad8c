// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the end of an exmap: at any moment, in any order, of many at once. All that it took is
 * given back.
 */
#include <time.h>

#include "busy.h"
#include "cgroup.h"

/* close during calls only takes the file away: the mapping keeps exmap and pages until munmap. */
TEST(close_while_calls_run)
{
	become_hostile();
	int file = sparse_file();

	for (int round = scaled(10); round; round--) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid) {
			struct exmap *ex = stamped_exmap(file);
			int clone = exmap_open();
			struct busy b;

			assert_ok(exmap_clone(clone, ex->fd));
			busy_start(&b, ex, round % 2 ? clone : ex->fd, true);
			close(ex->fd);
			close(clone);
			busy_join(&b, true);
			/* The mapping holds the exmap. */
			assert_kept(ex, KEEPS);
			assert_ok(munmap(ex->surface, ex->size));
			for (int i = 0; i < 3; i++)
				assert_ok(munmap(ex->interface[i], PAGE));
			ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 0);
			_exit(0);
		}
		wait_child(pid, 0);
	}
}

/* Kill a child at a random moment while it makes calls, again and again. No memory is lost. */
static void killed_in(void (*call)(struct exmap *ex))
{
	long before = available_kib();

	become_hostile();
	int file = sparse_file();

	srandom(1);
	for (int round = scaled(40); round; round--) {
		int ready[2];
		char byte;
		pid_t pid;

		assert_ok(pipe(ready));
		pid = fork();
		assert_ok(pid);
		if (!pid) {
			struct exmap *ex = stamped_exmap(file);

			doomed = true;
			if (write(ready[1], "x", 1) != 1)
				_exit(1);
			for (;;)
				call(ex);
		}
		ck_assert_int_eq(read(ready[0], &byte, 1), 1);
		for (volatile long spin = random() % 100000; spin > 0; spin--)
			;
		assert_ok(kill(pid, SIGKILL));
		wait_child(pid, SIGKILL);
		close(ready[0]);
		close(ready[1]);
	}
	/* If a pool were lost each time, 64 MiB would be missing. */
	assert_available(before, 16 * 1024);
}

/* KILLED_IN(name) { body } defines the test killed_in_name: the child repeats the body. */
#define KILLED_IN(name)								\
	static void again_##name(struct exmap *ex);				\
	TEST(killed_in_##name) { killed_in(again_##name); }			\
	static void again_##name(struct exmap *ex)

/* MADV_DONTNEED gives the pages back, so the next ALLOC takes new ones from the system. */
KILLED_IN(alloc_of_new_pages)
{
	alloc(ex, 0, 100, 300);
	madvise(ex->surface, ex->size, MADV_DONTNEED);
}

KILLED_IN(free_of_single_pages)
{
	alloc(ex, 0, 0, POOL);
	for (int page = 0; page < POOL; page++)
		release(ex, 1, page, 1);
}

KILLED_IN(read)
{
	run(ex, 0, EXMAP_OP_READ, 512, 300);
	release(ex, 0, 512, 300);
}

KILLED_IN(write)
{
	run(ex, 0, EXMAP_OP_WRITE, 0, KEPT);
}

KILLED_IN(pread)
{
	if (pread(ex->fd, where(ex, 512), 300 * PAGE, 1) < 0)
		release(ex, 0, 512, 300);
	release(ex, 0, 512, 300);
}

KILLED_IN(setup)
{
	int fd = exmap_open();

	exmap_setup(fd, 64, 100, EXMAP_PAGEFAULT_ALLOC);
	close(fd);
}

KILLED_IN(clone)
{
	int fd = exmap_open();

	exmap_clone(fd, ex->fd);
	close(fd);
}

KILLED_IN(mmap)
{
	int fd = exmap_open();
	char *surface = map_surface(fd, GIB);

	exmap_setup(fd, 3, 10, EXMAP_PAGEFAULT_ALLOC);
	poke(surface + GIB / 2, 1);
	munmap(map_interface(fd, 2), PAGE);
	munmap(surface, GIB);
	close(fd);
}

/*
 * The end in any order
 */

/* What a test takes down. */
enum { SURFACE, INTERFACES, FILE_ITSELF, CLONE, STEPS };

static void take_down(struct exmap *ex, int clone, int step)
{
	switch (step) {
	case SURFACE:
		assert_ok(munmap(ex->surface, ex->size));
		break;
	case INTERFACES:
		for (int i = 0; i < 3; i++)
			assert_ok(munmap(ex->interface[i], PAGE));
		break;
	case FILE_ITSELF:
		assert_ok(close(ex->fd));
		break;
	case CLONE:
		assert_ok(close(clone));
		break;
	}
}

/*
 * Use an exmap, take some or all of it down in this order, and end. After all of it the process
 * has no page left.
 */
static void live_and_die(const int *order, int steps)
{
	long before = kib_of("/proc/self/status", "RssShmem:");
	struct exmap *ex;
	int clone;

	/* The pool, the array of interfaces, and 4 pages for each of three interfaces. */
	set_memlock((2000 + 1 + 3 * 4) * PAGE);
	drop_privileges();
	ex = fenced_exmap(PAGES, 2000, -1);
	clone = exmap_open();
	assert_ok(exmap_clone(clone, ex->fd));
	ck_assert_int_eq(alloc(ex, 0, 0, 2000), 2000);
	ck_assert_int_eq(release(ex, 1, 0, 1200), 1200);
	ck_assert_int_ge(kib_of("/proc/self/status", "RssShmem:") - before, 8000 - 1024);
	ck_assert_int_ge(cgroup_kib(), 8000);
	for (int i = 0; i < steps; i++)
		take_down(ex, clone, order[i]);
	if (steps < STEPS)
		return;
	ck_assert_int_le(labs(kib_of("/proc/self/status", "RssShmem:") - before), 1024);
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 0);
}

/* Try all orders that begin with these steps, each in a process that ends after its last step. */
static void all_orders(int *order, int steps)
{
	pid_t pid = cgroup_fork();

	if (!pid) {
		live_and_die(order, steps);
		_exit(0);
	}
	wait_child(pid, 0);
	cgroup_settle();
	for (int next = 0; next < STEPS; next++) {
		bool done = false;

		for (int i = 0; i < steps; i++)
			done |= order[i] == next;
		order[steps] = next;
		if (!done)
			all_orders(order, steps + 1);
	}
}

/* All memory is given back, whatever was taken down before the process ends, in any order. */
TEST(all_is_given_back_in_any_order, .needs = MEMCG)
{
	int order[STEPS + 1];

	cgroup_new("max");
	all_orders(order, 0);
	assert_ok(rmdir(cgroup));
}

static double seconds_since(const struct timespec *start)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec - start->tv_sec + (now.tv_nsec - start->tv_nsec) / 1e9;
}

/* How many seconds it takes to make @count exmaps, and to kill the process that has them. */
static void make_and_kill(int count, double *made, double *gone)
{
	struct timespec start;
	int ready[2];
	pid_t pid;

	assert_ok(pipe(ready));
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		struct rlimit files = { 4096, 4096 };

		assert_ok(setrlimit(RLIMIT_NOFILE, &files));
		clock_gettime(CLOCK_MONOTONIC, &start);
		for (int i = 0; i < count; i++)
			assert_ok(exmap_setup(exmap_open(), 1, 1, 0));
		*made = seconds_since(&start);
		ck_assert_int_eq(write(ready[1], made, sizeof(*made)), sizeof(*made));
		for (;;)
			pause();
	}
	ck_assert_int_eq(read(ready[0], made, sizeof(*made)), sizeof(*made));
	clock_gettime(CLOCK_MONOTONIC, &start);
	assert_ok(kill(pid, SIGKILL));
	wait_child(pid, SIGKILL);
	*gone = seconds_since(&start);
	close(ready[0]);
	close(ready[1]);
}

/*
 * The exmaps of a killed process end together, without a wait for each. That must take less than
 * three times as long as making them.
 */
TEST(exit_with_many_exmaps)
{
	int count = scaled(1600);
	double made, gone;

	make_and_kill(count, &made, &gone);
	/* Try again: the machine may have been busy with other things. */
	for (int i = 0; gone >= 3 * made && i < 2; i++)
		make_and_kill(count, &made, &gone);
	ck_assert_msg(gone < 3 * made, "%d exmaps took %.2f s to make, %.2f s to end",
		      count, made, gone);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of the end of an exmap and of its process.");
}
