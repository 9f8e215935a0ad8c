// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of a request in flight that is canceled, or whose ring, file, thread or process ends. The
 * request ends once and no page is lost. The module stays in use until then.
 *
 * EXMAP_TEST_DEVICE	a fast block device with memory behind it, 64 MiB or more; is overwritten
 */
#include <sched.h>

#include "request.h"

/* The request may be canceled or succeed, but it and the cancel request end once each. */
static void cancel_in_flight(enum kind kind)
{
	struct request r;
	uint64_t data[2];
	int res[2], mine;

	request_in_flight(&r, kind);
	prep_rw(&r.ring, IORING_OP_ASYNC_CANCEL, -1, NULL, 0, 0)->user_data = 77;
	ring_submit(&r.ring, 1);
	res[0] = ring_wait_data(&r.ring, &data[0]);
	device_go();
	res[1] = ring_wait_data(&r.ring, &data[1]);
	/* The request's user_data is 0. */
	mine = data[0] == 77;
	ck_assert_uint_eq(data[mine], 0);
	ck_assert_uint_eq(data[!mine], 77);
	ck_assert_msg(res[mine] == (is_fixed(kind) ? 0 : PAGES * (int)PAGE) ||
		      res[mine] == -ECANCELED, "request: %d", res[mine]);
	if (res[mine] >= 0)
		assert_request_done(&r);
	ck_assert_int_eq(io_uring_cq_ready(&r.ring), 0);
	while (!whole_pool(r.ex, POOL))
		;
}
FOR_RINGS(TEST_OF_KIND, cancel_in_flight)

/* The ring is closed: the request still ends. */
static void queue_exit_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	io_uring_queue_exit(&r.ring);
	ck_assert_uint_eq(resident(r.ex, 0, 100), is_write(kind) ? PAGES : 0);
	device_go();
	if (is_write(kind))
		while (!file_holds(r.device, FIRST + PAGES - 1, 1))
			;
	while (!whole_pool(r.ex, POOL))
		;
}
FOR_RINGS(TEST_OF_KIND, queue_exit_in_flight)

static void *io_destroy_thread(void *arg)
{
	return (void *)(long)io_destroy(arg);
}

/* io_destroy() waits for the request. */
static void io_destroy_in_flight(enum kind kind)
{
	pthread_t thread;
	struct request r;

	request_in_flight(&r, kind);
	ck_assert(!pthread_create(&thread, NULL, io_destroy_thread, r.aio));
	device_go();
	pthread_join(thread, NULL);
	assert_request_done(&r);
	assert_nothing_lost(r.ex);
}
TEST_OF_KIND(io_destroy_in_flight, aio_read, AIO_READ)
TEST_OF_KIND(io_destroy_in_flight, aio_write, AIO_WRITE)

/* The exmap's file is closed. The surface keeps the exmap, and a clone lets the test look at it. */
static void close_in_flight(enum kind kind)
{
	struct request r;
	int fd = exmap_open();

	request_in_flight(&r, kind);
	assert_ok(ioctl(fd, EXMAP_IOCTL_CLONE, r.ex->fd));
	close(r.ex->fd);
	r.ex->fd = fd;
	assert_request_succeeds(&r);
	assert_nothing_lost(r.ex);
}
FOR_ALL(TEST_OF_KIND, close_in_flight)

static long module_users(void)
{
	return number_in("/sys/module/exmap/refcnt");
}

/* Only the request still holds the exmap, and with it the module. */
static void drop_all_in_flight(enum kind kind)
{
	const long users = module_users();
	struct request r;

	request_in_flight(&r, kind);
	assert_ok(munmap(r.ex->surface, r.ex->size));
	for (int i = 0; i < 2; i++)
		assert_ok(munmap(r.ex->interface[i], PAGE));
	close(r.ex->fd);
	ck_assert(request_pending(&r));
	ck_assert_int_gt(module_users(), users);
	device_go();
	assert_result(&r, is_write(kind) ? PAGES * (long)PAGE : -EPROTO);
	if (is_write(kind))
		assert_request_done(&r);
	while (module_users() != users)
		sched_yield();
}
FOR_ALL(TEST_OF_KIND, drop_all_in_flight)

/* The program closes the backing file: the exmap has a reference of its own. */
static void close_backing_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	close(r.device);
	ck_assert(request_pending(&r));
	device_go();
	assert_result(&r, PAGES * PAGE);
	r.device = open(getenv("EXMAP_TEST_DEVICE"), O_RDWR | O_DIRECT);
	assert_request_done(&r);
	assert_nothing_lost(r.ex);
}
FOR_ALL(TEST_OF_KIND, close_backing_in_flight)

