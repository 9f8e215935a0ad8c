// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of long operations. Those on a pool let other processes run, also on a kernel that does not
 * preempt itself, and hold no lock for long that a call at another exmap needs. tests/all --la57
 * runs them on such a kernel. EXMAP_TRIM_TABLES lets other threads use the same exmap.
 *
 * With EXMAP_TEST_POOL=MIB in the environment the pool has that size, and each test prints the
 * longest time for which others were held up.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "cpu.h"
#include "common.h"

/* A task that makes calls, at a priority at which it only waits for the CPU or for a lock. */
struct other {
	struct exmap *ex;
	int interface;
	int calls;		/* in a round: ALLOC; if there are two, READ */
	atomic_bool runs;
	atomic_bool stop;
	atomic_long gap;	/* the longest time between the ends of two rounds, in ns */
};

static long nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* Again and again: sleep for 50 microseconds, then ALLOC or READ a page and FREE it. */
static void *make_calls(void *arg)
{
	const struct sched_param priority = { .sched_priority = 1 };
	const struct timespec period = { .tv_nsec = 50000 };
	struct other *other = arg;
	long last, now;

	if (sched_setscheduler(0, SCHED_FIFO, &priority))
		abort();
	last = nanoseconds();
	while (!atomic_load(&other->stop)) {
		nanosleep(&period, NULL);
		for (int i = 0; i < other->calls; i++) {
			const int opcode = i ? EXMAP_OP_READ : EXMAP_OP_ALLOC;

			if (run(other->ex, other->interface, opcode, 0, 1) != 1 ||
			    release(other->ex, other->interface, 0, 1) != 1)
				abort();
		}
		now = nanoseconds();
		if (now - last > atomic_load(&other->gap))
			atomic_store(&other->gap, now - last);
		last = now;
		atomic_store(&other->runs, true);
	}
	return NULL;
}

/*
 * The number of pages in the pool: a multiple of 512. The module handles up to 512 pages at a time,
 * so this is several times as many.
 */
static long pool_pages(void)
{
	const char *mib = getenv("EXMAP_TEST_POOL");

	return mib ? atol(mib) * 256 : scaled(2) * 4096;
}

/* ALLOC or FREE all pages in one call, in entries of equal length. */
static void all_pages(struct exmap *ex, int opcode)
{
	const long each = pool_pages() / 512;

	ck_assert_int_le(each, 4095);
	for (int i = 0; i < 512; i++)
		entry(ex, 0, i, i * each, each);
	ck_assert_int_eq(action(ex->fd, 0, opcode, 512, 0), 0);
}

/* An exmap without pages. */
static void make(struct exmap *ex)
{
	ex->fd = exmap_open();
	ex->size = pool_pages() * PAGE;
	ex->surface = map_surface(ex->fd, ex->size);
	assert_ok(ex->surface);
	assert_ok(exmap_setup(ex->fd, 1, pool_pages(), 0));
	ex->interface[0] = map_interface(ex->fd, 0);
	assert_ok(ex->interface[0]);
}

static void make_mapped(struct exmap *ex)
{
	make(ex);
	all_pages(ex, EXMAP_OP_ALLOC);
}

static void make_free(struct exmap *ex)
{
	make_mapped(ex);
	all_pages(ex, EXMAP_OP_FREE);
}

static void destroy(struct exmap *ex)
{
	if (ex->surface)
		assert_ok(munmap(ex->surface, ex->size));
	assert_ok(munmap(ex->interface[0], PAGE));
	close(ex->fd);
}

static void alloc_all(struct exmap *ex)
{
	all_pages(ex, EXMAP_OP_ALLOC);
}

static void shrink_all(struct exmap *ex)
{
	ck_assert(shrink());
	ck_assert_int_lt(fdinfo(ex->fd, "pages-system"), pool_pages() / 8);
}

static void trim_all(struct exmap *ex)
{
	struct exmap_ioctl_trim trim = { };

	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_TRIM, &trim));
	ck_assert_int_ge(trim.done, pool_pages());
}

static void unmap_all(struct exmap *ex)
{
	assert_ok(munmap(ex->surface, ex->size));
	ex->surface = NULL;
}

/* A child with pages, which exits when the pipe is closed. @fd is the pipe's end, @size the PID. */
static void make_child(struct exmap *ex)
{
	struct exmap own;
	int ready[2], end[2];
	char byte = 0;
	pid_t pid;

	assert_ok(pipe(ready));
	assert_ok(pipe(end));
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		close(end[1]);
		make_mapped(&own);
		ck_assert_int_eq(write(ready[1], &byte, 1), 1);
		ck_assert_int_eq(read(end[0], &byte, 1), 0);
		_exit(0);
	}
	close(ready[1]);
	close(end[0]);
	ck_assert_int_eq(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	*ex = (struct exmap){ .fd = end[1], .size = pid };
}

static void let_exit(struct exmap *ex)
{
	close(ex->fd);
	wait_child(ex->size, 0);
}

