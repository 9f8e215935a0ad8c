// SPDX-License-Identifier: GPL-2.0
/*
 * The paper's Figures 9 and 10: pages are read from a block device, with exmap and with what Linux
 * offers instead. Two scenarios write pages.
 */
#include "run.h"

#include <liburing.h>
#include <sys/uio.h>

/* From one page of a batch to the next. They are so far apart that no requests are merged. */
#define STRIDE 16
/* Batches that a thread reads in turn, so that it does not always read the same pages. */
#define TURNS STRIDE
/* With --count: pages per round, and the number of rounds. The best round counts. */
#define COUNT_PAGES 4096
#define COUNT_ROUNDS 3

/**
 * struct reader - a thread's batch, and the memory that it is read to
 * @thread: number of the thread
 * @interface: the thread's interface, if the scenario uses an exmap
 * @turn: number of batches so far, or with a ring of pages
 * @page: first page of the batch: its number in the file and on the surface
 * @memory: memory that the batch is read to, unless that is its place on the surface
 * @ring: the io_uring
 * @slot: the page number that each read of the ring reads
 * @idle: the slots without a read under way
 * @nr_idle: number of slots in @idle
 * @under_way: number of reads under way
 */
struct reader {
	unsigned int thread;
	struct exmap_interface interface;
	unsigned int turn;
	uint64_t page;
	char *memory;
	struct io_uring ring;
	uint64_t slot[EXMAP_USER_INTERFACE_PAGES];
	unsigned int idle[EXMAP_USER_INTERFACE_PAGES];
	unsigned int nr_idle;
	unsigned int under_way;
};

/**
 * struct scenario - a way to read
 * @name: name for --scenario and in the result
 * @to: the memory that the pages are read to
 * @ring: keep --depth calls of one page under way, instead of reading a batch at a time
 * @writes: @read writes to the device
 * @read: read or write a batch, or with a ring wait for reads; returns how many pages were read
 * @release: free the pages that @read has read
 */
struct scenario {
	const char *name;
	enum { ANONYMOUS, POPULATED, MAPPED, MISSING } to;
	enum { NO_RING, READS, COMMANDS } ring;
	bool writes;
	unsigned int (*read)(struct reader *reader);
	void (*release)(struct reader *reader);
};

static const struct scenario *scenario;
static const char *device = "/dev/nullb0";
static unsigned int depth;
static unsigned int ring_flags;
static bool device_given, adjacent, dense, count;

/*
 * The first page of the next batch: the next page or, with --adjacent and --dense, the page after
 * the batch.
 */
static uint64_t next_page(struct reader *reader)
{
	unsigned int turn = reader->turn++ % TURNS;

	return adjacent || dense ? bench_batch_page(reader->thread, turn) :
				   bench_batch_page(reader->thread, 0) + turn;
}

/* The address of a page on the surface. */
static char *surface(uint64_t page)
{
	return bench.base + (page - bench.first) * BENCH_PAGE_SIZE;
}

static void check_read(ssize_t got, ssize_t wanted, uint64_t page)
{
	if (got != wanted)
		bench_fail("a read of %zd bytes at page %lu of %s returned %zd: %s", wanted, page,
			   device, got, got < 0 ? strerror(errno) : "it stopped half-way");
}

/* Batches */

/* pread() or pwrite() of the device, with a call for each entry. */
static unsigned int transfer_device(struct reader *reader)
{
	const size_t size = bench.run * BENCH_PAGE_SIZE;
	unsigned int i;
	ssize_t got;

	reader->page = next_page(reader);
	for (i = 0; i < bench_entries(); i++) {
		size_t at = i * bench.stride;
		char *memory = reader->memory + at * BENCH_PAGE_SIZE;
		off_t offset = (reader->page + at) * BENCH_PAGE_SIZE;

		got = scenario->writes ? pwrite(bench.backing, memory, size, offset) :
					 pread(bench.backing, memory, size, offset);
		check_read(got, size, reader->page + at);
	}
	return bench.batch;
}

