// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of asynchronous I/O: io_uring and libaio on the exmap's file, commands by
 * IORING_OP_URING_CMD, and both on the device's own file with surface pages.
 *
 * $EXMAP_TEST_DEVICE	   a fast block device with memory behind it, 64 MiB or more
 * $EXMAP_TEST_SLOW_DEVICE one that answers after half a second
 * $EXMAP_TEST_BAD_DEVICE  one whose page 50 (sectors 400 to 407) cannot be read
 * $EXMAP_TEST_ODD_DEVICE  one whose size is no multiple of 4 KiB
 * $EXMAP_TEST_NARROW	   a null_blk in configfs that takes 8 requests of a page at a time, and is
 *			   late with its answers; the tests set its bad blocks
 *
 * All are overwritten. What happens while a request is under way is tested on a
 * device that is stopped: the test enters a cgroup that may do next to no I/O
 * there, and lifts the limit when it has seen what it wants. (The slow device takes
 * the data at once and is late with the answer only.)
 */
#include <dirent.h>
#include <libaio.h>
#include <liburing.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>

#include "io_common.h"

/*
 * The stopped device
 */
#define CGROUPS "/sys/fs/cgroup"

static dev_t stopped_device;

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	ck_assert_msg(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text),
		      "write \"%s\" to %s: %s", text, path, strerror(errno));
	close(fd);
}

static void group_limit(int group, const char *limit)
{
	char path[128], text[128];

	snprintf(path, sizeof(path), CGROUPS "/exmap-test-%d/io.max", group);
	snprintf(text, sizeof(text), "%u:%u rbps=%s wbps=%s", major(stopped_device),
		 minor(stopped_device), limit, limit);
	write_file(path, text);
}

/* Let through what was stopped in a group. */
static void device_go_group(int group)
{
	group_limit(group, "max");
}

static void device_go(void)
{
	device_go_group(0);
}

/* A process that waits for the device cannot even be killed: see that it ends. */
static void start_watchdog(void)
{
	int alive[2];
	pid_t pid;

	assert_ok(pipe2(alive, O_CLOEXEC));
	pid = fork();
	assert_ok(pid);
	if (pid)
		return;
	setsid();
	dup2(alive[0], 0);
	close_range(3, ~0U, 0);
	/* Where the test has ended the device may be another's. */
	if (!poll(&(struct pollfd){ .fd = 0, .events = POLLIN }, 1, 40000)) {
		device_go_group(0);
		device_go_group(1);
	}
	_exit(0);
}

/* From now on what this process asks of the device waits, in group 0 or 1. */
static void device_stop_group(int fd, int group)
{
	static bool watched;
	struct stat st;
	char path[128];

	assert_ok(fstat(fd, &st));
	stopped_device = st.st_rdev;
	if (!watched) {
		write_file(CGROUPS "/cgroup.subtree_control", "+io");
		for (int i = 0; i < 2; i++) {
			snprintf(path, sizeof(path), CGROUPS "/exmap-test-%d", i);
			ck_assert(!mkdir(path, 0755) || errno == EEXIST);
			device_go_group(i);
		}
		start_watchdog();
		watched = true;
	}
	/*
	 * Two bytes per second, the least there is: what was saved up in the time for which
	 * earlier tests have stopped it may count (6.12), and must not do for a page.
	 */
	group_limit(group, "2");
	snprintf(path, sizeof(path), CGROUPS "/exmap-test-%d/cgroup.procs", group);
	write_file(path, "0");
}

static void device_stop(int fd)
{
	device_stop_group(fd, 0);
}

/* Open a block device; fill so many pages with generation 0. */
static int device_open(const char *variable, size_t pages)
{
	int fd = open(getenv(variable), O_RDWR | O_DIRECT | O_CLOEXEC);

	assert_ok(fd);
	file_fill(fd, pages);
	return fd;
}

/* What the block layer says of the device. */
static int device_limit(const char *variable, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/queue/%s", basename(getenv(variable)), name);
	return number_in(path);
}

/* io_uring makes threads for requests that would block: the main thread is not alone. */
static int count_threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	struct dirent *task;
	int nr = 0;

	ck_assert(dir);
	while ((task = readdir(dir)))
		nr += task->d_name[0] != '.';
	closedir(dir);
	return nr;
}

#define assert_threads(nr) ck_assert_int_eq(count_threads(), nr)

/*
 * Rings
 */
static void ring_init_flags(struct io_uring *ring, unsigned int entries, unsigned int flags)
{
	int ret = io_uring_queue_init(entries, ring, flags);

	ck_assert_msg(!ret, "io_uring_queue_init with %#x: %s", flags, strerror(-ret));
}

static void ring_init(struct io_uring *ring, unsigned int entries)
{
	ring_init_flags(ring, entries, 0);
}

static struct io_uring_sqe *ring_sqe(struct io_uring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	ck_assert(sqe);
	memset(sqe, 0, sizeof(*sqe));
	return sqe;
}

static void ring_submit(struct io_uring *ring, int nr)
{
	int ret = io_uring_submit(ring);

	/* The kernel's thread may have taken some already. */
	if (ring->flags & IORING_SETUP_SQPOLL)
		ck_assert_int_ge(ret, 0);
	else
		ck_assert_int_eq(ret, nr);
}

/* The next completion. */
static int ring_wait_data(struct io_uring *ring, uint64_t *data)
{
	struct io_uring_cqe *cqe;
	int ret, res;

	do {
		ret = io_uring_wait_cqe(ring, &cqe);
	} while (ret == -EINTR);
	ck_assert_msg(!ret, "io_uring_wait_cqe: %s", strerror(-ret));
	res = cqe->res;
	if (data)
		*data = cqe->user_data;
	io_uring_cqe_seen(ring, cqe);
	return res;
}

static int ring_wait(struct io_uring *ring)
{
	return ring_wait_data(ring, NULL);
}

/* Submit what was prepared, and wait for its result. */
static int ring_result(struct io_uring *ring)
{
	ring_submit(ring, 1);
	return ring_wait(ring);
}

#define where(ex, nr)		((ex)->surface + (nr) * PAGE)
#define place(interface, op)	((unsigned int)(op) << 8 | (interface))

static struct io_uring_sqe *prep_rw(struct io_uring *ring, int op, int fd, void *address,
				    unsigned int len, uint64_t offset)
{
	struct io_uring_sqe *sqe = ring_sqe(ring);

	io_uring_prep_rw(op, sqe, fd, address, len, offset);
	return sqe;
}

/* An exmap command on a piece of memory: of the surface, or of a registered buffer. */
static struct io_uring_sqe *prep_cmd(struct io_uring *ring, int fd, unsigned int cmd_op,
				     void *address, size_t len)
{
	struct io_uring_sqe *sqe = ring_sqe(ring);
	struct iovec iov = { address, len };

	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, fd, NULL, 0, 0);
	sqe->cmd_op = cmd_op;
	memcpy((char *)sqe + offsetof(struct io_uring_sqe, cmd), &iov, sizeof(iov));
	return sqe;
}

static struct io_uring_sqe *prep_fixed(struct io_uring *ring, int fd, unsigned int cmd_op,
				       void *entries, size_t len)
{
	struct io_uring_sqe *sqe = prep_cmd(ring, fd, cmd_op, entries, len);

	sqe->uring_cmd_flags = IORING_URING_CMD_FIXED;
	sqe->buf_index = 0;
	return sqe;
}

static int cmd(struct io_uring *ring, int fd, unsigned int cmd_op, void *address, size_t len)
{
	prep_cmd(ring, fd, cmd_op, address, len);
	return ring_result(ring);
}

static int cmd_pages(struct io_uring *ring, struct exmap *ex, int op, uint64_t page, size_t len)
{
	return cmd(ring, ex->fd, place(0, op), where(ex, page), len * PAGE);
}

/* Two pages of entries, registered as buffer 0 of a ring. */
static struct exmap_iov *ring_entries(struct io_uring *ring)
{
	struct iovec iov = { .iov_len = 2 * PAGE };
	int ret;

	iov.iov_base = mmap(NULL, iov.iov_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);
	assert_ok(iov.iov_base);
	ret = io_uring_register_buffers(ring, &iov, 1);
	ck_assert_msg(!ret, "io_uring_register_buffers: %s", strerror(-ret));
	return iov.iov_base;
}

static struct exmap_iov request_of(uint64_t page, unsigned int len)
{
	return (struct exmap_iov){ .value = (uint64_t)len << 52 | page };
}

#define assert_answer(iov, want_res, want_pages) do {				\
	struct exmap_iov iov_ = (iov);						\
	ck_assert_msg(iov_.res == (want_res) && iov_.pages == (want_pages),	\
		      "%s: res %d, pages %d, expected %d, %d", #iov, iov_.res,	\
		      iov_.pages, want_res, want_pages);			\
} while (0)

/*
 * One request, made in any of the ways that there are
 */
enum kind {
	URING_READ, URING_READV, CMD_READ, FIXED_READ, AIO_READ, AIO_READV,
	BY_ACTION, BY_PREAD,
	URING_WRITE, URING_WRITEV, CMD_WRITE, FIXED_WRITE, AIO_WRITE, AIO_WRITEV,
};

/* Each way whose path through the kernel is its own. */
#define FOR_READS(what, name)				\
	what(name, uring_read, URING_READ)		\
	what(name, cmd_read, CMD_READ)			\
	what(name, fixed_read, FIXED_READ)		\
	what(name, aio_read, AIO_READ)
#define FOR_WRITES(what, name)				\
	what(name, uring_write, URING_WRITE)		\
	what(name, cmd_write, CMD_WRITE)		\
	what(name, fixed_write, FIXED_WRITE)		\
	what(name, aio_write, AIO_WRITE)
#define FOR_ALL(what, name)				\
	FOR_READS(what, name)				\
	FOR_WRITES(what, name)
#define FOR_VECTORS(what, name)				\
	what(name, uring_readv, URING_READV)		\
	what(name, uring_writev, URING_WRITEV)		\
	what(name, aio_readv, AIO_READV)		\
	what(name, aio_writev, AIO_WRITEV)

#define TEST_OF_KIND(name, suffix, kind)		\
	TEST(name##_##suffix, ON_A_DEVICE) { name(kind); }
#define TEST_OF_KIND_SLOW(name, suffix, kind)		\
	TEST(name##_##suffix, .needs_env = "EXMAP_TEST_SLOW_DEVICE") { name(kind); }

static bool is_write(enum kind kind)
{
	return kind >= URING_WRITE;
}

static bool is_aio(enum kind kind)
{
	return kind == AIO_READ || kind == AIO_READV || kind == AIO_WRITE || kind == AIO_WRITEV;
}

static bool is_fixed(enum kind kind)
{
	return kind == FIXED_READ || kind == FIXED_WRITE;
}

struct request {
	enum kind kind;
	struct exmap *ex;
	int device;
	struct io_uring ring;
	struct exmap_iov *entries;
	io_context_t aio;
	struct iocb iocb;
	struct iovec iov[2];
	unsigned int pages;
};

static void request_init(struct request *r, enum kind kind, struct exmap *ex, int device,
			 unsigned int ring_flags)
{
	*r = (struct request){ .kind = kind, .ex = ex, .device = device };
	if (is_aio(kind)) {
		ck_assert_int_eq(io_setup(8, &r->aio), 0);
		return;
	}
	ring_init_flags(&r->ring, 8, ring_flags);
	if (is_fixed(kind))
		r->entries = ring_entries(&r->ring);
}

static void request_start_aio(struct request *r, char *start, size_t len)
{
	struct iocb *iocb = &r->iocb;
	const long offset = place(0, is_write(r->kind) ? EXMAP_OP_WRITE : EXMAP_OP_READ);

	switch (r->kind) {
	case AIO_READ:
		io_prep_pread(iocb, r->ex->fd, start, len, offset);
		break;
	case AIO_WRITE:
		io_prep_pwrite(iocb, r->ex->fd, start, len, offset);
		break;
	case AIO_READV:
		io_prep_preadv(iocb, r->ex->fd, r->iov, 2, offset);
		break;
	default:
		io_prep_pwritev(iocb, r->ex->fd, r->iov, 2, offset);
		break;
	}
	ck_assert_int_eq(io_submit(r->aio, 1, &iocb), 1);
}

/* Interface 0 is asked for so many pages (2 or more) from that one on. */
static void request_start(struct request *r, uint64_t page, unsigned int pages)
{
	static const int op[] = {
		[URING_READ] = IORING_OP_READ, [URING_READV] = IORING_OP_READV,
		[URING_WRITE] = IORING_OP_WRITE, [URING_WRITEV] = IORING_OP_WRITEV,
	};
	const unsigned int offset = place(0, is_write(r->kind) ? EXMAP_OP_WRITE : EXMAP_OP_READ);
	char *start = where(r->ex, page);

	r->pages = pages;
	r->iov[0] = (struct iovec){ start, PAGE };
	r->iov[1] = (struct iovec){ start + PAGE, (pages - 1) * PAGE };
	switch (r->kind) {
	case URING_READ:
	case URING_WRITE:
		prep_rw(&r->ring, op[r->kind], r->ex->fd, start, pages * PAGE, offset);
		break;
	case URING_READV:
	case URING_WRITEV:
		prep_rw(&r->ring, op[r->kind], r->ex->fd, r->iov, 2, offset);
		break;
	case CMD_READ:
	case CMD_WRITE:
		prep_cmd(&r->ring, r->ex->fd, offset, start, pages * PAGE);
		break;
	case FIXED_READ:
	case FIXED_WRITE:
		r->entries[0] = request_of(page, pages);
		prep_fixed(&r->ring, r->ex->fd, offset, r->entries, sizeof(*r->entries));
		break;
	default:
		request_start_aio(r, start, pages * PAGE);
		return;
	}
	ring_submit(&r->ring, 1);
}

/* Whether it is under way still. The system call is for completions that wait for one. */
static bool request_pending(struct request *r)
{
	struct io_event event;

	if (is_aio(r->kind))
		return !io_getevents(r->aio, 0, 1, &event, &(struct timespec){ });
	getppid();
	return !io_uring_cq_ready(&r->ring);
}

/* Its result: bytes, whichever way it was made, or an error. */
static long request_wait(struct request *r)
{
	struct io_event event;
	long ret;

	if (is_aio(r->kind)) {
		do {
			ret = io_getevents(r->aio, 1, 1, &event, NULL);
		} while (ret == -EINTR);
		ck_assert_int_eq(ret, 1);
		return (long)event.res;
	}
	ret = ring_wait(&r->ring);
	if (!is_fixed(r->kind) || ret < 0)
		return ret;
	ck_assert_int_eq(ret, r->entries->res < 0);
	return r->entries->res ?: r->entries->pages * (long)PAGE;
}

#define assert_result(r, want) do {						\
	long ret_ = request_wait(r), want_ = (want);				\
	ck_assert_msg(ret_ == want_, "result %ld, expected %ld", ret_, want_);	\
} while (0)

/*
 * A request of 4 pages that is under way: the surface, or the device, will have
 * generation 1 if it is written.
 */
enum { POOL = 64, FIRST = 10, PAGES = 4 };

static void request_prepare(struct request *r, enum kind kind, int fd, unsigned int ring_flags)
{
	struct exmap *ex = exmap_on(fd, POOL);

	if (is_write(kind)) {
		ck_assert_int_eq(alloc(ex, 0, FIRST, PAGES), PAGES);
		for (int page = FIRST; page < FIRST + PAGES; page++)
			fill(where(ex, page), page, 1);
	}
	request_init(r, kind, ex, fd, ring_flags);
}

static void request_in_flight_flags(struct request *r, enum kind kind, unsigned int flags)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES);

	device_stop(fd);
	request_prepare(r, kind, fd, flags);
	request_start(r, FIRST, PAGES);
	ck_assert(request_pending(r));
}

