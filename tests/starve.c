// SPDX-License-Identifier: GPL-2.0
/*
 * Tests with a thread that holds an interface and does not run any more. Threads that wait for it
 * can be killed, and other users do not have to wait.
 *
 * This thread, the holder, has a CPU of its own, and stops when a real-time task takes that CPU.
 *
 * $EXMAP_TEST_DEVICE is a fast block device, $EXMAP_TEST_SLOW_DEVICE one that answers after half a
 * second. Both are overwritten.
 */
#include <libaio.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>

#include "io_common.h"
#include "starve.h"
#include "write_file.h"

enum {
	HOLDER_CPU = 1,
	HELD = 0,		/* the interface that the holder uses */
	ELSEWHERE = 1,		/* another interface */
	ENTRIES = 512,
	TABLE_PAGES = 512,	/* pages that one page table maps */
	FIRST = 300,		/* first page of a waiter; the holder does not use it */
	READS = 2200,		/* more work items than a workqueue runs at a time by default */
	PATIENCE = 60,		/* after so many seconds the holder runs again */
};

/* What the processes of a test share. */
static struct shared {
	atomic_bool spins;	/* the real-time task runs on the holder's CPU */
	atomic_bool stop;	/* the real-time task must end */
	atomic_int holder;	/* thread ID, after its first round */
	atomic_int waiter;	/* thread ID; -1 before it runs, 0 after its call */
	atomic_int step;	/* how far a child is */
	atomic_int in_kernel;	/* 1 while the waiter calls; -1 before, 0 after */
	atomic_bool served;	/* the second user has all answers */
} *shared;

static void shared_new(void)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	assert_ok(shared);
}

/* Start the real-time task, and wait until it runs. Then nothing else runs on the holder's CPU. */
static pid_t spinner_start(void)
{
	const struct sched_param priority = { .sched_priority = 1 };
	struct timespec now, start;
	pid_t pid;

	atomic_store(&shared->spins, false);
	atomic_store(&shared->stop, false);
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		run_on(HOLDER_CPU);
		if (sched_setscheduler(0, SCHED_FIFO, &priority))
			_exit(1);
		clock_gettime(CLOCK_MONOTONIC, &start);
		atomic_store(&shared->spins, true);
		do
			clock_gettime(CLOCK_MONOTONIC, &now);
		while (!atomic_load(&shared->stop) && now.tv_sec - start.tv_sec < PATIENCE);
		_exit(0);
	}
	while (!atomic_load(&shared->spins))
		assert_ok(waitpid(pid, NULL, WNOHANG));
	return pid;
}

/* End the real-time task, so that the holder runs again. */
static void spinner_stop(pid_t pid)
{
	int status;

	atomic_store(&shared->stop, true);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status) && !WEXITSTATUS(status));
}

/* The state of a thread, as in /proc/PID/stat; 0 if there is no such thread. */
static char thread_state(pid_t pid, pid_t tid)
{
	char path[64], line[512], *name_end;
	size_t len;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	f = fopen(path, "r");
	if (!f)
		return 0;
	len = fread(line, 1, sizeof(line) - 1, f);
	fclose(f);
	line[len] = 0;
	name_end = strrchr(line, ')');
	return name_end ? name_end[2] : 0;
}

/* Does a thread wait in the kernel, and not just for a moment? */
static bool thread_waits(pid_t pid, pid_t tid)
{
	for (int i = 0; i < 20; i++) {
		if (thread_state(pid, tid) != 'D')
			return false;
		usleep(1000);
	}
	return true;
}

/*
 * The holder: it allocates and frees all the time, each page in another page table. Between two
 * page tables it lets other tasks run.
 */
static void *hold(void *arg)
{
	struct exmap *ex = arg;

	run_on(HOLDER_CPU);
	for (;;) {
		for (int opcode = EXMAP_OP_ALLOC; opcode <= EXMAP_OP_FREE; opcode++) {
			for (int i = 0; i < ENTRIES; i++)
				entry(ex, HELD, i, i * TABLE_PAGES, 1);
			action(ex->fd, HELD, opcode, ENTRIES, 0);
		}
		/* Making page tables takes mmap_lock, which waiters need too: all are made now. */
		atomic_store(&shared->holder, gettid());
	}
	return NULL;
}