/* preadv() through the exmap's fd. The offset is the number of the interface. */
static unsigned int read_fd(struct reader *reader)
{
	const struct exmap_interface *interface = &reader->interface;
	struct iovec iovec[EXMAP_USER_INTERFACE_PAGES];
	unsigned int i;
	ssize_t got;

	reader->page = next_page(reader);
	for (i = 0; i < bench_entries(); i++) {
		iovec[i].iov_base = surface(reader->page + i * bench.stride);
		iovec[i].iov_len = bench.run * BENCH_PAGE_SIZE;
	}
	if (bench_entries() == 1)
		got = pread(interface->fd, iovec->iov_base, iovec->iov_len, interface->number);
	else
		got = preadv(interface->fd, iovec, bench_entries(), interface->number);
	check_read(got, bench.batch * BENCH_PAGE_SIZE, reader->page);
	return bench.batch;
}

static void action(struct reader *reader, unsigned int opcode)
{
	bench_fill(&reader->interface, reader->page, bench_entries());
	if (bench_action(&reader->interface, opcode) != (int)bench_entries())
		bench_fail("no memory at interface %u, with %u threads and batches of %u: this "
			   "machine has too little", reader->interface.number, bench.threads,
			   bench.batch);
}

static unsigned int read_action(struct reader *reader)
{
	reader->page = next_page(reader);
	action(reader, EXMAP_OP_READ);
	return bench.batch;
}

/* WRITE of the pages that stay mapped. */
static unsigned int write_action(struct reader *reader)
{
	reader->page = bench_batch_page(reader->thread, 0);
	action(reader, EXMAP_OP_WRITE);
	return bench.batch;
}

static void free_batch(struct reader *reader)
{
	action(reader, EXMAP_OP_FREE);
}

/* Free the batch with one madvise, which is the cheapest way for the side that exmap must beat. */
static void throw_away(struct reader *reader)
{
	size_t size = bench_entries() * bench.stride * BENCH_PAGE_SIZE;

	if (madvise(reader->memory, size, MADV_DONTNEED))
		bench_fail("madvise: %s", strerror(errno));
}

static void keep(struct reader *reader)
{
}

/* io_uring */

/* Submit the reads, wait until at least one is done, and add the slots of all that are to @idle. */
static void reap(struct reader *reader)
{
	struct io_uring_cqe *cqe;
	unsigned int head, nr = 0;
	int err;

	err = io_uring_submit_and_wait(&reader->ring, 1);
	if (err < 0)
		bench_fail("io_uring_submit_and_wait: %s", strerror(-err));

	io_uring_for_each_cqe(&reader->ring, head, cqe) {
		unsigned int slot = cqe->user_data;

		if (cqe->res < 0)
			errno = -cqe->res;
		check_read(cqe->res < 0 ? -1 : cqe->res, BENCH_PAGE_SIZE, reader->slot[slot]);
		reader->idle[reader->nr_idle++] = slot;
		nr++;
	}
	io_uring_cq_advance(&reader->ring, nr);
	reader->under_way -= nr;
}

/* A free entry of the submission queue. A thread that polls the queue may not have taken all yet. */
static struct io_uring_sqe *get_sqe(struct io_uring *ring)
{
	struct io_uring_sqe *sqe;

	while (!(sqe = io_uring_get_sqe(ring)))
		io_uring_sqring_wait(ring);
	return sqe;
}

/* Prepare a READ of a page that is missing on the surface. */
static void prepare_missing(struct reader *reader, struct io_uring_sqe *sqe, uint64_t page)
{
	const struct iovec where = { surface(page), BENCH_PAGE_SIZE };
	const int fd = reader->interface.fd;

	if (scenario->ring == READS) {
		io_uring_prep_read(sqe, fd, where.iov_base, where.iov_len,
				   reader->interface.number);
		return;
	}
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, fd, NULL, 0, 0);
	sqe->cmd_op = EXMAP_OP_READ << 8 | reader->interface.number;
	memcpy((char *)sqe + offsetof(struct io_uring_sqe, cmd), &where, sizeof(where));
}

