// SPDX-License-Identifier: GPL-2.0
/*
 * The paper's Figures 9 and 10: pages read from a block device, by the exmap and
 * by what Linux has for it otherwise.
 */
#include "run.h"

#include <liburing.h>
#include <sys/uio.h>

/* From one page of a batch to the next: far enough apart that no request is merged. */
#define STRIDE 16
/* Batches that a thread goes round, so that not always the same pages are read. */
#define TURNS STRIDE
/* With --count: pages per round, and rounds of which the best counts. */
#define COUNT_PAGES 4096
#define COUNT_ROUNDS 3

/**
 * struct reader - a thread's batch, and where it goes
 * @thread: which thread
 * @interface: of the exmap, where there is one
 * @turn: counts batches, and with a ring pages
 * @page: where in the file the batch starts, a page number; on the surface, too
 * @memory: where the batch goes, if not to its place on the surface
 * @ring: reads under way
 * @slot: what each of them reads, a page number
 * @idle: the slots that nothing is under way for, @nr_idle of them
 * @under_way: how many reads are
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
 * @name: for --scenario and in the result
 * @to: the memory that is read to
 * @ring: --depth reads of one page are under way, otherwise a batch at a time
 * @read: read a batch, or what is ready; returns how many pages
 * @release: let go of what was read last
 */
struct scenario {
	const char *name;
	enum { ANONYMOUS, POPULATED, MAPPED, MISSING } to;
	bool ring;
	unsigned int (*read)(struct reader *reader);
	void (*release)(struct reader *reader);
};

static const struct scenario *scenario;
static const char *device = "/dev/nullb0";
static unsigned int depth;
static bool device_given, adjacent, count;

/* One page number further each time; adjacent pages one batch further. */
static uint64_t next_page(struct reader *reader)
{
	unsigned int turn = reader->turn++ % TURNS;

	return adjacent ? bench_batch_page(reader->thread, turn) :
			  bench_batch_page(reader->thread, 0) + turn;
}

static char *surface(uint64_t page)
{
	return bench.base + (page - bench.first) * BENCH_PAGE_SIZE;
}

static void check_read(ssize_t got, ssize_t wanted, uint64_t page)
{
	if (got != wanted)
		bench_fail("reading %zd bytes from page %lu of %s on gave %zd: %s", wanted, page,
			   device, got, got < 0 ? strerror(errno) : "it stopped half-way");
}

/* Batches */

/* pread() of the device: a call for each entry. */
static unsigned int read_device(struct reader *reader)
{
	const size_t size = bench.run * BENCH_PAGE_SIZE;
	unsigned int i;

	reader->page = next_page(reader);
	for (i = 0; i < bench_entries(); i++) {
		size_t at = i * bench.stride;

		check_read(pread(bench.backing, reader->memory + at * BENCH_PAGE_SIZE, size,
				 (reader->page + at) * BENCH_PAGE_SIZE), size, reader->page + at);
	}
	return bench.batch;
}

/* preadv() through the exmap's fd; the offset says at which interface. */
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
		bench_fail("no memory at interface %u, with %u threads and batches of %u: the "
			   "machine has too little", reader->interface.number, bench.threads,
			   bench.batch);
}

static unsigned int read_action(struct reader *reader)
{
	reader->page = next_page(reader);
	action(reader, EXMAP_OP_READ);
	return bench.batch;
}

static void free_batch(struct reader *reader)
{
	action(reader, EXMAP_OP_FREE);
}

/* All of it at once, which is the cheapest for what it is compared with. */
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

/* Submit what is to be, wait for a read that is done, put the slots of all such aside. */
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

/* Start a read for each idle slot. */
static unsigned int read_ring(struct reader *reader)
{
	while (reader->nr_idle) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&reader->ring);
		unsigned int slot = reader->idle[--reader->nr_idle];
		uint64_t page = next_page(reader) + slot * bench.stride;

		if (scenario->to == MISSING)
			io_uring_prep_read(sqe, reader->interface.fd, surface(page),
					   BENCH_PAGE_SIZE, reader->interface.number);
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
	{ "pread", ANONYMOUS, false, read_device, throw_away },
	{ "populated", POPULATED, false, read_device, keep },
	{ "surface", MAPPED, false, read_device, keep },
	{ "fd", MISSING, false, read_fd, free_batch },
	{ "action", MISSING, false, read_action, free_batch },
	{ "uring", MISSING, true, read_ring, free_idle },
	{ "uring-device", POPULATED, true, read_ring, keep },
	{ }
};

enum { SCENARIO = 256, DEVICE, DEPTH, ADJACENT, COUNT };

