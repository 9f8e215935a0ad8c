// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of waiting in reclaim. Reclaim does not wait for calls of a user, calls do not wait for
 * reclaim, and reclaim takes no longer if there are many exmaps.
 *
 * One task, the holder, works on CPU 0 and so holds locks. When a real-time task takes that CPU,
 * the holder does not run, and what waits for its locks does not go on.
 */
#include <stdatomic.h>
#include <sys/syscall.h>
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

/* After so many seconds the holder runs again: what has waited by then would wait forever. */
enum { PATIENCE = 10 };

/* The holder, and the real-time task that keeps it from running. */
struct starved {
	pid_t holder, spinner;
	struct {
		atomic_bool spin;	/* the real-time task must run */
		atomic_bool spins;	/* it runs */
	} *shared;
};

/* The real-time task: it runs on CPU 0 while it is told to, but no longer than PATIENCE. */
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

/* Start both as children. The holder calls @work, which must never return. */
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

/* Stop the holder: it does not run until starved_end(). */
static void starved_begin(struct starved *s)
{
	long before = cpu_time(s->holder);

	/* Let it work for a random time first, so that it stops at another place each time. */
	while (cpu_time(s->holder) - before < 2000000 + random() % 8000000)
		usleep(500);
	atomic_store(&s->shared->spin, true);
	while (!atomic_load(&s->shared->spins))
		usleep(500);
}

/* Let the holder run again. */
static void starved_end(struct starved *s)
{
	atomic_store(&s->shared->spin, false);
	while (atomic_load(&s->shared->spins))
		usleep(500);
}

/* End both. */
static void starved_stop(struct starved *s)
{
	kill(s->spinner, SIGKILL);
	wait_child(s->spinner, SIGKILL);
	kill(s->holder, SIGKILL);
	wait_child(s->holder, SIGKILL);
}

/*
 * Call @what again and again while the holder does not run. A call that waits for the holder
 * returns only after the holder runs again.
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
	/* One of them may be by chance: the machine itself may have stood still for long. */
	ck_assert_msg(waited <= CHANCE, "%d calls waited for a task that does not run", waited);
}

/* The holder: it puts pages into one interface's quarantine, and flushes it from another. */
static void flush_for_ever(void *arg)
{
	struct exmap *ex;

	become_hostile();
	doomed = true;
	ex = exmap_new(512 * 2 * MIB, 1024, 2);
	for (;;) {
		/* Each page has a page table of its own, so that the flush takes a while. */
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

/* Call the shrinker, and SETUP, which takes locks that it also takes. */
static void shrink_and_set_up(void *arg)
{
	int fd;

	ck_assert(shrink());
	fd = exmap_open();
	assert_ok(exmap_setup(fd, 1, 1, 0));
	close(fd);
}

/* Reclaim does not wait for a call in which an ordinary user was stopped. */
TEST(reclaim_waits_for_no_user)
{
	struct starved s;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		return;
	starved_start(&s, flush_for_ever, NULL);
	assert_not_delayed(&s, shrink_and_set_up, NULL);
	starved_stop(&s);
}

/* Make an exmap with many interfaces, and a page on its surface. */
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

/* The holder: it calls the shrinker. */
static void shrink_for_ever(void *arg)
{
	for (;;)
		shrink();
}

/* ALLOC and FREE at many interfaces, and SETUP. */
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

/* No call waits for a task in reclaim, which may have the lowest priority. */
TEST(nobody_waits_for_reclaim)
{
	int count = scaled(64);
	struct starved s;
	struct exmap *ex;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		return;
	/* Many interfaces, so that the shrinker takes a while to look at them. */
	for (int i = 0; i < count; i++)
		exmap_with_a_page();
	ex = exmap_new(MIB, 1024, 64);
	starved_start(&s, shrink_for_ever, NULL);
	assert_not_delayed(&s, use_and_set_up, ex);
	starved_stop(&s);
}

/* A clock may go in steps of a tick, so this many calls are timed at once. */
#define CALLS 50

/* Call @what CALLS times, seven times over. Returns the shortest time that took, in seconds. */
static double time_of(void (*what)(void))
{
	struct timespec start, end;
	double seconds, best = 0;

	for (int i = 0; i < 7; i++) {
		clock_gettime(CLOCK_MONOTONIC, &start);
		for (int call = 0; call < CALLS; call++)
			what();
		clock_gettime(CLOCK_MONOTONIC, &end);
		seconds = end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9;
		best = i && best < seconds ? best : seconds;
	}
	return best;
}

static void reclaim(void)
{
	ck_assert(shrink());
}

static void call_system(void)
{
	syscall(SYS_getppid);
}

/*
 * Reclaim takes not much longer if there are many exmaps: less than a system call for each. A look
 * at each of their 1024 interfaces would take far longer than that.
 */
TEST(reclaim_with_many_interfaces)
{
	int count = scaled(800);
	double one = 0, many, most;
	struct timespec step;

	for (int i = 0; i < count; i++) {
		exmap_with_a_page();
		if (!i)
			one = time_of(reclaim);
	}
	assert_ok(clock_getres(CLOCK_MONOTONIC, &step));
	/* Each of the times may be one step of the clock too short. */
	most = 3 * one + count * time_of(call_system) + 4 * (step.tv_sec + step.tv_nsec / 1e9);
	many = time_of(reclaim);
	/* Try again: the machine may have been busy with other things. */
	for (int i = 0; many > most && i < 10; i++)
		many = time_of(reclaim);
	ck_assert_msg(many <= most, "reclaim took %.3f ms with %d exmaps, %.3f ms with one",
		      many * 1e3 / CALLS, count, one * 1e3 / CALLS);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of waiting in reclaim.");
}