static void request_in_flight(struct request *r, enum kind kind)
{
	request_in_flight_flags(r, kind, 0);
}

/* What was read is on the surface; what was written is on the device. */
static void assert_request_done(struct request *r)
{
	for (unsigned int page = FIRST; page < FIRST + r->pages; page++)
		ck_assert_msg(is_write(r->kind) ? file_holds(r->device, page, 1)
						: holds(where(r->ex, page), page, 0),
			      "page %u is not what it must be", page);
}

static void assert_request_succeeds(struct request *r)
{
	ck_assert(request_pending(r));
	device_go();
	assert_result(r, r->pages * PAGE);
	assert_request_done(r);
}

/* The whole pool can be allocated, and no more. If not, a request has some of it. */
static bool whole_pool(struct exmap *ex, unsigned int pages)
{
	const size_t size = ex->size / PAGE < 4000 ? ex->size / PAGE : 4000;
	int got;

	ck_assert_int_ge(release(ex, 1, 0, size), 0);
	if (stats(ex).alloc_count)
		return false;
	got = alloc(ex, 1, 200, pages);
	if (got != (int)pages) {
		ck_assert_int_eq(got, -ENOMEM);
		return false;
	}
	ck_assert_int_eq(alloc(ex, 1, 0, 1), -ENOMEM);
	ck_assert_int_eq(release(ex, 1, 200, pages), pages);
	return true;
}

static void assert_nothing_lost(struct exmap *ex)
{
	ck_assert(whole_pool(ex, POOL));
}

/*
 * Submission returns before the device answers
 */
static bool submitted_at_once(struct request *r)
{
	const size_t before = is_write(r->kind) ? PAGES : 0;
	size_t mapped, there;
	int threads;

	request_start(r, FIRST, PAGES);
	threads = count_threads();
	there = resident(r->ex, 0, 100);
	mapped = stats(r->ex).alloc_count;
	if (!request_pending(r))
		return false;
	ck_assert_int_eq(threads, 1);
	ck_assert_uint_eq(there, before);
	ck_assert_uint_eq(mapped, before);
	return true;
}

static void returns_at_once(enum kind kind)
{
	int fd = device_open("EXMAP_TEST_SLOW_DEVICE", FIRST + PAGES);
	struct request r;

	request_prepare(&r, kind, fd, 0);
	/* Once more where we got no CPU before the device had answered. */
	for (int tries = 0; !submitted_at_once(&r); tries++) {
		ck_assert_msg(tries < 10, "submission waits for the device");
		assert_result(&r, PAGES * PAGE);
		if (!is_write(kind))
			ck_assert_int_eq(release(r.ex, 0, FIRST, PAGES), PAGES);
	}
	assert_result(&r, PAGES * PAGE);
	assert_mapped(r.ex, PAGES);
	assert_request_done(&r);
	assert_nothing_lost(r.ex);
}
FOR_ALL(TEST_OF_KIND_SLOW, returns_at_once)
FOR_VECTORS(TEST_OF_KIND_SLOW, returns_at_once)

static void in_flight(enum kind kind)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES);
	struct request r;

	device_stop(fd);
	request_prepare(&r, kind, fd, 0);
	ck_assert(submitted_at_once(&r));
	/* What is written stays mapped. */
	assert_fdinfo(r.ex->fd, "pages-in-flight", is_write(kind) ? 0 : PAGES);
	assert_pages_add_up(r.ex->fd);
	assert_request_succeeds(&r);
	assert_threads(1);
	assert_mapped(r.ex, PAGES);
	assert_fdinfo(r.ex->fd, "pages-in-flight", 0);
	assert_fdinfo(r.ex->fd, is_write(kind) ? "writes" : "reads", PAGES);
	assert_fdinfo(r.ex->fd, is_write(kind) ? "reads" : "writes", 0);
	assert_pages_add_up(r.ex->fd);
	assert_nothing_lost(r.ex);
}
FOR_ALL(TEST_OF_KIND, in_flight)
FOR_VECTORS(TEST_OF_KIND, in_flight)

/* The kernel's own thread submits. */
static void with_sqpoll(enum kind kind)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES);
	struct request r;

	device_stop(fd);
	request_prepare(&r, kind, fd, IORING_SETUP_SQPOLL);
	request_start(&r, FIRST, PAGES);
	/* It has taken it from the queue. */
	while (io_uring_sq_ready(&r.ring))
		sched_yield();
	ck_assert(request_pending(&r));
	assert_request_succeeds(&r);
	assert_threads(2);
	assert_nothing_lost(r.ex);
}

/* Completions are only dealt with when they are asked for. */
static void with_deferred_completions(enum kind kind)
{
	struct request r;

	request_in_flight_flags(&r, kind, IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER);
	assert_request_succeeds(&r);
	assert_nothing_lost(r.ex);
}

/* A worker thread does it, and may wait. */
static void with_worker_threads(enum kind kind)
{
	const unsigned int offset = place(0, is_write(kind) ? EXMAP_OP_WRITE : EXMAP_OP_READ);
	struct io_uring_sqe *sqe;
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES);
	struct request r;

	request_prepare(&r, kind, fd, 0);
	for (int i = 0; i < 100; i++) {
		r.pages = PAGES;
		if (is_fixed(kind)) {
			r.entries[0] = request_of(FIRST, PAGES);
			sqe = prep_fixed(&r.ring, r.ex->fd, offset, r.entries, sizeof(*r.entries));
		} else if (kind == CMD_READ || kind == CMD_WRITE) {
			sqe = prep_cmd(&r.ring, r.ex->fd, offset, where(r.ex, FIRST), PAGES * PAGE);
		} else {
			sqe = prep_rw(&r.ring, is_write(kind) ? IORING_OP_WRITE : IORING_OP_READ,
				      r.ex->fd, where(r.ex, FIRST), PAGES * PAGE, offset);
		}
		sqe->flags |= IOSQE_ASYNC;
		ring_submit(&r.ring, 1);
		assert_result(&r, PAGES * PAGE);
		assert_request_done(&r);
		if (!is_write(kind))
			ck_assert_int_eq(release(r.ex, 0, FIRST, PAGES), PAGES);
	}
	assert_nothing_lost(r.ex);
}

#define FOR_RINGS(what, name)				\
	what(name, uring_read, URING_READ)		\
	what(name, cmd_read, CMD_READ)			\
	what(name, fixed_read, FIXED_READ)		\
	what(name, uring_write, URING_WRITE)		\
	what(name, cmd_write, CMD_WRITE)		\
	what(name, fixed_write, FIXED_WRITE)

FOR_RINGS(TEST_OF_KIND, with_sqpoll)
FOR_RINGS(TEST_OF_KIND, with_deferred_completions)
FOR_RINGS(TEST_OF_KIND, with_worker_threads)

/* There is nothing to poll. Commands are for the kernel to decide: 7.3 lets them complete. */
TEST(iopoll_is_refused, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", 20);
	struct exmap *ex = exmap_on(fd, POOL);
	struct io_uring ring;
	int res;

	ring_init_flags(&ring, 8, IORING_SETUP_IOPOLL);
	prep_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 1), PAGE, 0);
	ck_assert_int_eq(ring_result(&ring), -EOPNOTSUPP);
	assert_mapped(ex, 0);
	res = cmd_pages(&ring, ex, EXMAP_OP_READ, 2, 1);
	ck_assert_msg(res == -EOPNOTSUPP || res == PAGE, "%d", res);
	ck_assert(res < 0 || holds(where(ex, 2), 2, 0));
	assert_nothing_lost(ex);
}

/* Each shape of ring carries commands and reads. */
TEST(rings_of_all_shapes, ON_A_DEVICE)
{
	static const unsigned int flags[] = {
		0, IORING_SETUP_SQE128, IORING_SETUP_CQE32,
		IORING_SETUP_SQE128 | IORING_SETUP_CQE32, IORING_SETUP_COOP_TASKRUN,
		IORING_SETUP_SINGLE_ISSUER,
		IORING_SETUP_SQPOLL | IORING_SETUP_SQE128,
		IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_CQE32,
	};
	int fd = device_open("EXMAP_TEST_DEVICE", 20);
	struct exmap *ex = exmap_on(fd, POOL);

	for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
		struct io_uring ring;

		ring_init_flags(&ring, 8, flags[i]);
		ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 3, 2), 2 * PAGE);
		ck_assert(holds(where(ex, 4), 4, 0));
		ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_FREE, 3, 2), 2 * PAGE);
		prep_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 1), PAGE, 0);
		ck_assert_int_eq(ring_result(&ring), PAGE);
		ck_assert(holds(where(ex, 1), 1, 0));
		ck_assert_int_eq(release(ex, 0, 1, 1), 1);
		io_uring_queue_exit(&ring);
	}
	assert_nothing_lost(ex);
}

TEST(registered_file, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", 20);
	struct exmap *ex = exmap_on(fd, POOL);
	struct io_uring ring;

	ring_init(&ring, 8);
	ck_assert_int_eq(io_uring_register_files(&ring, &ex->fd, 1), 0);
	prep_rw(&ring, IORING_OP_READ, 0, where(ex, 1), PAGE, 0)->flags |= IOSQE_FIXED_FILE;
	ck_assert_int_eq(ring_result(&ring), PAGE);
	prep_cmd(&ring, 0, place(1, EXMAP_OP_READ), where(ex, 2), PAGE)->flags |= IOSQE_FIXED_FILE;
	ck_assert_int_eq(ring_result(&ring), PAGE);
	ck_assert(holds(where(ex, 1), 1, 0) && holds(where(ex, 2), 2, 0));
	assert_nothing_lost(ex);
}

/*
 * Results and errors of READ, READV, WRITE and WRITEV: as of pread and pwrite
 */
static int uring_rw(struct io_uring *ring, int op, int fd, char *start, size_t len,
		    uint64_t offset)
{
	static struct iovec iov;

	iov = (struct iovec){ start, len };
	if (op == IORING_OP_READV || op == IORING_OP_WRITEV)
		prep_rw(ring, op, fd, &iov, 1, offset);
	else
		prep_rw(ring, op, fd, start, len, offset);
	return ring_result(ring);
}