static void *submitting_thread(void *arg)
{
	struct request *r = arg;

	request_start(r, FIRST, PAGES);
	return NULL;
}

/*
 * The thread that has submitted the request is gone when the device answers. The request succeeds
 * or is canceled.
 */
static void thread_exit_in_flight(enum kind kind)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES);
	pthread_t thread;
	struct request r;
	long res;

	device_stop(fd);
	request_prepare(&r, kind, fd, 0);
	ck_assert(!pthread_create(&thread, NULL, submitting_thread, &r));
	pthread_join(thread, NULL);
	/* pthread_join() may return before the kernel has removed the thread. */
	while (count_threads() > 1)
		sched_yield();
	device_go();
	res = request_wait(&r);
	ck_assert_msg(res == (long)(PAGES * PAGE) || res == -ECANCELED, "result %ld", res);
	if (res > 0)
		assert_request_done(&r);
	else if (!is_write(kind))
		assert_mapped(r.ex, 0);
	while (!whole_pool(r.ex, POOL))
		;
}
FOR_ALL(TEST_OF_KIND, thread_exit_in_flight)

/*
 * Wait until a process has given up its memory: then its link "exe" has no target. (A read of its
 * "stat" or "statm" would hold the memory meanwhile. If that were the last reference then this
 * process would have to wait for the requests of libaio.) Other threads may still have the memory,
 * such as that of SQPOLL, which waits for its requests.
 */
static void wait_until_without_memory(pid_t pid)
{
	char path[64], exe[1];

	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	while (readlink(path, exe, sizeof(exe)) >= 0)
		sched_yield();
	ck_assert_int_eq(errno, ENOENT);
}

/* How a process ends. */
enum end { EXIT, KILL, EXEC };

/*
 * A child ends with a request in flight. The module is in use until the request is over, and not
 * after that.
 */
static void process_end_in_flight(enum kind kind, unsigned int ring_flags, enum end end)
{
	const long users = module_users();
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES), ready[2];
	struct request r;
	pid_t pid;
	char c;

	/* This process starts the watchdog, so that does not end with the child. */
	device_stop(fd);
	assert_ok(pipe(ready));
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		doomed = end == KILL;
		request_prepare(&r, kind, fd, ring_flags);
		request_start(&r, FIRST, PAGES);
		if (ring_flags & IORING_SETUP_SQPOLL)
			while (io_uring_sq_ready(&r.ring))
				sched_yield();
		ck_assert(request_pending(&r));
		ck_assert_int_eq(write(ready[1], "", 1), 1);
		if (end == EXIT)
			_exit(0);
		if (end == EXEC)
			execl("/bin/true", "true", NULL);
		for (;;)
			pause();
	}
	close(ready[1]);
	ck_assert_int_eq(read(ready[0], &c, 1), 1);
	if (end == KILL)
		assert_ok(kill(pid, SIGKILL));
	if (end != EXEC) {
		wait_until_without_memory(pid);
		ck_assert_int_gt(module_users(), users);
	}
	device_go();
	wait_child(pid, end == KILL ? SIGKILL : 0);
	while (module_users() != users)
		sched_yield();
	if (is_write(kind))
		for (int page = FIRST; page < FIRST + PAGES; page++)
			ck_assert(file_holds(fd, page, 1));
}

static void exit_in_flight(enum kind kind)
{
	process_end_in_flight(kind, 0, EXIT);
}
FOR_ALL(TEST_OF_KIND, exit_in_flight)

static void kill_in_flight(enum kind kind)
{
	process_end_in_flight(kind, 0, KILL);
}
FOR_ALL(TEST_OF_KIND, kill_in_flight)

static void exec_in_flight(enum kind kind)
{
	process_end_in_flight(kind, 0, EXEC);
}
FOR_ALL(TEST_OF_KIND, exec_in_flight)

static void kill_with_sqpoll(enum kind kind)
{
	process_end_in_flight(kind, IORING_SETUP_SQPOLL, KILL);
}
FOR_RINGS(TEST_OF_KIND, kill_with_sqpoll)

static void exit_with_deferred_completions(enum kind kind)
{
	process_end_in_flight(kind, IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER, EXIT);
}
FOR_RINGS(TEST_OF_KIND, exit_with_deferred_completions)

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of the end of rings, files, threads and processes with a request in flight.\n"
			  "They overwrite the block device $EXMAP_TEST_DEVICE.");
}