static void nothing(struct exmap *ex)
{
}

/* Returns for which share of @time others were held up, and prints it if a size was given. */
static double report(const struct other *other, const char *what, long time)
{
	const long gap = atomic_load(&other->gap);

	if (getenv("EXMAP_TEST_POOL")) {
		printf("# %s: held up for %.3f of %.1f ms\n", what, gap / 1e6, time / 1e6);
		fflush(stdout);
	}
	return (double)gap / time;
}

/*
 * Returns for which share of @act the other process was held up. @before brings the exmap into the
 * state that @act begins with, and @after ends it.
 */
static double held_up(struct other *other, const char *what, void (*before)(struct exmap *ex),
		      void (*act)(struct exmap *ex), void (*after)(struct exmap *ex))
{
	struct exmap ex = { };
	double share;
	long time;

	before(&ex);
	atomic_store(&other->gap, 0);
	time = nanoseconds();
	act(&ex);
	time = nanoseconds() - time;
	share = report(other, what, time);
	after(&ex);
	return share;
}

static void assert_polite(const char *what, void (*before)(struct exmap *ex),
			  void (*act)(struct exmap *ex), void (*after)(struct exmap *ex))
{
	struct other *other = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	double share = 1;
	pid_t pid;

	assert_ok(other);
	run_on(sysconf(_SC_NPROCESSORS_ONLN) - 1);
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		doomed = true;
		assert_ok(prctl(PR_SET_PDEATHSIG, SIGKILL));
		other->calls = 1;
		other->ex = exmap_new(MIB, 64, 1);
		make_calls(other);
	}
	while (!atomic_load(&other->runs))
		usleep(1000);
	/* The host may have stopped the virtual machine meanwhile, so one good try is enough. */
	for (int i = 0; i < 20 && share > 0.5; i++)
		share = held_up(other, what, before, act, after);
	assert_ok(kill(pid, SIGKILL));
	wait_child(pid, SIGKILL);
	ck_assert_msg(share <= 0.5, "%s held others up for %.0f %% of its time", what, share * 100);
}

TEST(first_alloc_lets_others_run)
{
	assert_polite("the first ALLOC", make, alloc_all, destroy);
}

TEST(shrinking_lets_others_run)
{
	assert_polite("drop_caches", make_free, shrink_all, destroy);
}

TEST(trim_lets_others_run)
{
	assert_polite("TRIM", make_free, trim_all, destroy);
}

TEST(munmap_lets_others_run)
{
	assert_polite("munmap of mapped pages", make_mapped, unmap_all, destroy);
	assert_polite("munmap of free pages", make_free, unmap_all, destroy);
}

TEST(exit_lets_others_run)
{
	assert_polite("exit", make_child, let_exit, nothing);
}

/* Make the page tables of a surface, and take the pages away again. */
static void make_tables(struct exmap *ex, int tables)
{
	for (int opcode = EXMAP_OP_ALLOC; opcode <= EXMAP_OP_FREE; opcode++) {
		for (int done = 0; done < tables; done += 512) {
			for (int i = 0; i < 512; i++)
				entry(ex, 0, i, 1024 + (done + i) * 512UL, 1);
			ck_assert_int_eq(action(ex->fd, 0, opcode, 512, 0), 0);
		}
	}
}

/* Calls at the same exmap go on while EXMAP_TRIM_TABLES gives page tables back. */
TEST(trim_of_tables_lets_calls_run)
{
	enum { TABLES = 4096 };
	struct exmap_ioctl_trim trim = { .flags = EXMAP_TRIM_TABLES };
	int file = memfd_create("backing", 0);
	struct other other = { .calls = 2, .interface = 1 };
	double share = 1;
	pthread_t thread;
	long time;

	assert_ok(ftruncate(file, PAGE));
	other.ex = exmap_new_file(TABLES * 512 * PAGE + 8 * MIB, TABLES + 1024, 2, 0, file);
	run_on(sysconf(_SC_NPROCESSORS_ONLN) - 1);
	ck_assert(!pthread_create(&thread, NULL, make_calls, &other));
	while (!atomic_load(&other.runs))
		usleep(1000);
	/* The host may have stopped the virtual machine meanwhile, so one good try is enough. */
	for (int i = 0; i < 20 && share > 0.5; i++) {
		make_tables(other.ex, TABLES);
		atomic_store(&other.gap, 0);
		time = nanoseconds();
		assert_ok(ioctl(other.ex->fd, EXMAP_IOCTL_TRIM, &trim));
		time = nanoseconds() - time;
		ck_assert_uint_ge(trim.done, TABLES - 2);
		trim = (struct exmap_ioctl_trim){ .flags = EXMAP_TRIM_TABLES };
		share = report(&other, "EXMAP_TRIM_TABLES", time);
	}
	atomic_store(&other.stop, true);
	ck_assert(!pthread_join(thread, NULL));
	ck_assert_msg(share <= 0.5, "calls were held up for %.0f %% of the time", share * 100);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests that long operations let others run.");
}