/* Start a read for each idle slot. */
static unsigned int read_ring(struct reader *reader)
{
	while (reader->nr_idle) {
		struct io_uring_sqe *sqe = get_sqe(&reader->ring);
		unsigned int slot = reader->idle[--reader->nr_idle];
		uint64_t page = next_page(reader) + slot * bench.stride;

		if (scenario->to == MISSING)
			prepare_missing(reader, sqe, page);
		else
			io_uring_prep_read(sqe, bench.backing,
					   reader->memory + slot * bench.stride * BENCH_PAGE_SIZE,
					   BENCH_PAGE_SIZE, page * BENCH_PAGE_SIZE);
		sqe->user_data = slot;
		reader->slot[slot] = page;
		reader->under_way++;
	}
	reap(reader);
	return reader->nr_idle;
}

static void free_idle(struct reader *reader)
{
	unsigned int i;

	exmap_batch_clear(&reader->interface);
	for (i = 0; i < reader->nr_idle; i++)
		exmap_batch_add(&reader->interface, reader->slot[reader->idle[i]], 1);
	bench_action(&reader->interface, EXMAP_OP_FREE);
}

/* The scenarios */

static const struct scenario scenarios[] = {
	{ "pread", ANONYMOUS, NO_RING, false, transfer_device, throw_away },
	{ "populated", POPULATED, NO_RING, false, transfer_device, keep },
	{ "surface", MAPPED, NO_RING, false, transfer_device, keep },
	{ "fd", MISSING, NO_RING, false, read_fd, free_batch },
	{ "action", MISSING, NO_RING, false, read_action, free_batch },
	{ "uring", MISSING, READS, false, read_ring, free_idle },
	{ "uring-command", MISSING, COMMANDS, false, read_ring, free_idle },
	{ "uring-device", POPULATED, READS, false, read_ring, keep },
	{ "pwrite", POPULATED, NO_RING, true, transfer_device, keep },
	{ "write", MAPPED, NO_RING, true, write_action, keep },
	{ }
};

enum { SCENARIO = 256, DEVICE, DEPTH, RING, ADJACENT, DENSE, COUNT };

static const struct option options[] = {
	{ "scenario", required_argument, NULL, SCENARIO },
	{ "device", required_argument, NULL, DEVICE },
	{ "depth", required_argument, NULL, DEPTH },
	{ "ring", required_argument, NULL, RING },
	{ "adjacent", no_argument, NULL, ADJACENT },
	{ "dense", no_argument, NULL, DENSE },
	{ "count", no_argument, NULL, COUNT },
	{ }
};

static void option(int value, const char *argument)
{
	switch (value) {
	case SCENARIO:
		for (scenario = scenarios; scenario->name; scenario++)
			if (!strcmp(scenario->name, argument))
				return;
		bench_fail("--scenario is '%s', which does not exist: see --help", argument);
	case DEVICE:
		device = argument;
		device_given = true;
		break;
	case DEPTH:
		depth = bench_number("--depth", argument, 1, EXMAP_USER_INTERFACE_PAGES);
		break;
	case RING:
		if (!strcmp(argument, "deferred"))
			ring_flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
		else if (!strcmp(argument, "polled"))
			ring_flags = IORING_SETUP_SQPOLL;
		else if (strcmp(argument, "plain"))
			bench_fail("--ring is '%s': see --help", argument);
		break;
	case ADJACENT:
		adjacent = true;
		break;
	case DENSE:
		dense = true;
		break;
	case COUNT:
		count = true;
	}
}

#define READS "scenario,threads,batch,depth,reads_per_second"
#define COUNTED "scenario,threads,batch,depth,nanoseconds_per_page"