/*
 * Calls that wait for the held interface. The holder uses its entries, too, so their answers say
 * nothing.
 */
static void call(struct exmap *ex, int interface, int opcode, int pages, uint64_t flags)
{
	entry(ex, interface, 0, FIRST, pages);
	action(ex->fd, interface, opcode, 1, flags);
}

static void call_alloc(struct exmap *ex)
{
	call(ex, HELD, EXMAP_OP_ALLOC, 1, 0);
}

static void call_free(struct exmap *ex)
{
	call(ex, HELD, EXMAP_OP_FREE, 1, 0);
}

static void call_free_deferred(struct exmap *ex)
{
	call(ex, HELD, EXMAP_OP_FREE, 1, EXMAP_FREE_DEFER);
}

static void call_flush(struct exmap *ex)
{
	action(ex->fd, HELD, EXMAP_OP_FLUSH, 0, 0);
}

static void call_read(struct exmap *ex)
{
	call(ex, HELD, EXMAP_OP_READ, 2, 0);
}

static void call_write(struct exmap *ex)
{
	call(ex, HELD, EXMAP_OP_WRITE, 1, 0);
}

static void call_pread(struct exmap *ex)
{
	(void)!pread(ex->fd, ex->surface + FIRST * PAGE, PAGE, HELD);
}

static void call_pread_alloc(struct exmap *ex)
{
	(void)!pread(ex->fd, ex->surface + FIRST * PAGE, PAGE, HELD | EXMAP_OP_ALLOC << 8);
}

/* More pages than are free without those of the held interface, from which it must steal. */
static void call_alloc_all(struct exmap *ex)
{
	call(ex, ELSEWHERE, EXMAP_OP_ALLOC, ENTRIES + 100, 0);
	call(ex, ELSEWHERE, EXMAP_OP_FREE, ENTRIES + 100, 0);
}

typedef void (*call_fn)(struct exmap *ex);

/* A thread that makes such a call. */
struct waiter {
	struct exmap *ex;
	call_fn call;
};

static void *wait_for_holder(void *arg)
{
	struct waiter *w = arg;

	run_on(0);
	atomic_store(&shared->waiter, gettid());
	w->call(w->ex);
	atomic_store(&shared->waiter, 0);
	return NULL;
}

/*
 * Stop the holder within a call, and let another thread wait for it by @call. When this returns,
 * that thread waits. Returns the real-time task.
 */
static pid_t starve(struct exmap *ex, call_fn call)
{
	struct waiter w = { .ex = ex, .call = call };
	pthread_t thread;
	pid_t spinner;

	for (int round = 0; round < 1000; round++) {
		spinner = spinner_start();
		atomic_store(&shared->waiter, -1);
		ck_assert(!pthread_create(&thread, NULL, wait_for_holder, &w));
		while (atomic_load(&shared->waiter) == -1)
			sched_yield();
		for (;;) {
			pid_t waiter = atomic_load(&shared->waiter);

			if (!waiter)
				break;	/* the holder was in no call */
			if (thread_waits(getpid(), waiter))
				return spinner;
		}
		spinner_stop(spinner);
		ck_assert(!pthread_join(thread, NULL));
	}
	ck_abort_msg("in 1000 rounds the holder was never in a call");
}

