/* SPDX-License-Identifier: GPL-2.0 */
/*
 * One READ or WRITE, in any of the ways to make it (enum kind): by io_uring's READ, READV, WRITE
 * or WRITEV, by a command, by a command with FIXED entries, or by libaio. A test that is to
 * hold for several kinds is a function with the kind as its argument; FOR_READS() and the lists
 * below it make a test of each kind.
 */
#ifndef TEST_REQUEST_H
#define TEST_REQUEST_H

#include <libaio.h>

#include "device.h"
#include "ring.h"

/* BY_ACTION and BY_PREAD are calls that wait: struct request does not carry them out. */
enum kind {
	URING_READ, URING_READV, CMD_READ, FIXED_READ, AIO_READ, AIO_READV,
	BY_ACTION, BY_PREAD,
	URING_WRITE, URING_WRITEV, CMD_WRITE, FIXED_WRITE, AIO_WRITE, AIO_WRITEV,
};

/* READ and WRITE by each path through the kernel, without those that only differ by a vector. */
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

/* The same, without libaio. */
#define FOR_RINGS(what, name)				\
	what(name, uring_read, URING_READ)		\
	what(name, cmd_read, CMD_READ)			\
	what(name, fixed_read, FIXED_READ)		\
	what(name, uring_write, URING_WRITE)		\
	what(name, cmd_write, CMD_WRITE)		\
	what(name, fixed_write, FIXED_WRITE)

/* Those with a vector of two ranges. */
#define FOR_VECTORS(what, name)				\
	what(name, uring_readv, URING_READV)		\
	what(name, uring_writev, URING_WRITEV)		\
	what(name, aio_readv, AIO_READV)		\
	what(name, aio_writev, AIO_WRITEV)

