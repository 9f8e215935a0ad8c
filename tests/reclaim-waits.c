// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of who waits for reclaim, and for whom reclaim waits.
 */
#include <stdatomic.h>
#include <time.h>

#include "hostile.h"
#include "starve.h"

/* Nanoseconds of CPU time that a process has had so far. */
static long cpu_time(pid_t pid)
{
	struct timespec used;
	clockid_t clock;

	ck_assert_int_eq(clock_getcpuclockid(pid, &clock), 0);
	assert_ok(clock_gettime(clock, &used));
	return used.tv_sec * 1000000000L + used.tv_nsec;
}

/* After so many seconds what waits for it is taken to wait for ever, and the other runs again. */
enum { PATIENCE = 10 };

/* Who keeps it from running, and whether that one is to. */
struct starved {
	pid_t holder, spinner;
	struct {
		atomic_bool spin;
		atomic_bool spins;
	} *shared;
};

/* A real-time task on CPU 0, which runs when it is told to. */
static void spin(struct starved *s)
{
	const struct sched_param priority = { .sched_priority = 1 };
	struct timespec now, start;

	run_on(0);
	assert_ok(sched_setscheduler(0, SCHED_FIFO, &priority));
	for (;;) {
		while (!atomic_load(&s->shared->spin))
			usleep(1000);
		clock_gettime(CLOCK_MONOTONIC, &start);
		atomic_store(&s->shared->spins, true);
		do
			clock_gettime(CLOCK_MONOTONIC, &now);
		while (atomic_load(&s->shared->spin) && now.tv_sec - start.tv_sec < PATIENCE);
		atomic_store(&s->shared->spins, false);
		while (atomic_load(&s->shared->spin))
			usleep(1000);
	}
}

/* Have a child do something on CPU 0 all the time. */
static void starved_start(struct starved *s, void (*work)(void *arg), void *arg)
{
	allow_starving(0);
	s->shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ok(s->shared);
	s->holder = fork();
	assert_ok(s->holder);
	if (!s->holder) {
		run_on(0);
		work(arg);
		_exit(1);
	}
	s->spinner = fork();
	assert_ok(s->spinner);
	if (!s->spinner)
		spin(s);
	run_on(1);
}

/* From here on it does not run. */
static void starved_begin(struct starved *s)
{
	long before = cpu_time(s->holder);

	/* It is at work, and at another place each time. */
	while (cpu_time(s->holder) - before < 2000000 + random() % 8000000)
		usleep(500);
	atomic_store(&s->shared->spin, true);
	while (!atomic_load(&s->shared->spins))
		usleep(500);
}

static void starved_end(struct starved *s)
{
	atomic_store(&s->shared->spin, false);
	while (atomic_load(&s->shared->spins))
		usleep(500);
}

static void starved_stop(struct starved *s)
{
	kill(s->spinner, SIGKILL);
	wait_child(s->spinner, SIGKILL);
	kill(s->holder, SIGKILL);
	wait_child(s->holder, SIGKILL);
}

/*
 * Do something again and again while the other does not run. If that waits for it, it runs again
 * before that is done.
 */
static void assert_not_delayed(struct starved *s, void (*what)(void *arg), void *arg)
{
	enum { ROUNDS = 40, CHANCE = 1 };
	int waited = 0;

	for (int i = 0; i < ROUNDS && waited <= CHANCE; i++) {
		starved_begin(s);
		what(arg);
		waited += !atomic_load(&s->shared->spins);
		starved_end(s);
	}
	/* The machine may have been away for long. */
	ck_assert_msg(waited <= CHANCE, "%d times it took a task that does not run", waited);
}