/* A backing file of 1000 pages. */
static int small_file(void)
{
	int fd = open("/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);

	assert_ok(fd);
	assert_ok(ftruncate(fd, 1000 * PAGE));
	return fd;
}

/* An exmap, with the holder at work. */
static struct exmap *held_exmap(int file, size_t pool)
{
	struct exmap *ex = exmap_new_file(ENTRIES * TABLE_PAGES * PAGE, pool, 2, 0, file);
	pthread_t thread;

	ck_assert(!pthread_create(&thread, NULL, hold, ex));
	while (!atomic_load(&shared->holder))
		sched_yield();
	return ex;
}

/* A process whose thread waits for the holder can be killed: that thread ends at once. */
static void kill_waiter(call_fn call)
{
	pid_t pid;

	shared_new();
	allow_starving(HOLDER_CPU);
	/* A thread that begins on the holder's CPU may stay there, behind the real-time task. */
	run_on(0);
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		/* The real-time task is a child of this process, and goes on when it is killed. */
		doomed = true;
		starve(held_exmap(small_file(), 2 * ENTRIES), call);
		atomic_store(&shared->step, 1);
		for (;;)
			pause();
	}
	while (!atomic_load(&shared->step))
		ck_assert_int_eq(waitpid(pid, NULL, WNOHANG), 0);
	assert_ok(kill(pid, SIGKILL));
	while (thread_state(pid, atomic_load(&shared->waiter)))
		sched_yield();
	/* The holder has not run since: if it had, it would be gone, too. */
	ck_assert_int_ne(thread_state(pid, atomic_load(&shared->holder)), 0);
	atomic_store(&shared->stop, true);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}

#define TEST_KILL(call)								\
	TEST(killed_while_it_waits_for_##call) { kill_waiter(call_##call); }

TEST_KILL(alloc)
TEST_KILL(free)
TEST_KILL(free_deferred)
TEST_KILL(flush)
TEST_KILL(read)
TEST_KILL(write)
TEST_KILL(pread)
TEST_KILL(pread_alloc)
TEST_KILL(alloc_all)

/*
 * Two users
 */

/* The cgroup of the first one, in which device_limit() holds up reads. */
#define GROUP "/sys/fs/cgroup/exmap-starve"

/* How many pages the device has read. */
static long pages_read(int fd)
{
	struct stat st;
	long sectors;
	char path[64];
	FILE *f;

	assert_ok(fstat(fd, &st));
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/stat", major(st.st_rdev),
		 minor(st.st_rdev));
	f = fopen(path, "r");
	ck_assert_ptr_nonnull(f);
	ck_assert_int_eq(fscanf(f, "%*d %*d %ld", &sectors), 1);
	fclose(f);
	return sectors / (PAGE / 512);
}

/* Limit how many bytes of the device the first user reads per second: "max" is no limit. */
static void device_limit(int fd, const char *limit)
{
	struct stat st;
	char text[64];

	assert_ok(fstat(fd, &st));
	snprintf(text, sizeof(text), "%u:%u rbps=%s", major(st.st_rdev), minor(st.st_rdev), limit);
	write_file(GROUP "/io.max", text);
}

/* Become an ordinary user. */
static void become(uid_t uid)
{
	assert_ok(setgroups(0, NULL));
	assert_ok(setresgid(uid, uid, uid));
	assert_ok(setresuid(uid, uid, uid));
}

/* Submit the read of a page by libaio on the file of the exmap. */
static void submit(io_context_t aio, struct exmap *ex, uint64_t page, struct iocb *iocb)
{
	io_prep_pread(iocb, ex->fd, ex->surface + page * PAGE, PAGE, HELD);
	ck_assert_int_eq(io_submit(aio, 1, &iocb), 1);
}

/*
 * The first user, whose reads all wait for the held interface: they are submitted before it is
 * held, and the device answers afterwards.
 */
static void first_user(int file)
{
	static struct iocb iocbs[READS];
	io_context_t aio = NULL;
	struct exmap *ex;

	doomed = true;
	write_file(GROUP "/cgroup.procs", "0");
	device_limit(file, "2");
	set_memlock(RLIM_INFINITY);
	ex = exmap_new_file(ENTRIES * TABLE_PAGES * PAGE, 2 * ENTRIES + READS, 2, 0, file);
	ck_assert_int_eq(io_setup(READS, &aio), 0);
	become(1001);
	for (int i = 0; i < READS; i++)
		submit(aio, ex, i, &iocbs[i]);
	ck_assert(!pthread_create(&(pthread_t){ 0 }, NULL, hold, ex));
	while (!atomic_load(&shared->holder))
		sched_yield();
	/* The parent starts the real-time task, and clears the step when that runs. */
	for (int step = 1;; step++) {
		atomic_store(&shared->step, step);
		while (atomic_load(&shared->step) == step)
			sched_yield();
		atomic_store(&shared->in_kernel, 1);
		call_alloc(ex);
		atomic_store(&shared->in_kernel, 0);
		while (atomic_load(&shared->spins))
			sched_yield();
	}
}