static const struct option options[] = {
	{ "scenario", required_argument, NULL, SCENARIO },
	{ "device", required_argument, NULL, DEVICE },
	{ "depth", required_argument, NULL, DEPTH },
	{ "adjacent", no_argument, NULL, ADJACENT },
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
		bench_fail("--scenario is '%s', which is none: see --help", argument);
	case DEVICE:
		device = argument;
		device_given = true;
		break;
	case DEPTH:
		depth = bench_number("--depth", argument, 1, EXMAP_USER_INTERFACE_PAGES);
		break;
	case ADJACENT:
		adjacent = true;
		break;
	case COUNT:
		count = true;
	}
}

#define READS "scenario,threads,batch,depth,reads_per_second"
#define COUNTED "scenario,threads,batch,depth,nanoseconds_per_page"

static const struct bench_program program = {
	.about =
	"Measures how fast pages are read from a block device, past the page cache, in\n"
	"batches. The device is opened for reading only. Pages of a batch are 16 pages apart\n"
	"in the file and in memory. Exits 0, 1 on failure (also where pages are left over),\n"
	"77 where there is no /dev/nullb0 or no io_uring:\n"
	"  modprobe null_blk nr_devices=1 gb=4 bs=4096 no_sched=1 queue_mode=0 irqmode=0\n",
	.result =
	"  " READS "\n"
	"where a read is one page, and depth how many calls are under way. With --count it is\n"
	"  " COUNTED "\n"
	"the best of 3 rounds of 4096 pages, and only the reading (with a pair of clock\n"
	"readings per call): instructions, in a machine of vm/run -i.\n",
	.options = options,
	.option = option,
	.own_help =
	"      --scenario HOW     what is measured (default action)\n"
	"                           pread         pread of the device, a call per page, to\n"
	"                                         anonymous memory that is thrown away after\n"
	"                                         each batch\n"
	"                           populated     the same to memory that is there\n"
	"                           surface       the same to pages of an exmap that are there\n"
	"                           fd            preadv through the exmap's fd, then FREE\n"
	"                           action        READ, then FREE\n"
	"                           uring         reads of single pages through the exmap's fd\n"
	"                                         by io_uring, and FREE of those that are done\n"
	"                           uring-device  the same of the device, to memory that is there\n"
	"      --depth READS      that many are under way with io_uring, 1 to 512 (default 64)\n"
	"      --adjacent         a batch is one run of pages, and one call or entry;\n"
	"                         the scenario in the result ends in -adjacent\n"
	"      --device PATH      block device or file to read (default /dev/nullb0)\n"
	"      --count            print the cost, not the rate; --time does not matter\n",
	.min_threads = 1,
	.max_threads = 256,	/* as the offset of a read can name that many interfaces */
};

/* Setting up */

static void open_device(void)
{
	bench.backing = open(device, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (bench.backing < 0)
		bench_exit(device_given ? 1 : BENCH_SKIP, "%s: %s%s", device, strerror(errno),
			   errno == EINVAL ? ": it cannot be read past the page cache" :
			   device_given ? "" : ": see --help, or give a --device");
}

/* All that is read has to be there. To be called with the parts mapped. */
static void check_size(void)
{
	uint64_t pages = bench.first + bench.threads * bench.part;
	off_t size = lseek(bench.backing, 0, SEEK_END);

	if (size < 0 || size / BENCH_PAGE_SIZE < pages)
		bench_fail("%s should have %lu pages for %u threads: take fewer", device, pages,
			   bench.threads);
}

/* Allocate or free pages where reader->memory is. */
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
	err = io_uring_queue_init(depth, &reader->ring, 0);
	if (err)
		bench_exit(err == -ENOSYS || err == -EPERM ? BENCH_SKIP : 1,
			   "io_uring_queue_init: %s", strerror(-err));
	for (reader->nr_idle = 0; reader->nr_idle < depth; reader->nr_idle++)
		reader->idle[reader->nr_idle] = reader->nr_idle;
	return reader;
}

static void close_reader(struct reader *reader)
{
	while (reader->under_way) {
		/* These have been released. */
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

/* Nanoseconds for the reading of a page. */
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

/* Bring the options together. */
static void settle_options(void)
{
	if (!scenario)
		option(SCENARIO, "action");
	if (count && !bench.threads_given)
		bench.threads = 1;
	if (count && bench.threads > 1)
		bench_fail("--count is for one thread");
	if (adjacent && scenario->ring)
		bench_fail("with io_uring there are single pages only: leave out --adjacent");
	if (depth && !scenario->ring)
		bench_fail("--depth is for uring and uring-device");
	if (scenario->ring) {
		/* Its slots are where the pages of a batch would be. */
		depth = depth ? depth : 64;
		bench.batch = depth;
	}
	bench.run = adjacent ? bench.batch : 1;
	bench.stride = adjacent ? bench.batch : STRIDE;
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
		bench_setup(bench.threads, adjacent ? TURNS : 1);
	} else {
		bench_map_anonymous(adjacent ? TURNS : 1);
	}
	check_size();

	snprintf(name, sizeof(name), "%s%s", scenario->name, adjacent ? "-adjacent" : "");
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