TEST_BOTH(uring_refusals)
{
	static const int reads[] = { IORING_OP_READ, IORING_OP_READV };
	static const int writes[] = { IORING_OP_WRITE, IORING_OP_WRITEV };
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), POOL);
	char *s = ex->surface, *elsewhere = aligned_alloc(PAGE, PAGE);
	const uint64_t write = place(0, EXMAP_OP_WRITE);
	struct io_uring ring;

	ring_init(&ring, 8);
	for (int i = 0; i < 2; i++) {
		int op = reads[i];

		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, 2), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, 255), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, EXMAP_OP_FREE << 8), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, write), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, 1 << 16), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, 100, 0), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s + 8, PAGE, 0), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s + ex->size, PAGE, 0), -EFAULT);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s + ex->size - PAGE, 2 * PAGE, 0),
				 -EFAULT);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, elsewhere, PAGE, 0), -EFAULT);
		op = writes[i];
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, write), -EFAULT);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, 0), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, write | 2), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, elsewhere, PAGE, write), -EFAULT);
	}
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
	assert_ok(munmap(s, ex->size));
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, s, PAGE, 0), -EPROTO);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READV, ex->fd, s, PAGE, 0), -EPROTO);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_WRITE, ex->fd, s, PAGE, write), -EPROTO);
}

TEST_BOTH(uring_ends_early)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 20);
	struct iovec iov[3] = {
		{ where(ex, 100), 8 * PAGE },
		{ where(ex, 300), 13 * PAGE },
		{ where(ex, 400), PAGE },
	};
	struct io_uring ring;

	ring_init(&ring, 8);
	/* No memory for the second. */
	prep_rw(&ring, IORING_OP_READV, ex->fd, iov, 3, 0);
	ck_assert_int_eq(ring_result(&ring), 8 * PAGE);
	assert_mapped(ex, 8);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, iov[1].iov_base, 13 * PAGE, 0),
			 -ENOMEM);
	/* What is there already counts, and stays. */
	fill(where(ex, 101), 101, 9);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 99), 10 * PAGE, 0),
			 10 * PAGE);
	ck_assert(holds(where(ex, 99), 99, 0) && holds(where(ex, 101), 101, 9) &&
		  holds(where(ex, 108), 108, 0));
	/* The next page is not mapped. */
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_WRITE, ex->fd, where(ex, 107), 4 * PAGE,
				  place(1, EXMAP_OP_WRITE)), 2 * PAGE);
	/* ALLOC reads nothing. */
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 500), 2 * PAGE,
				  place(1, EXMAP_OP_ALLOC)), 2 * PAGE);
	ck_assert(!holds(where(ex, 500), 500, 0));
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 600), 0, 0), 0);
	assert_mapped(ex, 12);
	ck_assert(whole_pool(ex, 20));
}

TEST(uring_at_the_end_of_the_file)
{
	int fd = backing_open(false, O_RDWR);
	struct exmap *ex = exmap_on(fd, POOL);
	struct io_uring ring;

	ring_init(&ring, 8);
	assert_ok(ftruncate(fd, 410 * PAGE + 100));
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 408), 5 * PAGE, 0),
			 3 * PAGE);
	ck_assert(holds(where(ex, 409), 409, 0));
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 411), PAGE, 0), 0);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 411, 2), 0);
	assert_mapped(ex, 3);
	assert_nothing_lost(ex);
}

/* The same where nothing is known before the device has answered. */
TEST(uring_at_the_end_of_the_device, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", 1);
	const size_t pages = lseek(fd, 0, SEEK_END) / PAGE;
	struct exmap *ex = exmap_new_file((pages + 1000) * PAGE, POOL, 2, 0, fd);
	struct io_uring ring;

	ring_init(&ring, 8);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, pages - 2), 5 * PAGE, 0),
			 2 * PAGE);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, pages), PAGE, 0), 0);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, pages, 3), 0);
	ck_assert_int_eq(alloc(ex, 0, pages, 2), 2);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_WRITE, pages - 1, 3), PAGE);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_WRITE, pages, 1), -ENOSPC);
	ck_assert_int_eq(release(ex, 0, pages - 2, 10), 4);
	assert_nothing_lost(ex);
}

/*
 * The last page of a device that ends within it: written as far as the device goes, it counts,
 * as it does when it is read.
 */
#define FOR_WRITE_DOORS(what, name)			\
	FOR_WRITES(what, name)				\
	what(name, action, BY_ACTION)			\
	what(name, pwrite, BY_PREAD)
#define TEST_OF_KIND_ODD(name, suffix, kind)		\
	TEST(name##_##suffix, .needs_env = "EXMAP_TEST_ODD_DEVICE") { name(kind); }

/* Returns bytes, or an error. */
static long write_by(struct request *r, uint64_t page, unsigned int pages)
{
	struct exmap *ex = r->ex;
	long ret;

	switch (r->kind) {
	case BY_ACTION:
		ret = run(ex, 0, EXMAP_OP_WRITE, page, pages);
		return ret < 0 ? ret : ret * (long)PAGE;
	case BY_PREAD:
		ret = pwrite(ex->fd, where(ex, page), pages * PAGE, place(0, EXMAP_OP_WRITE));
		return ret < 0 ? -errno : ret;
	default:
		request_start(r, page, pages);
		return request_wait(r);
	}
}

static void last_page_on(enum kind kind, int flags)
{
	const bool by_entry = kind == BY_ACTION || is_fixed(kind);
	int fd = open(getenv("EXMAP_TEST_ODD_DEVICE"), O_RDWR | O_CLOEXEC | flags);
	const size_t size = lseek(fd, 0, SEEK_END), last = size / PAGE, tail = size % PAGE;
	struct exmap *ex = exmap_new_file((last + 300) * PAGE, POOL, 2, 0, fd);
	char *buffer = aligned_alloc(PAGE, PAGE);
	struct request r = { .kind = kind, .ex = ex };

	assert_ok(fd);
	ck_assert_uint_ne(tail, 0);
	if (kind != BY_ACTION && kind != BY_PREAD)
		request_init(&r, kind, ex, fd, 0);
	for (unsigned int generation = 1; generation <= 2; generation++) {
		const unsigned int pages = generation == 1 ? 4 : 1;
		const uint64_t first = last + 1 - pages;

		ck_assert_int_eq(alloc(ex, 0, first, pages), pages);
		for (uint64_t page = first; page <= last; page++)
			fill(where(ex, page), page, generation);
		ck_assert_int_eq(write_by(&r, first, pages), pages * PAGE);
		ck_assert_int_eq(pread(fd, buffer, PAGE, last * PAGE), tail);
		ck_assert(!memcmp(buffer, where(ex, last), tail));
		for (uint64_t page = first; page < last; page++)
			ck_assert(file_holds(fd, page, generation));
		ck_assert_int_eq(release(ex, 0, first, pages), pages);
		ck_assert_int_eq(run(ex, 0, EXMAP_OP_READ, first, pages), pages);
		ck_assert(!memcmp(buffer, where(ex, last), tail));
		for (size_t i = tail; i < PAGE; i++)
			ck_assert_int_eq(where(ex, last)[i], 0);
		ck_assert_int_eq(release(ex, 0, first, pages), pages);
	}
	assert_fdinfo(ex->fd, "writes", 5);
	/* There is no more. */
	ck_assert_int_eq(alloc(ex, 0, last, 2), 2);
	ck_assert_int_eq(write_by(&r, last, 2), by_entry ? -ENOSPC : (long)PAGE);
	ck_assert_int_eq(write_by(&r, last + 1, 1), -ENOSPC);
	assert_fdinfo(ex->fd, "writes", 6);
	assert_nothing_lost(ex);
}

static void last_page_of_a_device(enum kind kind)
{
	last_page_on(kind, O_DIRECT);
	last_page_on(kind, 0);
}
FOR_WRITE_DOORS(TEST_OF_KIND_ODD, last_page_of_a_device)

TEST(read_fixed_on_the_exmap_is_einval)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	struct exmap_iov *buffer;
	struct io_uring ring;

	ring_init(&ring, 8);
	buffer = ring_entries(&ring);
	prep_rw(&ring, IORING_OP_READ_FIXED, ex->fd, buffer, PAGE, 0);
	ck_assert_int_eq(ring_result(&ring), -EINVAL);
	prep_rw(&ring, IORING_OP_WRITE_FIXED, ex->fd, buffer, PAGE, place(0, EXMAP_OP_WRITE));
	ck_assert_int_eq(ring_result(&ring), -EINVAL);
	assert_nothing_lost(ex);
}

/* A buffer that the kernel picks is not on the surface. */
TEST(provided_buffer_is_refused)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	char *buffer = aligned_alloc(PAGE, 4 * PAGE);
	struct io_uring_sqe *sqe;
	struct io_uring ring;

	ring_init(&ring, 8);
	sqe = ring_sqe(&ring);
	io_uring_prep_provide_buffers(sqe, buffer, PAGE, 4, 7, 0);
	ck_assert_int_ge(ring_result(&ring), 0);
	sqe = prep_rw(&ring, IORING_OP_READ, ex->fd, NULL, PAGE, 0);
	sqe->flags |= IOSQE_BUFFER_SELECT;
	sqe->buf_group = 7;
	ck_assert_int_eq(ring_result(&ring), -EFAULT);
	assert_nothing_lost(ex);
}

TEST(uring_before_setup_or_without_a_file)
{
	int fd = exmap_open();
	char *surface = map_surface(fd, MIB);
	struct exmap_iov *entries;
	struct io_uring ring;

	ring_init(&ring, 8);
	entries = ring_entries(&ring);
	entries[0] = request_of(1, 1);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, fd, surface, PAGE, 0), -EBADF);
	ck_assert_int_eq(cmd(&ring, fd, place(0, EXMAP_OP_ALLOC), surface, PAGE), -EBADF);
	prep_fixed(&ring, fd, place(0, EXMAP_OP_ALLOC), entries, 8);
	ck_assert_int_eq(ring_result(&ring), -EBADF);
	assert_ok(exmap_setup(fd, 1, 10, 0));
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, fd, surface, PAGE, 0), -EOPNOTSUPP);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, fd, surface, PAGE, EXMAP_OP_ALLOC << 8),
			 PAGE);
	ck_assert_int_eq(cmd(&ring, fd, place(0, EXMAP_OP_READ), surface, PAGE), -EOPNOTSUPP);
	ck_assert_int_eq(cmd(&ring, fd, place(0, EXMAP_OP_WRITE), surface, PAGE), -EOPNOTSUPP);
	prep_fixed(&ring, fd, place(0, EXMAP_OP_READ), entries, 8);
	ck_assert_int_eq(ring_result(&ring), -EOPNOTSUPP);
	ck_assert_uint_eq(entries[0].value, request_of(1, 1).value);
	ck_assert_int_eq(cmd(&ring, fd, place(0, EXMAP_OP_FREE), surface, 4 * PAGE), 4 * PAGE);
}

TEST(uring_without_a_surface_is_eproto)
{
	char *memory = aligned_alloc(PAGE, PAGE);
	struct exmap_iov *entries;
	struct io_uring ring;
	int fd = exmap_open();

	assert_ok(exmap_setup_file(fd, 1, 100, 0, backing_open(false, O_RDWR)));
	ring_init(&ring, 8);
	entries = ring_entries(&ring);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, fd, memory, PAGE, 0), -EPROTO);
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++) {
		ck_assert_int_eq(cmd(&ring, fd, place(0, op), memory, PAGE), -EPROTO);
		entries[0] = request_of(1, 1);
		prep_fixed(&ring, fd, place(0, op), entries, 8);
		ck_assert_int_eq(ring_result(&ring), -EPROTO);
		ck_assert_uint_eq(entries[0].value, request_of(1, 1).value);
	}
}

/* Neither by its own ring, nor by one that it shares with the owner. */
TEST(uring_of_another_process_is_eperm)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	struct io_uring shared, own;
	struct exmap_iov *entries;
	struct iocb iocb, *iocbs = &iocb;
	struct io_event event;
	io_context_t aio = NULL;
	pid_t pid;

	ring_init(&shared, 8);
	pid = fork();
	if (!pid) {
		ring_init(&own, 8);
		for (struct io_uring *ring = &own; ring; ring = ring == &own ? &shared : NULL) {
			ck_assert_int_eq(uring_rw(ring, IORING_OP_READ, ex->fd, ex->surface, PAGE,
						  0), -EPERM);
			ck_assert_int_eq(uring_rw(ring, IORING_OP_WRITE, ex->fd, ex->surface, PAGE,
						  place(0, EXMAP_OP_WRITE)), -EPERM);
			for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++)
				ck_assert_int_eq(cmd_pages(ring, ex, op, 0, 1), -EPERM);
		}
		entries = ring_entries(&own);
		entries[0] = request_of(1, 1);
		prep_fixed(&own, ex->fd, place(0, EXMAP_OP_ALLOC), entries, 8);
		ck_assert_int_eq(ring_result(&own), -EPERM);
		ck_assert_int_eq(io_setup(1, &aio), 0);
		io_prep_pread(&iocb, ex->fd, ex->surface, PAGE, 0);
		if (io_submit(aio, 1, &iocbs) == 1) {
			ck_assert_int_eq(io_getevents(aio, 1, 1, &event, NULL), 1);
			ck_assert_int_eq((long)event.res, -EPERM);
		}
		_exit(0);
	}
	wait_child(pid, 0);
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
}