/*
 * The second user, who reads from each CPU but the holder's. The slow device answers after
 * io_submit has returned, so a work item completes each read.
 */
static void second_user(int file)
{
	io_context_t aio = NULL;
	struct io_event event;
	struct iocb iocb;
	struct exmap *ex;

	doomed = true;
	set_memlock(RLIM_INFINITY);
	ex = exmap_new_file(READS * PAGE, READS, 1, 0, file);
	ck_assert_int_eq(io_setup(1, &aio), 0);
	become(1002);
	for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_ONLN); cpu++) {
		if (cpu == HOLDER_CPU)
			continue;
		run_on(cpu);
		submit(aio, ex, cpu, &iocb);
		ck_assert_int_eq(io_getevents(aio, 1, 1, &event, NULL), 1);
		ck_assert_int_eq(event.res, PAGE);
	}
	/* No exit here: the end of a process that uses libaio waits for all CPUs. */
	atomic_store(&shared->served, true);
	for (;;)
		pause();
}

/*
 * Asynchronous reads complete even if another user has more reads waiting than a workqueue runs at
 * a time.
 */
TEST(completions_do_not_wait_for_another_user, .needs_env = "EXMAP_TEST_SLOW_DEVICE")
{
	int file = file_open(getenv("EXMAP_TEST_DEVICE"), O_DIRECT);
	int slow = file_open(getenv("EXMAP_TEST_SLOW_DEVICE"), O_DIRECT);
	pid_t first, second, spinner;
	long done;

	shared_new();
	allow_starving(HOLDER_CPU);
	/* So that the timer that releases the reads runs on this CPU, and so do their answers. */
	run_on(0);
	file_fill(file, READS);
	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+io");
	ck_assert(!mkdir(GROUP, 0755) || errno == EEXIST);
	device_limit(file, "max");
	first = fork();
	assert_ok(first);
	if (!first)
		first_user(file);
	/* Stop the holder within a call, as starve() does. */
	for (int step = 1;; step++) {
		while (atomic_load(&shared->step) != step)
			ck_assert_int_eq(waitpid(first, NULL, WNOHANG), 0);
		spinner = spinner_start();
		atomic_store(&shared->in_kernel, -1);
		atomic_store(&shared->step, 0);
		while (atomic_load(&shared->in_kernel) == -1 ||
		       (atomic_load(&shared->in_kernel) && !thread_waits(first, first)))
			sched_yield();
		if (atomic_load(&shared->in_kernel))
			break;
		/* The holder was in no call. */
		atomic_store(&shared->spins, false);
		spinner_stop(spinner);
		ck_assert_int_lt(step, 1000);
	}
	done = pages_read(file);
	device_limit(file, "max");
	while (pages_read(file) < done + READS)
		ck_assert_int_eq(waitpid(spinner, NULL, WNOHANG), 0);

	second = fork();
	assert_ok(second);
	if (!second)
		second_user(slow);
	while (!atomic_load(&shared->served))
		ck_assert_int_eq(waitpid(second, NULL, WNOHANG), 0);
	/* The first user has waited all that time. */
	ck_assert_int_eq(thread_state(first, first), 'D');
	ck_assert_int_eq(waitpid(spinner, NULL, WNOHANG), 0);
	spinner_stop(spinner);
	assert_ok(kill(second, SIGKILL));
	ck_assert_int_eq(waitpid(second, NULL, 0), second);
	assert_ok(kill(first, SIGKILL));
	ck_assert_int_eq(waitpid(first, NULL, 0), first);
	assert_ok(rmdir(GROUP));
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests with a thread that holds an interface and does not run.");
}