static const struct bench_program program = {
	.about =
	"Measures how fast threads read batches of pages from a block device, past the page\n"
	"cache. Two scenarios overwrite the device; the others only read it. The pages of a batch are 16 pages apart\n"
	"in the file and in memory. Exits with 0; 1 on failure, also if pages are left over;\n"
	"77 without /dev/nullb0 or without io_uring. To create /dev/nullb0:\n"
	"  modprobe null_blk nr_devices=1 gb=4 bs=4096 no_sched=1 queue_mode=0 irqmode=0\n",
	.result =
	"  " READS "\n"
	"A read is one page, and depth is the number of calls under way. With --count it is\n"
	"  " COUNTED "\n"
	"for the best of 3 rounds of 4096 pages. Only reading counts, with two clock readings\n"
	"per call. In a machine of vm/run -i nanoseconds are instructions.\n",
	.options = options,
	.option = option,
	.own_help =
	"      --scenario HOW     what to measure (default action)\n"
	"                           pread         pread of the device, a call per page, to\n"
	"                                         anonymous memory that is freed after each\n"
	"                                         batch\n"
	"                           populated     the same, to memory that stays populated\n"
	"                           surface       the same, to pages that stay mapped in an exmap\n"
	"                           fd            preadv through the exmap's fd, then FREE\n"
	"                           action        READ, then FREE\n"
	"                           uring         reads of single pages through the exmap's fd\n"
	"                                         by io_uring, then FREE of those that are done\n"
	"                           uring-command the same by commands of io_uring\n"
	"                           uring-device  reads by io_uring from the device, to memory\n"
	"                                         that stays populated\n"
	"                           pwrite        pwrite of the device, a call per page, from\n"
	"                                         memory that stays populated\n"
	"                           write         WRITE of pages that stay mapped in an exmap\n"
	"      --depth READS      reads under way with io_uring, 1 to 512 (default 64)\n"
	"      --ring KIND        the io_uring: plain (default), deferred (DEFER_TASKRUN) or\n"
	"                         polled (SQPOLL)\n"
	"      --adjacent         a batch is one run of pages, and one call or entry; the name\n"
	"                         of the scenario in the result ends in -adjacent\n"
	"      --dense            the pages of a batch are adjacent, but each has a call or\n"
	"                         entry of its own; the name ends in -dense\n"
	"      --device PATH      block device or file to read (default /dev/nullb0)\n"
	"      --count            print the cost instead of the rate, and ignore --time\n",
	.min_threads = 1,
	.max_threads = 256,	/* the offset of a read can name this many interfaces */
};

/* Setting up */

