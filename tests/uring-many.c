// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of many requests at once, and of requests so large that the module carries them out in
 * several windows.
 *
 * EXMAP_TEST_DEVICE		a fast block device with memory behind it, 64 MiB or more
 * EXMAP_TEST_SLOW_DEVICE	a block device that answers after half a second
 *
 * Both are overwritten.
 */
#include "request.h"

enum { MANY = 256 };

/*
 * Of two groups of requests, the device answers the one that was submitted last first. Each page
 * is mapped when its request is done, and not before.
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

/*
 * READs and WRITEs that end together, with more pages than the module maps at a time: all are
 * answered.
 */
TEST(large_requests_end_together, ON_A_DEVICE)
{
	enum { REQUESTS = 12, LENGTH = 80 };
	int fd = device_open("EXMAP_TEST_DEVICE", FILE_PAGES);
	struct exmap *ex = exmap_on(fd, REQUESTS * LENGTH);
	bool done[REQUESTS] = { };
	struct io_uring ring;
	uint64_t data;

	ring_init(&ring, REQUESTS);
	for (int page = 0; page < REQUESTS * LENGTH; page++) {
		if (page / LENGTH % 2 == 0)
			continue;
		ck_assert_int_eq(alloc(ex, 0, page, 1), 1);
		fill(where(ex, page), page, 1);
	}
	device_stop(fd);
	for (int i = 0; i < REQUESTS; i++)
		prep_rw(&ring, i % 2 ? IORING_OP_WRITE : IORING_OP_READ, ex->fd,
			where(ex, i * LENGTH), LENGTH * PAGE,
			place(0, i % 2 ? EXMAP_OP_WRITE : EXMAP_OP_READ))->user_data = i;
	ring_submit(&ring, REQUESTS);
	device_go();
	for (int i = 0; i < REQUESTS; i++) {
		ck_assert_int_eq(ring_wait_data(&ring, &data), LENGTH * PAGE);
		ck_assert(!done[data]);
		done[data] = true;
	}
	for (int page = 0; page < REQUESTS * LENGTH; page++)
		ck_assert(page / LENGTH % 2 ? file_holds(fd, page, 1) :
			  holds(where(ex, page), page, 0));
	assert_mapped(ex, REQUESTS * LENGTH);
	ck_assert(whole_pool(ex, REQUESTS * LENGTH));
}

/* Many requests in one io_submit() do not wait for the device, and all are answered. */
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

/* Submit MANY reads, and wait for them. Returns whether submission ended before any completion. */
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

/* Submission does not wait even if the device cannot take all requests at once. */
TEST(more_than_the_device_takes, .needs_env = "EXMAP_TEST_SLOW_DEVICE")
{
	int fd = device_open("EXMAP_TEST_SLOW_DEVICE", FILE_PAGES);
	struct exmap *ex = exmap_on(fd, MANY);
	struct io_uring ring;

	ring_init(&ring, MANY);
	for (int tries = 0; !submit_more_than_the_device_takes(ex, &ring); tries++)
		ck_assert_msg(tries < 10, "submission waits for the device");
}

/* A limit of the device, as the block layer states it in sysfs. */
static int device_limit(const char *variable, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/queue/%s", basename(getenv(variable)), name);
	return number_in(path);
}

/*
 * If a request has more segments than the device takes then the block layer splits it, and would
 * refuse to do so without waiting. So the module lets it wait at once, and needs no worker.
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
	/* Free every other page, so that no two free pages are adjacent in memory. */
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
 * A worker may carry out a command again when its place in the submission queue already holds
 * another request. In a queue of one place that is always so.
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
		iov[i] = entry_of(i * STEP, 1);
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

/* Enough pages for several windows. */
enum { LARGE = 9000 };

static struct exmap *large_exmap(int *fd)
{
	*fd = device_open("EXMAP_TEST_DEVICE", LARGE);
	return exmap_new_file(2 * LARGE * PAGE, LARGE + 100, 2, 0, *fd);
}

/* READ and WRITE of several windows move all pages. */
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

/* Submission of a READ of several windows does not wait, though later windows may start later. */
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

/* If the surface is unmapped between two windows then the READ fails with EPROTO. */
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
 * Integrity of data. The file or device is larger than the pool. Each thread has a ring, an
 * interface and pages of its own, which it reads, changes, writes back and frees by every kind
 * of request.
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

/* Carry out an operation on all of the pages at once, by a kind of request chosen at random. */
static void worker_call(struct worker *w, int opcode, const uint64_t *page)
{
	const bool cmd_only = opcode == EXMAP_OP_FREE;
	int how = rand_r(&w->seed) % (cmd_only ? 2 : 3), nr = how ? BATCH : 1, res;

	switch (how) {
	case 0:
		for (int i = 0; i < BATCH; i++)
			w->iov[i] = entry_of(page[i], 1);
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

	for (int round = 0; round < scaled(ROUNDS) && !w->error[0]; round++) {
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

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of many requests at once, and of large ones. They overwrite the block devices\n"
			  "$EXMAP_TEST_DEVICE and $EXMAP_TEST_SLOW_DEVICE.");
}