static long libaio_result(io_context_t aio, struct iocb *iocb)
{
	struct io_event event;
	int ret = io_submit(aio, 1, &iocb);

	if (ret != 1)
		return ret;
	ck_assert_int_eq(io_getevents(aio, 1, 1, &event, NULL), 1);
	return event.res;
}

/*
 * Whoever carries a request out for a process has its memory, and is told whose it is by
 * that. The one that has none is the kernel thread for libaio's fsync.
 */
TEST(threads_for_another_process_get_eperm)
{
	static const int flags[] = { 0, IORING_SETUP_SQPOLL };
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	struct io_uring ring, shared;
	io_context_t aio = NULL;
	struct iocb iocb;
	pid_t pid;

	ring_init_flags(&shared, 8, IORING_SETUP_SQPOLL);
	pid = fork();
	if (!pid) {
		for (int i = 0; i < 2; i++) {
			ring_init_flags(&ring, 8, flags[i]);
			prep_rw(&ring, IORING_OP_READ, ex->fd, ex->surface, PAGE, 0)->flags |=
				IOSQE_ASYNC;
			ck_assert_int_eq(ring_result(&ring), -EPERM);
			prep_cmd(&ring, ex->fd, place(0, EXMAP_OP_ALLOC), ex->surface, PAGE)->flags |=
				IOSQE_ASYNC;
			ck_assert_int_eq(ring_result(&ring), -EPERM);
			ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_ALLOC, 0, 1), -EPERM);
			prep_rw(&ring, IORING_OP_FSYNC, ex->fd, NULL, 0, 0);
			ck_assert_int_eq(ring_result(&ring), -EPERM);
		}
		ck_assert_int_eq(io_setup(1, &aio), 0);
		io_prep_pread(&iocb, ex->fd, ex->surface, PAGE, place(0, EXMAP_OP_ALLOC));
		ck_assert_int_eq(libaio_result(aio, &iocb), -EPERM);
		io_prep_pwrite(&iocb, ex->fd, ex->surface, PAGE, place(0, EXMAP_OP_WRITE));
		ck_assert_int_eq(libaio_result(aio, &iocb), -EPERM);
		/* That is what the kernel says of every file that does not know. */
		io_prep_poll(&iocb, ex->fd, POLLIN);
		ck_assert_int_eq(libaio_result(aio, &iocb), POLLIN);
		io_prep_fsync(&iocb, ex->fd);
		ck_assert_int_eq(libaio_result(aio, &iocb), 0);
		/* This ring's thread is the parent's, whoever fills the queue. */
		ck_assert_int_eq(uring_rw(&shared, IORING_OP_READ, ex->fd, ex->surface, PAGE, 0),
				 PAGE);
		_exit(0);
	}
	wait_child(pid, 0);
	assert_mapped(ex, 1);
	ck_assert(holds(ex->surface, 0, 0));
	assert_nothing_lost(ex);
}

/*
 * Commands
 */
TEST_BOTH(cmd_on_a_range)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, POOL);
	struct io_uring ring;

	ring_init(&ring, 8);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_ALLOC, 10, 3), 3 * PAGE);
	assert_mapped(ex, 3);
	for (int page = 10; page < 13; page++)
		fill(where(ex, page), page, 4);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_ALLOC, 9, 5), 5 * PAGE);
	assert_mapped(ex, 5);
	ck_assert(holds(where(ex, 11), 11, 4));
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_WRITE, 10, 3), 3 * PAGE);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_WRITE, 10, 5), 4 * PAGE);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_FREE, 9, 5), 5 * PAGE);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_FREE, 9, 5), 5 * PAGE);
	assert_mapped(ex, 0);
	ck_assert_int_eq(cmd(&ring, ex->fd, place(1, EXMAP_OP_READ), where(ex, 10), 5 * PAGE),
			 5 * PAGE);
	for (int page = 10; page < 13; page++)
		ck_assert(holds(where(ex, page), page, 4));
	ck_assert(holds(where(ex, 14), 14, 0));
	assert_nothing_lost(ex);
}

TEST_BOTH(cmd_refusals)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), POOL);
	char *s = ex->surface, *elsewhere = aligned_alloc(PAGE, PAGE);
	struct io_uring ring;

	ring_init(&ring, 8);
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++) {
		ck_assert_int_eq(cmd(&ring, ex->fd, place(2, op), s, PAGE), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(255, op), s, PAGE), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op) | 1 << 16, s, PAGE), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op) | 1U << 31, s, PAGE), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s, 100), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s + 8, PAGE), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s - PAGE, PAGE), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s + ex->size, PAGE), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s, ex->size + PAGE), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s + PAGE, -PAGE), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s, 1UL << 63), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), elsewhere, PAGE), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), NULL, PAGE), -EFAULT);
	}
	ck_assert_int_eq(cmd(&ring, ex->fd, place(0, 4), s, PAGE), -EINVAL);
	ck_assert_int_eq(cmd(&ring, ex->fd, place(0, 255), s, PAGE), -EINVAL);
	ck_assert_int_eq(cmd(&ring, ex->fd, place(0, EXMAP_OP_WRITE), s, PAGE), -EFAULT);
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
	assert_ok(munmap(s, ex->size));
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++)
		ck_assert_msg(cmd(&ring, ex->fd, place(0, op), s, PAGE) == -EPROTO, "op %d", op);
}

TEST_BOTH(cmd_without_memory)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 10);
	struct io_uring ring;

	ring_init(&ring, 8);
	ck_assert_int_eq(alloc(ex, 1, 0, 10), 10);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_ALLOC, 50, 1), -ENOMEM);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 50, 1), -ENOMEM);
	assert_mapped(ex, 10);
	ck_assert_int_eq(release(ex, 1, 0, 10), 10);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 50, 11), -ENOMEM);
	ck_assert(whole_pool(ex, 10));
}

/* A result is an int: it cannot say more than this. */
TEST(cmd_on_a_very_long_range)
{
	struct exmap *ex = exmap_new_file(16 * GIB, POOL, 2, 0, backing_open(false, O_RDWR));
	static const size_t len[] = { 2 * GIB, 4 * GIB, 8 * GIB };
	struct io_uring ring;

	ring_init(&ring, 8);
	for (int i = 0; i < 3; i++) {
		int res = cmd(&ring, ex->fd, place(0, EXMAP_OP_FREE), ex->surface, len[i]);

		ck_assert_msg((res > 0 && res % PAGE == 0) || res == -EINVAL, "%d", res);
		res = cmd(&ring, ex->fd, place(0, EXMAP_OP_ALLOC), ex->surface, len[i]);
		ck_assert_msg(res == -ENOMEM || res == -EINVAL || res == POOL * PAGE, "%d", res);
		ck_assert_int_ge(release(ex, 0, 0, POOL), 0);
		assert_mapped(ex, 0);
	}
	assert_nothing_lost(ex);
}

TEST_BOTH(fixed_batch)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 600);
	struct exmap_iov *iov;
	struct io_uring ring;

	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	for (int i = 0; i < 512; i++)
		iov[i] = request_of((i * 37) % FILE_PAGES, 1);
	prep_fixed(&ring, ex->fd, place(1, EXMAP_OP_READ), iov, 512 * 8);
	ck_assert_int_eq(ring_result(&ring), 0);
	for (int i = 0; i < 512; i++) {
		assert_answer(iov[i], 0, 1);
		ck_assert(holds(where(ex, (i * 37) % FILE_PAGES), i * 37 % FILE_PAGES, 0));
		fill(where(ex, (i * 37) % FILE_PAGES), i * 37 % FILE_PAGES, 6);
	}
	assert_mapped(ex, 512);
	/* In the middle of the buffer, across the end of its first page. */
	iov += 300;
	for (int i = 0; i < 512; i++)
		iov[i] = request_of((i * 37) % FILE_PAGES, 1);
	iov[512].value = 42;
	prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_WRITE), iov, 512 * 8);
	ck_assert_int_eq(ring_result(&ring), 0);
	for (int i = 0; i < 512; i++) {
		assert_answer(iov[i], 0, 1);
		iov[i] = request_of((i * 37) % FILE_PAGES, 1);
	}
	prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_FREE), iov, 512 * 8);
	ck_assert_int_eq(ring_result(&ring), 0);
	for (int i = 0; i < 512; i++)
		assert_answer(iov[i], 0, 1);
	ck_assert_uint_eq(iov[512].value, 42);
	assert_mapped(ex, 0);
	for (int i = 0; i < 512; i += 50)
		ck_assert(file_holds(fd, (i * 37) % FILE_PAGES, 6));
	ck_assert(whole_pool(ex, 600));
}

TEST_BOTH(fixed_counts_failures)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), POOL);
	struct exmap_iov *iov;
	struct io_uring ring;

	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++) {
		iov[0] = request_of(10, 2);
		iov[1] = request_of(2 * FILE_PAGES, 1);
		iov[2] = request_of(20, 1);
		iov[3] = request_of(2 * FILE_PAGES - 1, 2);
		iov[4] = request_of(30, 0);
		prep_fixed(&ring, ex->fd, place(0, op), iov, 5 * 8);
		ck_assert_int_eq(ring_result(&ring), 2);
		/* READ maps them, ALLOC finds them, FREE unmaps them, WRITE finds none. */
		assert_answer(iov[0], 0, op == EXMAP_OP_READ || op == EXMAP_OP_FREE ? 2 : 0);
		assert_answer(iov[1], -EFAULT, 0);
		assert_answer(iov[2], 0, op == EXMAP_OP_READ || op == EXMAP_OP_FREE ? 1 : 0);
		assert_answer(iov[3], -EFAULT, 0);
		assert_answer(iov[4], 0, 0);
	}
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
}

TEST_BOTH(fixed_without_memory)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 10);
	struct exmap_iov *iov;
	struct io_uring ring;

	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_ALLOC; op++) {
		/* The first has none: nothing happened. */
		iov[0] = request_of(0, 11);
		iov[1] = request_of(20, 1);
		prep_fixed(&ring, ex->fd, place(0, op), iov, 2 * 8);
		if (op == EXMAP_OP_READ) {
			ck_assert_int_eq(ring_result(&ring), -ENOMEM);
			assert_mapped(ex, 0);
		} else {
			/* ALLOC keeps what it got, as it does by ACTION. */
			int ret = ring_result(&ring), want = alloc(ex, 1, 100, 11);

			ck_assert_int_eq(ret, want);
			ck_assert_int_ge(release(ex, 0, 0, 200), 0);
		}
		ck_assert_uint_eq(iov[0].value, request_of(0, 11).value);
		ck_assert_uint_eq(iov[1].value, request_of(20, 1).value);
		/* A later one. */
		iov[0] = request_of(0, 6);
		iov[1] = request_of(20, 5);
		iov[2] = request_of(30, 1);
		prep_fixed(&ring, ex->fd, place(0, op), iov, 3 * 8);
		ck_assert_int_eq(ring_result(&ring), 2);
		assert_answer(iov[0], 0, 6);
		ck_assert_int_eq(iov[1].res, -ENOMEM);
		ck_assert_int_eq(iov[2].res, -ENOMEM);
		ck_assert(whole_pool(ex, 10));
	}
}

/* The page that the second entry lacks is the first one's, as for ACTION. */
TEST_BOTH(fixed_of_the_same_page_twice)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 10);
	struct exmap_iov *iov;
	struct io_uring ring;

	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	ck_assert_int_eq(alloc(ex, 1, 100, 9), 9);
	entry(ex, 0, 0, 5, 1);
	entry(ex, 0, 1, 5, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 2, 0), 0);
	ck_assert_int_eq(release(ex, 0, 5, 1), 1);
	iov[0] = iov[1] = request_of(5, 1);
	prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_READ), iov, 2 * 8);
	ck_assert_int_eq(ring_result(&ring), 0);
	assert_answer(iov[0], 0, 1);
	assert_answer(iov[1], 0, 0);
	ck_assert(holds(where(ex, 5), 5, 0));
	ck_assert(whole_pool(ex, 10));
}