static void open_device(void)
{
	bench.backing = open(device, (scenario->writes ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
	if (bench.backing < 0)
		bench_exit(device_given ? 1 : BENCH_SKIP, "%s: %s%s", device, strerror(errno),
			   errno == EINVAL ? ": it cannot be read past the page cache" :
			   device_given ? "" : ": see --help, or use --device");
}

/* Fail if the device is too small for all batches. Call this after the parts are mapped. */
static void check_size(void)
{
	uint64_t pages = bench.first + bench.threads * bench.part;
	off_t size = lseek(bench.backing, 0, SEEK_END);

	if (size < 0 || size / BENCH_PAGE_SIZE < pages)
		bench_fail("%s must have %lu pages for %u threads: use fewer threads", device,
			   pages, bench.threads);
}

/* Allocate or free the pages at reader->memory. */
static void memory_action(struct reader *reader, unsigned int opcode)
{
	reader->page = bench_batch_page(reader->thread, 0);
	action(reader, opcode);
}

static struct reader *open_reader(unsigned int thread)
{
	struct reader *reader = calloc(1, sizeof(*reader));
	unsigned int i;
	int err;

	if (!reader)
		bench_fail("no memory for a thread");
	reader->thread = thread;
	reader->memory = bench_batch_address(thread, 0);
	if (bench.exmap.fd >= 0)
		bench_attach(&reader->interface, thread);
	if (scenario->to == MAPPED)
		memory_action(reader, EXMAP_OP_ALLOC);
	for (i = 0; scenario->to == POPULATED && i < bench_entries() * bench.stride; i++)
		reader->memory[i * BENCH_PAGE_SIZE] = 1;
	if (!scenario->ring)
		return reader;
	err = io_uring_queue_init(depth, &reader->ring, ring_flags);
	if (err)
		bench_exit(err == -ENOSYS || err == -EPERM || err == -EINVAL ? BENCH_SKIP : 1,
			   "io_uring_queue_init: %s", strerror(-err));
	for (reader->nr_idle = 0; reader->nr_idle < depth; reader->nr_idle++)
		reader->idle[reader->nr_idle] = reader->nr_idle;
	return reader;
}

static void close_reader(struct reader *reader)
{
	while (reader->under_way) {
		/* The pages of these slots have been freed. */
		reader->nr_idle = 0;
		reap(reader);
		scenario->release(reader);
	}
	if (scenario->ring)
		io_uring_queue_exit(&reader->ring);
	if (scenario->to == MAPPED)
		memory_action(reader, EXMAP_OP_FREE);
	free(reader);
}

static void work(struct bench_thread *thread)
{
	struct reader *reader = open_reader(thread->id);

	bench_start();
	while (!bench_stopped()) {
		unsigned int pages = scenario->read(reader);

		scenario->release(reader);
		bench_count(thread, pages);
	}
	close_reader(reader);
}

/* How many nanoseconds the reading of a page takes. */
static double cost(void)
{
	struct reader *reader;
	double best = 0;
	unsigned int i;

	bench_pin(0);
	reader = open_reader(0);
	for (i = 0; i < COUNT_ROUNDS; i++) {
		uint64_t nanoseconds = 0, start;
		unsigned int pages = 0;

		while (pages < COUNT_PAGES) {
			start = bench_nanoseconds();
			pages += scenario->read(reader);
			nanoseconds += bench_nanoseconds() - start;
			scenario->release(reader);
		}
		if (!i || (double)nanoseconds / pages < best)
			best = (double)nanoseconds / pages;
	}
	close_reader(reader);
	if (bench.exmap.fd >= 0)
		bench_check_stats();
	return best;
}

/* Check the options against each other, and set the defaults that depend on others. */
static void settle_options(void)
{
	if (!scenario)
		option(SCENARIO, "action");
	if (count && !bench.threads_given)
		bench.threads = 1;
	if (count && bench.threads > 1)
		bench_fail("--count is for one thread");
	if ((adjacent || dense) && scenario->ring)
		bench_fail("io_uring reads scattered pages: leave out --adjacent and --dense");
	if (adjacent && dense)
		bench_fail("--adjacent and --dense are two ways: leave one out");
	if ((depth || ring_flags) && !scenario->ring)
		bench_fail("--depth and --ring are for uring, uring-command and uring-device");
	if (scenario->ring) {
		/* The slots are at the places of the pages of a batch. */
		depth = depth ? depth : 64;
		bench.batch = depth;
	}
	bench.run = adjacent ? bench.batch : 1;
	bench.stride = adjacent ? bench.batch : dense ? 1 : STRIDE;
}

int main(int argc, char **argv)
{
	struct bench_result result;
	char name[32];
	double value;

	bench_options(argc, argv, &program);
	settle_options();
	open_device();
	if (scenario->to == MAPPED || scenario->to == MISSING) {
		bench_need_pages();
		bench_setup(bench.threads, adjacent || dense ? TURNS : 1);
	} else {
		bench_map_anonymous(adjacent || dense ? TURNS : 1);
	}
	check_size();

	snprintf(name, sizeof(name), "%s%s", scenario->name, adjacent ? "-adjacent" :
		 dense ? "-dense" : "");
	if (count) {
		value = cost();
	} else {
		result = bench_measure(name, work);
		value = result.pages / result.seconds;
	}
	bench_print(count ? COUNTED : READS, "%s,%u,%u,%u,%.*f", name, bench.threads,
		    scenario->ring ? 1 : bench.batch, scenario->ring ? depth : 1, count, value);
	return 0;
}