/* Pages go to quarantine at one interface, and are flushed from another, all the time. */
static void flush_for_ever(void *arg)
{
	struct exmap *ex;

	become_hostile();
	doomed = true;
	ex = exmap_new(512 * 2 * MIB, 1024, 2);
	for (;;) {
		/* In a page table of its own each: the flush takes a while. */
		for (int i = 0; i < 512; i++)
			entry(ex, 0, i, i * 512, 1);
		action(ex->fd, 0, EXMAP_OP_ALLOC, 512, 0);
		for (int i = 0; i < 512; i++)
			entry(ex, 0, i, i * 512, 1);
		action(ex->fd, 0, EXMAP_OP_FREE, 512, EXMAP_FREE_DEFER);
		entry(ex, 1, 0, 0, 1);
		action(ex->fd, 1, EXMAP_OP_ALLOC, 1, 0);
		entry(ex, 1, 0, 0, 1);
		action(ex->fd, 1, EXMAP_OP_FREE, 1, 0);
	}
}

static void shrink_and_set_up(void *arg)
{
	int fd;

	ck_assert(shrink());
	fd = exmap_open();
	assert_ok(exmap_setup(fd, 1, 1, 0));
	close(fd);
}

TEST(reclaim_waits_for_no_user)
{
	struct starved s;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		return;
	starved_start(&s, flush_for_ever, NULL);
	assert_not_delayed(&s, shrink_and_set_up, NULL);
	starved_stop(&s);
}

/* An exmap with many interfaces, and a page on its surface. */
static void exmap_with_a_page(void)
{
	struct rlimit files = { 4096, 4096 };
	struct exmap_iov *iov;
	void *surface;
	int fd;

	assert_ok(setrlimit(RLIMIT_NOFILE, &files));
	fd = exmap_open();
	surface = map_surface(fd, MIB);
	assert_ok(surface);
	assert_ok(exmap_setup(fd, EXMAP_MAX_INTERFACES, 1, 0));
	iov = map_interface(fd, 0);
	assert_ok(iov);
	iov->value = 1UL << 52;
	ck_assert_int_eq(action(fd, 0, EXMAP_OP_ALLOC, 1, 0), 0);
}

static void shrink_for_ever(void *arg)
{
	for (;;)
		shrink();
}

static void use_and_set_up(void *arg)
{
	struct exmap *ex = arg;
	int fd;

	for (int i = 0; i < 64; i++)
		if (alloc(ex, i, 0, 1) == 1)
			ck_assert_int_eq(release(ex, i, 0, 1), 1);
	fd = exmap_open();
	assert_ok(exmap_setup(fd, 1, 1, 0));
	close(fd);
}

/* Whoever needs memory may be of the lowest priority. */
TEST(nobody_waits_for_reclaim)
{
	int count = scaled(64);
	struct starved s;
	struct exmap *ex;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		return;
	/* It takes a while to look through them. */
	for (int i = 0; i < count; i++)
		exmap_with_a_page();
	ex = exmap_new(MIB, 1024, 64);
	starved_start(&s, shrink_for_ever, NULL);
	assert_not_delayed(&s, use_and_set_up, ex);
	starved_stop(&s);
}

/* The shortest of a few times, in seconds. */
static double time_of(void (*what)(void))
{
	struct timespec start, end;
	double seconds, best = 0;

	for (int i = 0; i < 7; i++) {
		clock_gettime(CLOCK_MONOTONIC, &start);
		what();
		clock_gettime(CLOCK_MONOTONIC, &end);
		seconds = end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9;
		best = best && best < seconds ? best : seconds;
	}
	return best;
}

static void reclaim(void)
{
	ck_assert(shrink());
}

/* How long reclaim takes does not depend on how many exmaps there are. */
TEST(reclaim_with_many_interfaces)
{
	int count = scaled(800);
	double one = 0, many;

	for (int i = 0; i < count; i++) {
		exmap_with_a_page();
		if (!i)
			one = time_of(reclaim);
	}
	many = time_of(reclaim);
	/* The machine may be busy with other things. */
	for (int i = 0; many >= 3 * one && i < 10; i++)
		many = time_of(reclaim);
	ck_assert_msg(many < 3 * one, "%.1f ms with %d exmaps, %.1f ms with one", many * 1e3, count,
		      one * 1e3);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of the exmap module: who waits for reclaim, and how long.");
}