TEST(fixed_refusals)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	char *elsewhere = aligned_alloc(PAGE, PAGE);
	const uint64_t untouched = request_of(10, 1).value;
	struct io_uring_sqe *sqe;
	struct exmap_iov *iov;
	struct io_uring ring;
	int res;

	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	for (int i = 0; i < 1024; i++)
		iov[i].value = untouched;
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++) {
		static const size_t wrong[] = { 0, 4, 12, 513 * 8, 1UL << 63 };
		const struct { void *start; size_t len; } outside[] = {
			{ elsewhere, 8 }, { iov - 1, 16 }, { iov + 1023, 16 }, { iov + 1024, 8 },
			{ NULL, 8 }, { ex->surface, 8 }, { ex->interface[0], 8 },
			{ (void *)-8UL, 16 },
		};

		for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
			prep_fixed(&ring, ex->fd, place(0, op), iov, wrong[i]);
			res = ring_result(&ring);
			ck_assert_msg(res == -EINVAL, "op %d, length %#zx: %d", op, wrong[i], res);
		}
		for (size_t i = 0; i < sizeof(outside) / sizeof(*outside); i++) {
			prep_fixed(&ring, ex->fd, place(0, op), outside[i].start, outside[i].len);
			res = ring_result(&ring);
			ck_assert_msg(res == -EFAULT, "op %d, outside %zu: %d", op, i, res);
		}
		prep_fixed(&ring, ex->fd, place(2, op), iov, 8);
		ck_assert_int_eq(ring_result(&ring), -EINVAL);
		prep_fixed(&ring, ex->fd, place(0, op) | 1 << 16, iov, 8);
		ck_assert_int_eq(ring_result(&ring), -EINVAL);
		/* No such buffer. */
		sqe = prep_fixed(&ring, ex->fd, place(0, op), iov, 8);
		sqe->buf_index = 1;
		ck_assert_int_eq(ring_result(&ring), -EFAULT);
		/* A flag that is none. */
		sqe = prep_fixed(&ring, ex->fd, place(0, op), iov, 8);
		sqe->uring_cmd_flags = 1U << 20;
		ck_assert_int_eq(ring_result(&ring), -EINVAL);
	}
	prep_fixed(&ring, ex->fd, place(0, 4), iov, 8);
	ck_assert_int_eq(ring_result(&ring), -EINVAL);
	for (int i = 0; i < 1024; i++)
		ck_assert_uint_eq(iov[i].value, untouched);
	assert_mapped(ex, 0);
	/* Nor when the surface is gone. */
	assert_ok(munmap(ex->surface, ex->size));
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++) {
		prep_fixed(&ring, ex->fd, place(0, op), iov, 8);
		ck_assert_int_eq(ring_result(&ring), -EPROTO);
		ck_assert_uint_eq(iov[0].value, untouched);
	}
}

/* No buffer is registered at all. */
TEST(fixed_without_a_buffer)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	struct exmap_iov iov = request_of(1, 1);
	struct io_uring ring;

	ring_init(&ring, 8);
	prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_ALLOC), &iov, 8);
	ck_assert_int_eq(ring_result(&ring), -EFAULT);
	assert_mapped(ex, 0);
}

/* The worker finds the end of the file in the answer, and must not ask again. */
TEST(fixed_across_the_end_of_a_direct_file, .needs_env = "EXMAP_TEST_DIRECTORY")
{
	int fd = file_open(getenv("EXMAP_TEST_DIRECTORY"), O_DIRECT);
	struct exmap *ex = exmap_on(fd, POOL);
	struct exmap_iov *iov;
	struct io_uring ring;

	file_fill(fd, 20);
	assert_ok(ftruncate(fd, 10 * PAGE + 100));
	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	iov[0] = request_of(8, 5);
	iov[1] = request_of(15, 2);
	iov[2] = request_of(2, 1);
	prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_READ), iov, 3 * sizeof(*iov));
	ck_assert_int_eq(ring_result(&ring), 1);
	assert_answer(iov[0], 0, 3);
	assert_answer(iov[1], -ENODATA, 0);
	assert_answer(iov[2], 0, 1);
	ck_assert(holds(where(ex, 2), 2, 0));
	ck_assert(holds(where(ex, 9), 9, 0));
	ck_assert_int_eq(where(ex, 10)[100], 0);
	assert_mapped(ex, 4);
	assert_nothing_lost(ex);
}

/* The entries are those that were there at submission. */
TEST(fixed_reads_its_entries_once, ON_A_DEVICE)
{
	struct request r;

	request_in_flight(&r, FIXED_READ);
	/* READ has them; its answer comes after this, and in this place. */
	r.entries[0] = request_of(100, 50);
	r.entries[1].value = 42;
	device_go();
	assert_result(&r, PAGES * PAGE);
	ck_assert_uint_eq(r.entries[1].value, 42);
	assert_request_done(&r);
	assert_mapped(r.ex, PAGES);
	assert_nothing_lost(r.ex);
}

/* The registered buffer is gone from the address space: the ring has it still. */
TEST(fixed_with_its_buffer_unmapped, ON_A_DEVICE)
{
	struct request r;

	request_in_flight(&r, FIXED_READ);
	assert_ok(munmap(r.entries, 2 * PAGE));
	ck_assert(request_pending(&r));
	device_go();
	ck_assert_int_eq(ring_wait(&r.ring), 0);
	assert_request_done(&r);
	assert_nothing_lost(r.ex);
}

/* A positive result is a success: what is linked to it runs. */
TEST_BOTH(links_go_on_after_success)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, POOL);
	static const int op[] = {
		EXMAP_OP_ALLOC, EXMAP_OP_WRITE, EXMAP_OP_FREE, EXMAP_OP_READ, EXMAP_OP_FREE,
	};
	struct io_uring_sqe *sqe;
	struct exmap_iov *iov;
	struct io_uring ring;
	uint64_t data;

	ring_init(&ring, 16);
	iov = ring_entries(&ring);
	for (int i = 0; i < 5; i++) {
		sqe = prep_cmd(&ring, ex->fd, place(0, op[i]), where(ex, 5), 2 * PAGE);
		sqe->flags |= IOSQE_IO_LINK;
		sqe->user_data = i;
	}
	/* Nor do failed entries break it. */
	iov[0] = request_of(2 * FILE_PAGES, 1);
	sqe = prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_READ), iov, 8);
	sqe->flags |= IOSQE_IO_LINK;
	sqe->user_data = 5;
	prep_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 5), PAGE, 0)->user_data = 6;
	ring_submit(&ring, 7);
	for (uint64_t i = 0; i < 7; i++) {
		int want = i < 5 ? 2 * PAGE : i == 5 ? 1 : PAGE, res = ring_wait_data(&ring, &data);

		ck_assert_msg(data == i && res == want, "request %lu: %d, expected %lu: %d", data,
			      res, i, want);
	}
	/* ALLOC's zeros were written, and read. */
	ck_assert(all_bytes(where(ex, 5), 0));
	assert_mapped(ex, 1);
	assert_nothing_lost(ex);
}

TEST_BOTH(links_end_with_a_failure)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), POOL);
	struct io_uring_sqe *sqe;
	struct io_uring ring;
	uint64_t data;

	ring_init(&ring, 8);
	sqe = prep_cmd(&ring, ex->fd, place(0, EXMAP_OP_WRITE), where(ex, 5), PAGE);
	sqe->flags |= IOSQE_IO_LINK;
	prep_cmd(&ring, ex->fd, place(0, EXMAP_OP_ALLOC), where(ex, 5), PAGE)->user_data = 1;
	ring_submit(&ring, 2);
	ck_assert_int_eq(ring_wait_data(&ring, &data), -EFAULT);
	ck_assert_int_eq(ring_wait_data(&ring, &data), -ECANCELED);
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
}

/*
 * What happens meanwhile
 */

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

static void munmap_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	assert_ok(munmap(r.ex->surface, r.ex->size));
	ck_assert(request_pending(&r));
	device_go();
	/* What is to be written was pinned. */
	assert_result(&r, is_write(kind) ? PAGES * (long)PAGE : -EPROTO);
	if (is_write(kind))
		assert_request_done(&r);
	assert_mapped(r.ex, 0);
}
FOR_ALL(TEST_OF_KIND, munmap_in_flight)

/* Somebody else's memory is where the surface was. */
static void munmap_and_mmap_in_flight(enum kind kind)
{
	struct request r;
	char *other;

	request_in_flight(&r, kind);
	assert_ok(munmap(r.ex->surface, r.ex->size));
	other = mmap(r.ex->surface, r.ex->size, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	ck_assert_ptr_eq(other, r.ex->surface);
	memset(other, 0x5a, 20 * PAGE);
	device_go();
	assert_result(&r, is_write(kind) ? PAGES * (long)PAGE : -EPROTO);
	for (int page = 0; page < 20; page++)
		ck_assert(all_bytes(other + page * PAGE, 0x5a));
	if (is_write(kind))
		assert_request_done(&r);
}
FOR_ALL(TEST_OF_KIND, munmap_and_mmap_in_flight)

static void dontneed_in_flight(enum kind kind)
{
	struct request r;
	size_t mapped;
	long result;

	request_in_flight(&r, kind);
	assert_ok(madvise(r.ex->surface, r.ex->size, MADV_DONTNEED));
	assert_mapped(r.ex, 0);
	/* The pages that were there are others' now: elsewhere, that page table may be gone. */
	ck_assert_int_eq(alloc(r.ex, 1, 1200, POOL - PAGES), POOL - PAGES);
	memset(where(r.ex, 1200), 0x5a, (POOL - PAGES) * PAGE);
	ck_assert(request_pending(&r));
	device_go();
	result = request_wait(&r);
	mapped = resident(r.ex, FIRST, PAGES);
	/*
	 * Entries count what was mapped: less, where a page table is gone, and that may be one
	 * of two. They may also count as read first, and taken away then.
	 */
	if (is_fixed(kind) && !is_write(kind)) {
		ck_assert_int_ge(result, mapped * PAGE);
		ck_assert_int_le(result, PAGES * PAGE);
	} else {
		ck_assert_int_eq(result, PAGES * PAGE);
	}
	if (is_write(kind)) {
		ck_assert_uint_eq(mapped, 0);
		assert_request_done(&r);
	}
	for (int page = FIRST; page < FIRST + PAGES; page++)
		if (resident(r.ex, page, 1))
			ck_assert(holds(where(r.ex, page), page, 0));
	assert_mapped(r.ex, POOL - PAGES + mapped);
	for (int page = 1200; page < 1200 + POOL - PAGES; page++)
		ck_assert(all_bytes(where(r.ex, page), 0x5a));
	assert_nothing_lost(r.ex);
}
FOR_ALL(TEST_OF_KIND, dontneed_in_flight)

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

/* While a READ is under way its pages are neither mapped nor free. */
static void reserved_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	assert_mapped(r.ex, 0);
	ck_assert_int_eq(alloc(r.ex, 1, 100, POOL - PAGES + 1), -ENOMEM);
	ck_assert_int_ge(release(r.ex, 1, 100, POOL), 0);
	ck_assert_int_eq(alloc(r.ex, 1, 100, POOL - PAGES), POOL - PAGES);
	ck_assert_int_eq(alloc(r.ex, 1, 0, 1), -ENOMEM);
	memset(where(r.ex, 100), 0x5a, (POOL - PAGES) * PAGE);
	assert_request_succeeds(&r);
	assert_mapped(r.ex, POOL);
	for (int page = 100; page < 100 + POOL - PAGES; page++)
		ck_assert(all_bytes(where(r.ex, page), 0x5a));
	assert_nothing_lost(r.ex);
}
FOR_READS(TEST_OF_KIND, reserved_in_flight)

static void *alloc_thread(void *arg)
{
	struct request *r = arg;

	ck_assert_int_eq(alloc(r->ex, 1, FIRST + 1, 1), 1);
	fill(where(r->ex, FIRST + 1), FIRST + 1, 9);
	return NULL;
}

/* A page that somebody maps meanwhile stays, and what was read for it is dropped. */
static void alloc_in_flight(enum kind kind)
{
	pthread_t thread;
	struct request r;

	request_in_flight(&r, kind);
	ck_assert(!pthread_create(&thread, NULL, alloc_thread, &r));
	pthread_join(thread, NULL);
	device_go();
	/* An entry counts the pages that were mapped, a call the bytes that are there. */
	assert_result(&r, (is_fixed(kind) ? PAGES - 1 : PAGES) * PAGE);
	for (int page = FIRST; page < FIRST + PAGES; page++)
		ck_assert(holds(where(r.ex, page), page, page == FIRST + 1 ? 9 : 0));
	assert_mapped(r.ex, PAGES);
	assert_nothing_lost(r.ex);
}
FOR_READS(TEST_OF_KIND, alloc_in_flight)

/*
 * Mapped and unmapped again: what is being read may be older than what was there. The worker
 * does not read again.
 */
static void alloc_and_free_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	for (int i = 0; i < 10; i++) {
		ck_assert_int_eq(alloc(r.ex, 1, FIRST, PAGES), PAGES);
		memset(where(r.ex, FIRST), 0x5a, PAGES * PAGE);
		ck_assert_int_eq(release(r.ex, 1, FIRST, PAGES), PAGES);
	}
	ck_assert(request_pending(&r));
	device_go();
	assert_result(&r, -EBUSY);
	assert_mapped(r.ex, 0);
	assert_fdinfo(r.ex->fd, "reads", 0);
	assert_pages_add_up(r.ex->fd);
	request_start(&r, FIRST, PAGES);
	assert_result(&r, PAGES * PAGE);
	assert_request_done(&r);
	assert_nothing_lost(r.ex);
}
FOR_READS(TEST_OF_KIND, alloc_and_free_in_flight)