/* The argument @what of a list: a test of one kind. */
#define TEST_OF_KIND(name, suffix, kind)		\
	TEST(name##_##suffix, ON_A_DEVICE) { name(kind); }

static inline bool is_write(enum kind kind)
{
	return kind >= URING_WRITE;
}

static inline bool is_aio(enum kind kind)
{
	return kind == AIO_READ || kind == AIO_READV || kind == AIO_WRITE || kind == AIO_WRITEV;
}

static inline bool is_fixed(enum kind kind)
{
	return kind == FIXED_READ || kind == FIXED_WRITE;
}

/* The result of one request by libaio, or the error of its submission. */
static inline long libaio_result(io_context_t aio, struct iocb *iocb)
{
	struct io_event event;
	int ret = io_submit(aio, 1, &iocb);

	if (ret != 1)
		return ret;
	ck_assert_int_eq(io_getevents(aio, 1, 1, &event, NULL), 1);
	return event.res;
}

/* A request on interface 0 of @ex, whose backing file is @device. */
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

static inline void request_init(struct request *r, enum kind kind, struct exmap *ex, int device,
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

static inline unsigned int request_place(enum kind kind)
{
	return place(0, is_write(kind) ? EXMAP_OP_WRITE : EXMAP_OP_READ);
}

/* Two ranges: the first page, and the others. */
static inline void request_vector(struct request *r, char *start, size_t len)
{
	r->iov[0] = (struct iovec){ start, PAGE };
	r->iov[1] = (struct iovec){ start + PAGE, len - PAGE };
}

static inline void request_start_aio(struct request *r, uint64_t page, unsigned int pages)
{
	const long offset = request_place(r->kind);
	const size_t len = pages * PAGE;
	char *start = where(r->ex, page);
	struct iocb *iocb = &r->iocb;

	r->pages = pages;
	request_vector(r, start, len);
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

/*
 * Prepare a request by io_uring for 2 or more pages, from @page on. The caller submits it.
 */
static inline struct io_uring_sqe *request_prep(struct request *r, uint64_t page,
						unsigned int pages)
{
	static const int op[] = {
		[URING_READ] = IORING_OP_READ, [URING_READV] = IORING_OP_READV,
		[URING_WRITE] = IORING_OP_WRITE, [URING_WRITEV] = IORING_OP_WRITEV,
	};
	const unsigned int offset = request_place(r->kind);
	char *start = where(r->ex, page);

	r->pages = pages;
	switch (r->kind) {
	case URING_READ:
	case URING_WRITE:
		return prep_rw(&r->ring, op[r->kind], r->ex->fd, start, pages * PAGE, offset);
	case CMD_READ:
	case CMD_WRITE:
		return prep_cmd(&r->ring, r->ex->fd, offset, start, pages * PAGE);
	case FIXED_READ:
	case FIXED_WRITE:
		r->entries[0] = entry_of(page, pages);
		return prep_fixed(&r->ring, r->ex->fd, offset, r->entries, sizeof(*r->entries));
	default:
		request_vector(r, start, pages * PAGE);
		return prep_rw(&r->ring, op[r->kind], r->ex->fd, r->iov, 2, offset);
	}
}

/* Submit a request of any kind, for 2 or more pages from @page on. */
static inline void request_start(struct request *r, uint64_t page, unsigned int pages)
{
	if (is_aio(r->kind)) {
		request_start_aio(r, page, pages);
		return;
	}
	request_prep(r, page, pages);
	ring_submit(&r->ring, 1);
}

/*
 * Whether the request is still in flight. The kernel may put off a completion until the task's
 * next system call, so getppid() makes one.
 */
static inline bool request_pending(struct request *r)
{
	struct io_event event;

	if (is_aio(r->kind))
		return !io_getevents(r->aio, 0, 1, &event, &(struct timespec){ });
	getppid();
	return !io_uring_cq_ready(&r->ring);
}

/* Wait for the request. Returns bytes for every kind, or the negative errno. */
static inline long request_wait(struct request *r)
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
 * Most tests have a pool of POOL pages and one request, for PAGES pages from page FIRST on. The
 * device holds generation 0; a WRITE writes generation 1.
 */
enum { POOL = 64, FIRST = 10, PAGES = 4 };

/* Make an exmap whose backing file is @fd, and map the pages that a WRITE is to write. */
static inline void request_prepare(struct request *r, enum kind kind, int fd,
				   unsigned int ring_flags)
{
	struct exmap *ex = exmap_on(fd, POOL);

	if (is_write(kind)) {
		ck_assert_int_eq(alloc(ex, 0, FIRST, PAGES), PAGES);
		for (int page = FIRST; page < FIRST + PAGES; page++)
			fill(where(ex, page), page, 1);
	}
	request_init(r, kind, ex, fd, ring_flags);
}

/* Stop the device and submit a request, which is in flight on return. */
static inline void request_in_flight_flags(struct request *r, enum kind kind, unsigned int flags)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES);

	device_stop(fd);
	request_prepare(r, kind, fd, flags);
	request_start(r, FIRST, PAGES);
	ck_assert(request_pending(r));
}

static inline void request_in_flight(struct request *r, enum kind kind)
{
	request_in_flight_flags(r, kind, 0);
}

/* The surface holds what a READ has read; the device holds what a WRITE has written. */
static inline void assert_request_done(struct request *r)
{
	for (unsigned int page = FIRST; page < FIRST + r->pages; page++)
		ck_assert_msg(is_write(r->kind) ? file_holds(r->device, page, 1)
						: holds(where(r->ex, page), page, 0),
			      "page %u does not hold generation %d", page, is_write(r->kind));
}

/* The request is in flight until the device goes on, and then succeeds. */
static inline void assert_request_succeeds(struct request *r)
{
	ck_assert(request_pending(r));
	device_go();
	assert_result(r, r->pages * PAGE);
	assert_request_done(r);
}

/*
 * Free all pages, and see that the pool can be allocated, and not one page more. Returns false if
 * pages are missing because a request still has them.
 */
static inline bool whole_pool(struct exmap *ex, unsigned int pages)
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

static inline void assert_nothing_lost(struct exmap *ex)
{
	ck_assert(whole_pool(ex, POOL));
}

#endif /* TEST_REQUEST_H */
