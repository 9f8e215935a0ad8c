// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the end of what a request in flight belongs to: it is canceled, or its ring, file,
 * thread or process goes. Each request ends once, nothing is lost, and the module is in use until
 * then.
 *
 * EXMAP_TEST_DEVICE	a fast block device with memory behind it, 64 MiB or more; is overwritten
 */
#include <sched.h>

#include "request.h"

/* Whichever of the two wins, each ends once and nothing is lost. */
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
	/* The request's own data is 0. */
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

/* The ring goes; the request ends by itself. */
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

/* libaio waits for it. */
static void *io_destroy_thread(void *arg)
{
	return (void *)(long)io_destroy(arg);
}

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

/* The surface keeps the exmap; a clone shows what is in it. */
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

/* Nothing but the request has the exmap. */
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

/* The thread that submitted is gone when the device answers. */
static void *submitting_thread(void *arg)
{
	struct request *r = arg;

	request_start(r, FIRST, PAGES);
	return NULL;
}

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
	/* Joined is not yet gone. */
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
 * Exit, with a request under way: the module is in use until it is over, and is not
 * any more afterwards.
 */
static void wait_until_without_memory(pid_t pid)
{
	char path[64], exe[1];

	/*
	 * Without, it has no program. Whoever reads "statm" or "stat" holds the memory for that
	 * moment, and libaio's requests would be waited for here where it is the last. Other
	 * threads may have it still: that of SQPOLL waits for its requests.
	 */
	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	while (readlink(path, exe, sizeof(exe)) >= 0)
		sched_yield();
	ck_assert_int_eq(errno, ENOENT);
}

/* How a process ends. */
enum end { EXIT, KILL, EXEC };

static void process_end_in_flight(enum kind kind, unsigned int ring_flags, enum end end)
{
	const long users = module_users();
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES), ready[2];
	struct request r;
	pid_t pid;
	char c;

	/* The watchdog is this process's, and it stays. */
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