/* The same with one page: what comes before it counts, and so does what is there. */
static void page_comes_and_goes_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	ck_assert_int_eq(alloc(r.ex, 1, FIRST + 1, 2), 2);
	ck_assert_int_eq(release(r.ex, 1, FIRST + 2, 1), 1);
	ck_assert(request_pending(&r));
	device_go();
	assert_result(&r, is_fixed(kind) ? -EBUSY : 2 * (long)PAGE);
	if (is_fixed(kind))
		assert_answer(r.entries[0], -EBUSY, 2);
	assert_mapped(r.ex, 3);
	ck_assert_uint_eq(resident(r.ex, FIRST + 2, 1), 0);
	ck_assert(holds(where(r.ex, FIRST), FIRST, 0));
	ck_assert(holds(where(r.ex, FIRST + 3), FIRST + 3, 0));
	assert_nothing_lost(r.ex);
}
FOR_READS(TEST_OF_KIND, page_comes_and_goes_in_flight)

/* Two requests for the same pages: both succeed, one has mapped them. */
static void same_pages_in_flight(enum kind kind)
{
	struct request r, second;

	request_in_flight(&r, kind);
	request_init(&second, URING_READ, r.ex, r.device, 0);
	request_start(&second, FIRST, PAGES);
	ck_assert(request_pending(&second));
	device_go();
	assert_result(&second, PAGES * PAGE);
	if (is_fixed(kind))
		ck_assert_int_ge(request_wait(&r), 0);
	else
		assert_result(&r, PAGES * PAGE);
	assert_request_done(&r);
	assert_mapped(r.ex, PAGES);
	assert_nothing_lost(r.ex);
}
FOR_READS(TEST_OF_KIND, same_pages_in_flight)

/*
 * A READ brings nothing back that was replaced while it was under way.
 *
 * The narrow device takes the data of a READ's first pages at once and answers late; those of
 * the others it takes after that. Meanwhile pages come to some of the first addresses, are
 * written, and go: each in another way.
 */
#define FOR_READ_DOORS(what, name)			\
	FOR_READS(what, name)				\
	what(name, action, BY_ACTION)			\
	what(name, pread, BY_PREAD)
#define TEST_OF_KIND_NARROW(name, suffix, kind)	\
	TEST(name##_##suffix, .needs_env = "EXMAP_TEST_NARROW") { name(kind); }

/* What becomes of the first pages; nothing of the rest. */
enum {
	FAILS,		/* another READ of it fails */
	WITH_ALLOC, WITH_READ, WITH_TOUCH, WITH_DEFER, WITH_DONTNEED,
	WITH_END, NARROW_PAGES = 128, NARROW_DEPTH = 8,
};

struct reader {
	struct request r;
	enum kind kind;
	struct exmap *ex;
	unsigned int pages;
	long result;
	atomic_bool done;
	pthread_t thread;
};

static const char *narrow_name(void)
{
	return basename(getenv("EXMAP_TEST_NARROW"));
}

/* Page 0 cannot be read from now on, or can. */
static void narrow_bad(const char *change)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/badblocks", getenv("EXMAP_TEST_NARROW"));
	write_file(path, change);
}

static int narrow_open(size_t pages)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/dev/%s", narrow_name());
	fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	assert_ok(fd);
	/* A test that failed may have left it bad. */
	narrow_bad("-0-7");
	file_fill(fd, pages);
	return fd;
}

static long narrow_number(const char *file)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/%s", narrow_name(), file);
	return number_in(path);
}

static void *narrow_reader(void *arg)
{
	struct reader *reader = arg;
	struct exmap *ex = reader->ex;

	switch (reader->kind) {
	case BY_ACTION:
		for (unsigned int page = 0; page < reader->pages; page++)
			entry(ex, 0, page, page, 1);
		reader->result = action(ex->fd, 0, EXMAP_OP_READ, reader->pages, 0);
		break;
	case BY_PREAD:
		reader->result = pread(ex->fd, where(ex, 0), reader->pages * PAGE,
				       place(0, EXMAP_OP_READ));
		break;
	default:
		request_start(&reader->r, 0, reader->pages);
		reader->result = request_wait(&reader->r);
	}
	atomic_store(&reader->done, true);
	return NULL;
}

/* Start it, and wait until as many of its requests are under way as the device takes. */
static void reader_start(struct reader *reader, unsigned int pages)
{
	atomic_store(&reader->done, false);
	reader->pages = pages;
	ck_assert(!pthread_create(&reader->thread, NULL, narrow_reader, reader));
	while (narrow_number("inflight") < (pages < NARROW_DEPTH ? pages : NARROW_DEPTH) &&
	       !atomic_load(&reader->done))
		sched_yield();
}

/* False if the reader was done too early: then these pages are its own. */
static bool replace_pages(struct exmap *ex, uint64_t generation)
{
	int failed;

	if (alloc(ex, 1, WITH_ALLOC, 1) != 1 || run(ex, 1, EXMAP_OP_READ, WITH_READ, 1) != 1)
		return false;
	*where(ex, WITH_TOUCH) = 1;
	if (alloc(ex, 1, WITH_DEFER, 2) != 2)
		return false;
	for (int page = WITH_ALLOC; page < WITH_END; page++)
		fill(where(ex, page), page, generation);
	ck_assert_int_eq(run(ex, 1, EXMAP_OP_WRITE, WITH_ALLOC, WITH_END - WITH_ALLOC),
			 WITH_END - WITH_ALLOC);
	ck_assert_int_eq(release(ex, 1, WITH_ALLOC, WITH_DEFER - WITH_ALLOC),
			 WITH_DEFER - WITH_ALLOC);
	assert_ok(madvise(where(ex, WITH_DONTNEED), PAGE, MADV_DONTNEED));
	ck_assert_int_eq(defer(ex, 1, WITH_DEFER, 1), 1);
	narrow_bad("+0-7");
	failed = run(ex, 1, EXMAP_OP_READ, FAILS, 1);
	narrow_bad("-0-7");
	return failed == -EIO;
}

/* What is there is what it must be. Returns up to where all of it is there. */
static unsigned int narrow_pages_there(struct exmap *ex, uint64_t generation)
{
	unsigned int page, there = NARROW_PAGES;
	char wrong[8 * NARROW_PAGES] = "";

	for (page = 0; page < NARROW_PAGES; page++) {
		const bool replaced = page >= WITH_ALLOC && page < WITH_END;

		if (!resident(ex, page, 1))
			there = page < there ? page : there;
		else if (!holds(where(ex, page), page, replaced ? generation : 0))
			sprintf(wrong + strlen(wrong), " %u", page);
		/* Others have nothing to do with that. */
		ck_assert(replaced || resident(ex, page, 1));
	}
	ck_assert_msg(!wrong[0], "not what was written: pages%s", wrong);
	return there;
}

static void replaced_in_flight(enum kind kind)
{
	int fd = narrow_open(NARROW_PAGES);
	struct exmap *ex = exmap_new_file(2 * FILE_PAGES * PAGE, 2 * NARROW_PAGES, 2,
					  EXMAP_PAGEFAULT_ALLOC, fd);
	struct reader reader_of = { .kind = kind, .ex = ex };
	bool in_time = false, replaced, waits = kind == BY_ACTION || kind == BY_PREAD;
	unsigned int there;
	long want;

	if (!waits)
		request_init(&reader_of.r, kind, ex, fd, 0);
	/* Once more if it was done before the pages had gone. */
	for (uint64_t generation = 1; !in_time; generation++) {
		ck_assert_msg(generation <= 30, "the device answers too early");
		reader_start(&reader_of, NARROW_PAGES);
		replaced = replace_pages(ex, generation);
		in_time = replaced && !atomic_load(&reader_of.done);
		pthread_join(reader_of.thread, NULL);
		if (in_time) {
			there = narrow_pages_there(ex, generation);
			want = there < NARROW_PAGES && is_fixed(kind) ? -EBUSY : there * (long)PAGE;
			if (kind == BY_ACTION)
				want = 0;
			ck_assert_int_eq(reader_of.result, want);
			/* Who waits has it read again. */
			ck_assert(!waits || there == NARROW_PAGES);
			assert_fdinfo(ex->fd, "pages-in-flight", 0);
			assert_pages_add_up(ex->fd);
			ck_assert_int_ge(run(ex, 1, EXMAP_OP_READ, 0, NARROW_PAGES), 0);
			ck_assert_uint_eq(narrow_pages_there(ex, generation), NARROW_PAGES);
		}
		ck_assert_int_ge(release(ex, 1, 0, NARROW_PAGES), 0);
	}
	ck_assert(whole_pool(ex, 2 * NARROW_PAGES));
}
FOR_READ_DOORS(TEST_OF_KIND_NARROW, replaced_in_flight)

/* If a page comes and goes each time it is read then the caller is told so in the end. */
static void replaced_every_time(enum kind kind)
{
	int fd = narrow_open(1);
	struct exmap *ex = exmap_on(fd, POOL);
	struct reader reader_of = { .kind = kind, .ex = ex };
	int times = 0;
	long before;

	/* By pread, its first try is another path. */
	for (int tries = 0; times < 17; tries++) {
		ck_assert_msg(tries < 10, "the device answers too early, or READ gives up too soon");
		before = narrow_number("stat");
		reader_start(&reader_of, 1);
		for (times = 0; !atomic_load(&reader_of.done); times++) {
			ck_assert_int_le(times, 18);
			ck_assert_int_ge(alloc(ex, 1, 0, 1), 0);
			ck_assert_int_ge(release(ex, 1, 0, 1), 0);
			/* The next one is under way, or there is none. */
			while (!atomic_load(&reader_of.done) &&
			       (narrow_number("stat") - before <= times || !narrow_number("inflight")))
				sched_yield();
		}
		pthread_join(reader_of.thread, NULL);
		/* If this thread was late for the last one, that has found nothing wrong. */
		if (reader_of.result != (kind == BY_ACTION ? 1 : -1))
			times = 0;
		if (times < 17)
			ck_assert_int_ge(release(ex, 1, 0, 1), 0);
	}
	ck_assert_int_eq(reader_of.result, kind == BY_ACTION ? 1 : -1);
	if (kind == BY_ACTION)
		assert_entry(ex, 0, 0, -EBUSY, 0);
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
}
TEST_OF_KIND_NARROW(replaced_every_time, action, BY_ACTION)
TEST_OF_KIND_NARROW(replaced_every_time, pread, BY_PREAD)

/* The device gets what was there, and the page's new owner keeps what is his. */
static void free_and_reuse_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	ck_assert_int_eq(release(r.ex, 0, FIRST, PAGES), PAGES);
	ck_assert_int_eq(alloc(r.ex, 0, 100, POOL), POOL);
	memset(where(r.ex, 100), 0x5a, POOL * PAGE);
	ck_assert(request_pending(&r));
	device_go();
	assert_result(&r, PAGES * PAGE);
	assert_request_done(&r);
	for (int page = 100; page < 100 + POOL; page++)
		ck_assert(all_bytes(where(r.ex, page), 0x5a));
	assert_nothing_lost(r.ex);
}
FOR_WRITES(TEST_OF_KIND, free_and_reuse_in_flight)

/* What is under way is not the child's. */
static void fork_in_flight(enum kind kind)
{
	struct request r;
	pid_t pid;

	request_in_flight(&r, kind);
	pid = fork();
	assert_ok(pid);
	if (!pid)
		_exit(0);
	wait_child(pid, 0);
	/* And one that outlives the request. */
	pid = fork();
	assert_ok(pid);
	if (!pid)
		for (;;)
			pause();
	assert_request_succeeds(&r);
	assert_nothing_lost(r.ex);
	kill(pid, SIGKILL);
	wait_child(pid, SIGKILL);
}
FOR_ALL(TEST_OF_KIND, fork_in_flight)

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

/*
 * Many at once
 */
enum { MANY = 256 };

/*
 * Requests in two groups, of which the one that was submitted last is let through
 * first: each page is there when its request is done, and not before.
 */
static void many_out_of_order(bool commands)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FILE_PAGES);
	struct exmap *ex = exmap_on(fd, MANY + POOL);
	bool done[MANY] = { };
	struct io_uring ring;
	uint64_t data;

	ring_init(&ring, MANY);
	for (int group = 0; group < 2; group++) {
		device_stop_group(fd, group);
		for (int i = group * MANY / 2; i < (group + 1) * MANY / 2; i++) {
			uint64_t page = i * 37 % FILE_PAGES;
			struct io_uring_sqe *sqe;

			if (commands)
				sqe = prep_cmd(&ring, ex->fd, place(i % 2, EXMAP_OP_READ),
					       where(ex, page), PAGE);
			else
				sqe = prep_rw(&ring, IORING_OP_READ, ex->fd, where(ex, page), PAGE,
					      i % 2);
			sqe->user_data = i;
		}
		ring_submit(&ring, MANY / 2);
	}
	getppid();
	ck_assert_int_eq(io_uring_cq_ready(&ring), 0);
	assert_mapped(ex, 0);
	for (int n = 0; n < MANY; n++) {
		if (n % (MANY / 2) == 0) {
			ck_assert_uint_eq(resident(ex, 0, FILE_PAGES), n);
			device_go_group(n ? 0 : 1);
		}
		ck_assert_int_eq(ring_wait_data(&ring, &data), PAGE);
		ck_assert(!done[data]);
		ck_assert_int_eq(data < MANY / 2, n >= MANY / 2);
		done[data] = true;
		ck_assert(holds(where(ex, data * 37 % FILE_PAGES), data * 37 % FILE_PAGES, 0));
	}
	assert_threads(1);
	assert_mapped(ex, MANY);
	ck_assert(whole_pool(ex, MANY + POOL));
}

TEST(many_reads_out_of_order, ON_A_DEVICE)
{
	many_out_of_order(false);
}

TEST(many_commands_out_of_order, ON_A_DEVICE)
{
	many_out_of_order(true);
}

/* One submission of libaio's. */
TEST(many_by_libaio, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FILE_PAGES);
	struct exmap *ex = exmap_on(fd, MANY);
	struct iocb iocb[MANY], *iocbs[MANY];
	struct io_event event[MANY];
	io_context_t aio = NULL;

	ck_assert_int_eq(io_setup(MANY, &aio), 0);
	device_stop(fd);
	for (int i = 0; i < MANY; i++) {
		iocbs[i] = &iocb[i];
		io_prep_pread(&iocb[i], ex->fd, where(ex, i * 37 % FILE_PAGES), PAGE, i % 2);
	}
	ck_assert_int_eq(io_submit(aio, MANY, iocbs), MANY);
	ck_assert_int_eq(io_getevents(aio, 0, MANY, event, &(struct timespec){ }), 0);
	assert_mapped(ex, 0);
	device_go();
	for (int n = 0; n < MANY; ) {
		int nr = io_getevents(aio, 1, MANY, event, NULL);

		ck_assert_int_gt(nr, 0);
		for (int i = 0; i < nr; i++) {
			uint64_t page = (event[i].obj - iocb) * 37 % FILE_PAGES;

			ck_assert_int_eq((long)event[i].res, PAGE);
			ck_assert(holds(where(ex, page), page, 0));
		}
		n += nr;
	}
	assert_mapped(ex, MANY);
	ck_assert(whole_pool(ex, MANY));
}

/* More than the device takes at a time. Returns whether submission was done before any answer. */
static bool submit_more_than_the_device_takes(struct exmap *ex, struct io_uring *ring)
{
	bool at_once;
	uint64_t data;

	for (int i = 0; i < MANY; i++)
		prep_rw(ring, IORING_OP_READ, ex->fd, where(ex, i * 4), PAGE, i % 2)->user_data = i;
	ring_submit(ring, MANY);
	getppid();
	at_once = !io_uring_cq_ready(ring);
	for (int i = 0; i < MANY; i++) {
		ck_assert_int_eq(ring_wait_data(ring, &data), PAGE);
		ck_assert(holds(where(ex, data * 4), data * 4, 0));
	}
	ck_assert(whole_pool(ex, MANY));
	return at_once;
}

TEST(more_than_the_device_takes, .needs_env = "EXMAP_TEST_SLOW_DEVICE")
{
	int fd = device_open("EXMAP_TEST_SLOW_DEVICE", FILE_PAGES);
	struct exmap *ex = exmap_on(fd, MANY);
	struct io_uring ring;

	ring_init(&ring, MANY);
	for (int tries = 0; !submit_more_than_the_device_takes(ex, &ring); tries++)
		ck_assert_msg(tries < 10, "submission waits for the device");
}

/*
 * The device takes it in pieces, and would refuse each time to do that without waiting:
 * it is told to wait in the first place.
 */
TEST(more_pieces_of_memory_than_the_device_takes, .needs_env = "EXMAP_TEST_SLOW_DEVICE")
{
	int fd = device_open("EXMAP_TEST_SLOW_DEVICE", FILE_PAGES);
	const int pieces = device_limit("EXMAP_TEST_SLOW_DEVICE", "max_segments");
	const int pages = pieces + 1;
	struct exmap *ex = exmap_on(fd, 2 * pages);
	struct io_uring ring;

	ck_assert_int_le(pages * (PAGE / 1024), device_limit("EXMAP_TEST_SLOW_DEVICE",
							     "max_sectors_kb"));
	/* The free pages, in the end: none of them next to another one in memory. */
	ck_assert_int_eq(alloc(ex, 0, FILE_PAGES, 2 * pages), 2 * pages);
	for (int i = 0; i < pages; i++)
		ck_assert_int_eq(release(ex, 0, FILE_PAGES + 2 * i, 1), 1);
	ring_init(&ring, 1);
	prep_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 0), pages * PAGE, 0);
	ck_assert_int_eq(ring_result(&ring), pages * PAGE);
	assert_threads(1);
	for (int i = 0; i < pages; i++)
		ck_assert(holds(where(ex, i), i, 0));
	prep_rw(&ring, IORING_OP_WRITE, ex->fd, where(ex, 0), pages * PAGE,
		place(0, EXMAP_OP_WRITE));
	ck_assert_int_eq(ring_result(&ring), pages * PAGE);
	assert_threads(1);
}

/*
 * Commands that come again, by way of a worker, when the entry in the queue that they were
 * made of is another's already.
 */
TEST_BOTH(commands_through_a_queue_of_one)
{
	enum { COMMANDS = 64, STEP = 3 };
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, MANY);
	struct exmap_iov *iov;
	struct io_uring ring;
	uint64_t data;

	ring_init(&ring, 1);
	iov = ring_entries(&ring);
	for (int i = 0; i < COMMANDS; i++) {
		prep_cmd(&ring, ex->fd, place(0, EXMAP_OP_READ), where(ex, i * STEP), PAGE);
		ring_submit(&ring, 1);
	}
	for (int i = 0; i < COMMANDS; i++)
		ck_assert_int_eq(ring_wait(&ring), PAGE);
	assert_mapped(ex, COMMANDS);
	for (int i = 0; i < COMMANDS; i++) {
		ck_assert_uint_eq(resident(ex, i * STEP, 1), 1);
		ck_assert(holds(where(ex, i * STEP), i * STEP, 0));
		fill(where(ex, i * STEP), i * STEP, 1);
	}
	for (int i = 0; i < COMMANDS; i++) {
		iov[i] = request_of(i * STEP, 1);
		prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_WRITE), &iov[i], 8)->user_data = i;
		ring_submit(&ring, 1);
	}
	for (int i = 0; i < COMMANDS; i++) {
		ck_assert_int_eq(ring_wait_data(&ring, &data), 0);
		assert_answer(iov[data], 0, 1);
	}
	for (int i = 0; i < COMMANDS; i++)
		ck_assert(file_holds(fd, i * STEP, 1));
	ck_assert(whole_pool(ex, MANY));
}

/* It is done by a kernel thread. */
TEST(fsync_by_libaio)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	struct exmap *without = exmap_new(MIB, 10, 1);
	struct iocb iocb, *iocbs = &iocb;
	struct io_event event;
	io_context_t aio = NULL;

	ck_assert_int_eq(io_setup(1, &aio), 0);
	io_prep_fsync(&iocb, ex->fd);
	ck_assert_int_eq(io_submit(aio, 1, &iocbs), 1);
	ck_assert_int_eq(io_getevents(aio, 1, 1, &event, NULL), 1);
	ck_assert_int_eq((long)event.res, 0);
	io_prep_fdsync(&iocb, without->fd);
	ck_assert_int_eq(io_submit(aio, 1, &iocbs), 1);
	ck_assert_int_eq(io_getevents(aio, 1, 1, &event, NULL), 1);
	ck_assert_int_eq((long)event.res, -EOPNOTSUPP);
}

/* The kernel complains of a task that sleeps for longer than it is told to put up with. */
#define HUNG_TASK "/proc/sys/kernel/hung_task_timeout_secs"

static void *reader_of_two(void *arg)
{
	return (void *)(long)run(arg, 0, EXMAP_OP_READ, FIRST, 2);
}

TEST(a_slow_device_is_no_hung_task, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES);
	struct exmap *ex = exmap_on(fd, POOL);
	long before = number_in(HUNG_TASK);
	pthread_t thread;
	char number[16];
	void *read;

	device_stop(fd);
	write_file(HUNG_TASK, "6");
	ck_assert(!pthread_create(&thread, NULL, reader_of_two, ex));
	/* It looks once in that time, twice at the same sleep, and then complains. */
	sleep(19);
	snprintf(number, sizeof(number), "%ld", before);
	write_file(HUNG_TASK, number);
	device_go();
	pthread_join(thread, &read);
	ck_assert_int_eq((long)read, 2);
}

/* More than the module has under way at a time for one call. */
enum { LARGE = 9000 };

static struct exmap *large_exmap(int *fd)
{
	*fd = device_open("EXMAP_TEST_DEVICE", LARGE);
	return exmap_new_file(2 * LARGE * PAGE, LARGE + 100, 2, 0, *fd);
}

TEST(read_and_write_of_many_windows, ON_A_DEVICE)
{
	struct io_uring ring;
	struct exmap *ex;
	int fd;

	ring_init(&ring, 8);
	ex = large_exmap(&fd);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, ex->surface, LARGE * PAGE, 0),
			 LARGE * PAGE);
	for (int page = 0; page < LARGE; page++) {
		ck_assert(holds(where(ex, page), page, 0));
		fill(where(ex, page), page, 1);
	}
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_WRITE, 0, LARGE), LARGE * PAGE);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_FREE, 0, LARGE), LARGE * PAGE);
	assert_mapped(ex, 0);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 0, LARGE), LARGE * PAGE);
	for (int page = 0; page < LARGE; page++)
		ck_assert(holds(where(ex, page), page, 1));
	assert_mapped(ex, LARGE);
}

/* It need not be all at once, but none of it may wait in submission. */
TEST(many_windows_in_flight, ON_A_DEVICE)
{
	struct request r = { };

	r.ex = large_exmap(&r.device);
	device_stop(r.device);
	request_init(&r, URING_READ, r.ex, r.device, 0);
	request_start(&r, 0, LARGE);
	ck_assert_msg(request_pending(&r), "submission waited for the device");
	assert_mapped(r.ex, 0);
	device_go();
	assert_result(&r, LARGE * PAGE);
	for (int page = 0; page < LARGE; page++)
		ck_assert(holds(where(r.ex, page), page, 0));
	assert_mapped(r.ex, LARGE);
}

/* The surface goes between the first window and the next. */
TEST(many_windows_and_munmap, ON_A_DEVICE)
{
	struct request r = { };

	r.ex = large_exmap(&r.device);
	device_stop(r.device);
	request_init(&r, URING_READ, r.ex, r.device, 0);
	request_start(&r, 0, LARGE);
	ck_assert(request_pending(&r));
	assert_ok(munmap(r.ex->surface, r.ex->size));
	device_go();
	assert_result(&r, -EPROTO);
	assert_mapped(r.ex, 0);
}

/*
 * Integrity: a device larger than the pool; threads with a ring and an interface
 * each read, change, write back and free pages of their own by every kind of request.
 */
enum { WORKERS = 4, BATCH = 16, ROUNDS = 60 };

struct worker {
	struct exmap *ex;
	unsigned int id;
	unsigned int seed;
	struct io_uring ring;
	struct exmap_iov *iov;
	char error[160];
	pthread_t thread;
};

static void worker_complain(struct worker *w, const char *what, long a, long b)
{
	if (!w->error[0])
		snprintf(w->error, sizeof(w->error), "%s: %ld, %ld", what, a, b);
}

/* Carry out an operation on each of the pages, all at once. */
static void worker_call(struct worker *w, int opcode, const uint64_t *page)
{
	const bool cmd_only = opcode == EXMAP_OP_FREE;
	int how = rand_r(&w->seed) % (cmd_only ? 2 : 3), nr = how ? BATCH : 1, res;

	switch (how) {
	case 0:
		for (int i = 0; i < BATCH; i++)
			w->iov[i] = request_of(page[i], 1);
		prep_fixed(&w->ring, w->ex->fd, place(w->id, opcode), w->iov, BATCH * 8);
		break;
	case 1:
		for (int i = 0; i < BATCH; i++)
			prep_cmd(&w->ring, w->ex->fd, place(w->id, opcode), where(w->ex, page[i]),
				 PAGE);
		break;
	default:
		for (int i = 0; i < BATCH; i++)
			prep_rw(&w->ring,
				opcode == EXMAP_OP_WRITE ? IORING_OP_WRITE : IORING_OP_READ,
				w->ex->fd, where(w->ex, page[i]), PAGE, place(w->id, opcode));
		break;
	}
	ring_submit(&w->ring, nr);
	for (int i = 0; i < nr; i++) {
		res = ring_wait(&w->ring);
		if (res != (how ? (int)PAGE : 0))
			worker_complain(w, "opcode, result", opcode, res);
	}
	for (int i = 0; !how && i < BATCH; i++)
		if (w->iov[i].res || w->iov[i].pages != 1)
			worker_complain(w, "opcode, entry", opcode, w->iov[i].res);
}

static void *integrity_worker(void *arg)
{
	static const unsigned int share = FILE_PAGES / WORKERS;
	uint64_t generation[FILE_PAGES / WORKERS] = { }, page[BATCH];
	struct worker *w = arg;

	for (int round = 0; round < ROUNDS && !w->error[0]; round++) {
		unsigned int at = rand_r(&w->seed) % share, step = rand_r(&w->seed) % 8 * 2 + 1;

		for (int i = 0; i < BATCH; i++)
			page[i] = (at + i * step) % share * WORKERS + w->id;
		worker_call(w, EXMAP_OP_READ, page);
		for (int i = 0; i < BATCH && !w->error[0]; i++) {
			uint64_t *mine = &generation[page[i] / WORKERS];

			if (!holds(where(w->ex, page[i]), page[i], *mine))
				worker_complain(w, "page, generation", page[i], *mine);
			fill(where(w->ex, page[i]), page[i], ++*mine);
		}
		if (!w->error[0])
			worker_call(w, EXMAP_OP_WRITE, page);
		if (!w->error[0])
			worker_call(w, EXMAP_OP_FREE, page);
	}
	return NULL;
}

static void integrity(int fd, unsigned int ring_flags)
{
	struct exmap *ex = exmap_new_file(FILE_PAGES * PAGE, WORKERS * BATCH, WORKERS, 0, fd);
	static struct worker w[WORKERS];

	for (int i = 0; i < WORKERS; i++) {
		w[i] = (struct worker){ .ex = ex, .id = i, .seed = i + 1 };
		ring_init_flags(&w[i].ring, 2 * BATCH, ring_flags);
		w[i].iov = ring_entries(&w[i].ring);
		ck_assert(!pthread_create(&w[i].thread, NULL, integrity_worker, &w[i]));
	}
	for (int i = 0; i < WORKERS; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
	}
	assert_mapped(ex, 0);
	ck_assert(whole_pool(ex, WORKERS * BATCH));
}

TEST_BOTH(integrity_of_requests)
{
	integrity(backing_open(device, O_RDWR), 0);
}

TEST(integrity_with_sqpoll, ON_A_DEVICE)
{
	integrity(backing_open(true, O_RDWR), IORING_SETUP_SQPOLL);
}

/*
 * The device's own file, with surface pages
 */
TEST(own_requests_with_surface_pages, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FILE_PAGES);
	struct exmap *ex = exmap_on(fd, POOL);
	struct iocb iocb, *iocbs = &iocb;
	struct io_event event;
	io_context_t aio = NULL;
	struct io_uring ring;

	ring_init(&ring, 8);
	ck_assert_int_eq(io_setup(8, &aio), 0);
	ck_assert_int_eq(alloc(ex, 0, 0, 20), 20);
	for (int page = 0; page < 10; page++)
		fill(where(ex, page), 50 + page, 8);
	prep_rw(&ring, IORING_OP_WRITE, fd, ex->surface, 10 * PAGE, 50 * PAGE);
	ck_assert_int_eq(ring_result(&ring), 10 * PAGE);
	io_prep_pread(&iocb, fd, where(ex, 10), 10 * PAGE, 50 * PAGE);
	ck_assert_int_eq(io_submit(aio, 1, &iocbs), 1);
	ck_assert_int_eq(io_getevents(aio, 1, 1, &event, NULL), 1);
	ck_assert_int_eq((long)event.res, 10 * PAGE);
	for (int page = 0; page < 10; page++)
		ck_assert(holds(where(ex, 10 + page), 50 + page, 8));
	for (int page = 0; page < 10; page++)
		fill(where(ex, page), 70 + page, 8);
	io_prep_pwrite(&iocb, fd, ex->surface, 10 * PAGE, 70 * PAGE);
	ck_assert_int_eq(io_submit(aio, 1, &iocbs), 1);
	ck_assert_int_eq(io_getevents(aio, 1, 1, &event, NULL), 1);
	prep_rw(&ring, IORING_OP_READ, fd, where(ex, 10), 10 * PAGE, 70 * PAGE);
	ck_assert_int_eq(ring_result(&ring), 10 * PAGE);
	for (int page = 0; page < 10; page++)
		ck_assert(holds(where(ex, 10 + page), 70 + page, 8));
	assert_nothing_lost(ex);
}

/* A page that the device will write to is freed: it is nobody's until that is over. */
static void free_under_own_read(bool libaio)
{
	int fd = device_open("EXMAP_TEST_DEVICE", 20);
	struct exmap *ex = exmap_on(fd, POOL);
	struct iocb iocb, *iocbs = &iocb;
	struct io_event event;
	io_context_t aio = NULL;
	struct io_uring ring;

	ring_init(&ring, 8);
	ck_assert_int_eq(io_setup(8, &aio), 0);
	ck_assert_int_eq(alloc(ex, 0, FIRST, PAGES), PAGES);
	device_stop(fd);
	if (libaio) {
		io_prep_pread(&iocb, fd, where(ex, FIRST), PAGES * PAGE, 0);
		ck_assert_int_eq(io_submit(aio, 1, &iocbs), 1);
	} else {
		prep_rw(&ring, IORING_OP_READ, fd, where(ex, FIRST), PAGES * PAGE, 0);
		ring_submit(&ring, 1);
	}
	ck_assert_int_eq(release(ex, 0, FIRST, PAGES), PAGES);
	ck_assert_int_eq(alloc(ex, 0, 100, POOL), POOL);
	memset(where(ex, 100), 0x5a, POOL * PAGE);
	device_go();
	if (libaio) {
		ck_assert_int_eq(io_getevents(aio, 1, 1, &event, NULL), 1);
		ck_assert_int_eq((long)event.res, PAGES * PAGE);
	} else {
		ck_assert_int_eq(ring_wait(&ring), PAGES * PAGE);
	}
	for (int page = 100; page < 100 + POOL; page++)
		ck_assert(all_bytes(where(ex, page), 0x5a));
	assert_nothing_lost(ex);
}

TEST(free_under_own_read_by_libaio, ON_A_DEVICE)
{
	free_under_own_read(true);
}

TEST(free_under_own_read_by_io_uring, ON_A_DEVICE)
{
	free_under_own_read(false);
}

/* Until 6.4 io_uring did not take memory that is mapped from a file. */
static bool registers_file_memory(void)
{
	int major, minor;
	struct utsname name;

	assert_ok(uname(&name));
	ck_assert_int_eq(sscanf(name.release, "%d.%d", &major, &minor), 2);
	return major > 6 || (major == 6 && minor >= 5);
}

TEST(surface_pages_as_registered_buffer, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FILE_PAGES);
	struct exmap *ex = exmap_on(fd, POOL);
	struct iovec iov = { where(ex, FIRST), PAGES * PAGE };
	struct io_uring ring;
	int ret;

	ring_init(&ring, 8);
	/* Not before the pages are there. */
	ck_assert_int_lt(io_uring_register_buffers(&ring, &iov, 1), 0);
	ck_assert_int_eq(alloc(ex, 0, FIRST, PAGES), PAGES);
	ret = io_uring_register_buffers(&ring, &iov, 1);
	if (!registers_file_memory()) {
		ck_assert_int_eq(ret, -EOPNOTSUPP);
		assert_nothing_lost(ex);
		return;
	}
	ck_assert_msg(!ret, "io_uring_register_buffers: %s", strerror(-ret));
	prep_rw(&ring, IORING_OP_READ_FIXED, fd, iov.iov_base, PAGES * PAGE, 30 * PAGE);
	ck_assert_int_eq(ring_result(&ring), PAGES * PAGE);
	for (int page = 0; page < PAGES; page++)
		ck_assert(holds(where(ex, FIRST + page), 30 + page, 0));
	for (int page = 0; page < PAGES; page++)
		fill(where(ex, FIRST + page), 30 + page, 3);
	prep_rw(&ring, IORING_OP_WRITE_FIXED, fd, iov.iov_base, PAGES * PAGE, 30 * PAGE);
	ck_assert_int_eq(ring_result(&ring), PAGES * PAGE);
	for (int page = 0; page < PAGES; page++)
		ck_assert(file_holds(fd, 30 + page, 3));
	/* Freed, they are still the ring's: nobody else may get them. */
	ck_assert_int_eq(release(ex, 0, FIRST, PAGES), PAGES);
	ck_assert_int_eq(alloc(ex, 0, 100, POOL), POOL);
	memset(where(ex, 100), 0x5a, POOL * PAGE);
	prep_rw(&ring, IORING_OP_READ_FIXED, fd, iov.iov_base, PAGES * PAGE, 0);
	ck_assert_int_eq(ring_result(&ring), PAGES * PAGE);
	for (int page = 100; page < 100 + POOL; page++)
		ck_assert(all_bytes(where(ex, page), 0x5a));
	ck_assert_int_eq(io_uring_unregister_buffers(&ring), 0);
	assert_nothing_lost(ex);
}

/*
 * Errors of the device
 */
TEST(bad_page, .needs_env = "EXMAP_TEST_BAD_DEVICE")
{
	int fd = open(getenv("EXMAP_TEST_BAD_DEVICE"), O_RDWR | O_DIRECT);
	struct exmap *ex = exmap_on(fd, POOL);
	const struct iovec vec[3] = {
		{ where(ex, 30), PAGE }, { where(ex, 50), PAGE }, { where(ex, 40), PAGE },
	};
	char *after = aligned_alloc(PAGE, PAGE);
	struct exmap_iov *iov;
	struct io_uring ring;
	uint64_t data;

	assert_ok(fd);
	file_fill(fd, 50);
	fill(after, 51, 0);
	ck_assert_int_eq(pwrite(fd, after, PAGE, 51 * PAGE), PAGE);
	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	/* (Adjacent ones could become one request to the device, which fails as a whole.) */
	for (uint64_t i = 0; i < 3; i++)
		prep_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 40 + 5 * i), PAGE,
			0)->user_data = i;
	ring_submit(&ring, 3);
	for (int i = 0; i < 3; i++) {
		int res = ring_wait_data(&ring, &data);

		ck_assert_int_eq(res, data == 2 ? -EIO : (int)PAGE);
	}
	ck_assert_uint_eq(resident(ex, 0, 100), 2);
	ck_assert(holds(where(ex, 40), 40, 0) && holds(where(ex, 45), 45, 0));
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 50, 1), -EIO);

	iov[0] = request_of(10, 2);
	iov[1] = request_of(50, 1);
	iov[2] = request_of(20, 1);
	prep_fixed(&ring, ex->fd, place(1, EXMAP_OP_READ), iov, 3 * 8);
	ck_assert_int_eq(ring_result(&ring), 1);
	assert_answer(iov[0], 0, 2);
	assert_answer(iov[1], -EIO, 0);
	assert_answer(iov[2], 0, 1);
	ck_assert(holds(where(ex, 11), 11, 0) && holds(where(ex, 20), 20, 0));

	/* The module reads adjacent pages at once; an error is that page's alone. */
	for (int i = 0; i < 4; i++)
		iov[i] = request_of(48 + i, 1);
	prep_fixed(&ring, ex->fd, place(1, EXMAP_OP_READ), iov, 4 * 8);
	ck_assert_int_eq(ring_result(&ring), 1);
	for (int i = 0; i < 4; i++) {
		assert_answer(iov[i], i == 2 ? -EIO : 0, i != 2);
		ck_assert(i == 2 || holds(where(ex, 48 + i), 48 + i, 0));
	}
	ck_assert_uint_eq(resident(ex, 48, 4), 3);

	/* Up to where it went well. */
	prep_rw(&ring, IORING_OP_READV, ex->fd, (void *)vec, 3, 0);
	ck_assert_int_eq(ring_result(&ring), PAGE);
	ck_assert(holds(where(ex, 30), 30, 0));
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 46, 5), 4 * PAGE);
	ck_assert_uint_eq(resident(ex, 50, 1), 0);

	/* A write that fails leaves the page where it is. */
	ck_assert_int_eq(alloc(ex, 0, 50, 1), 1);
	memset(where(ex, 50), 0x5a, PAGE);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_WRITE, 50, 1), -EIO);
	ck_assert(all_bytes(where(ex, 50), 0x5a));
	assert_nothing_lost(ex);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of asynchronous I/O. They overwrite the block devices named by\n"
			  "$EXMAP_TEST_DEVICE, $EXMAP_TEST_SLOW_DEVICE, $EXMAP_TEST_BAD_DEVICE,\n"
			  "$EXMAP_TEST_ODD_DEVICE and $EXMAP_TEST_NARROW (a directory of configfs).");
}
