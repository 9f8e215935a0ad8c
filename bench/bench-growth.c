// SPDX-License-Identifier: GPL-2.0
/*
 * Does the cost of exmap grow with the surface, the interfaces, the exmaps in this process and in
 * others, or the pool? Do adjacent pages stay adjacent in memory? And how much kernel memory does
 * exmap use? It is meant for a clock that advances one nanosecond with each instruction
 * (vm/run -i).
 *
 * The cost per page is for 4096 pages, the best of three rounds. A round before them does not
 * count: after it the pages are in the pool, and the page tables exist.
 */
#include "batch.h"

#include <sys/wait.h>

#define TOTAL 4096U	/* pages per round */
#define ROUNDS 3
#define GIB ((uint64_t)262144)	/* pages */
#define MIB ((uint64_t)256)
#define LARGEST (4096 * GIB)	/* the largest surface */
#define GROW 64		/* pages that an interface takes from the system at its first use */
#define MANY 64U	/* exmaps; and interfaces in the larger case for memory */

/*
 * The benchmark uses this many page tables of a surface of any size. They are spread evenly over
 * the surface, and it uses eight pages of each. In a batch of 512 pages each page belongs to
 * another table, as in a batch picked at random on a large surface. A surface of 1 GiB has no other
 * tables. On a larger one random pages would use more tables in all, but no more per page.
 */
#define TABLES 512U

/*
 * The pages that a measurement uses: from @first on, in page tables that are @spread pages apart;
 * adjacent pages if @spread is 0.
 */
struct place {
	uint64_t first;
	uint64_t spread;
};

static struct exmap exmap[MANY];
static struct exmap_interface interface[EXMAP_MAX_INTERFACES];

static void __attribute__((format(printf, 2, 3)))
print(double value, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf(",%.7g\n", value);
	if (fflush(stdout))
		bench_fail_with("standard output", -errno);
}

/* Cost per page */

static uint64_t nth_page(const struct place *place, unsigned int n)
{
	/* The factor is odd, so TABLES consecutive values of n use each table once. */
	return place->first + (place->spread ?
			       n * 211 % TABLES * place->spread + n / TABLES * 64 : n);
}

/* Run batches for all pages, at interface 0. Returns the time spent in calls. */
static uint64_t sweep(const struct place *place, unsigned int opcode, unsigned int batch)
{
	uint64_t spent = 0;
	unsigned int n, i;

	for (n = 0; n < TOTAL; n += batch) {
		exmap_batch_clear(&interface[0]);
		for (i = 0; i < batch; i++)
			exmap_batch_add(&interface[0], nth_page(place, n + i), 1);
		spent += bench_timed_action(&interface[0], opcode);
	}
	return spent;
}

/* Print the cost of ALLOC and FREE at interface 0. */
static void measure(const char *what, uint64_t size, const struct place *place)
{
	static const unsigned int batches[] = { 1, 512 };
	unsigned int i;
	int round;

	for (i = 0; i < 2; i++) {
		uint64_t alloc = UINT64_MAX, free = UINT64_MAX, spent;

		for (round = 0; round <= ROUNDS; round++) {
			spent = sweep(place, EXMAP_OP_ALLOC, batches[i]);
			if (round && spent < alloc)
				alloc = spent;
			spent = sweep(place, EXMAP_OP_FREE, batches[i]);
			if (round && spent < free)
				free = spent;
		}
		print((double)alloc / TOTAL, "%s,%lu,alloc,%u", what, size, batches[i]);
		print((double)free / TOTAL, "%s,%lu,free,%u", what, size, batches[i]);
	}
}

static void open_exmap(struct exmap *new, uint64_t surface, uint64_t pool, unsigned int interfaces)
{
	int err = exmap_open(new, surface, pool, interfaces, -1, 0);

	if (err)
		bench_fail_with("an exmap", err);
}

/* Attach to interface @number, and allocate and free page @number there. */
static void use(struct exmap *of, struct exmap_interface *with, unsigned int number)
{
	int err = exmap_attach_to(of, with, number);

	if (!err)
		err = exmap_page(with, EXMAP_OP_ALLOC, number);
	if (err == 1)
		err = exmap_page(with, EXMAP_OP_FREE, number);
	if (err != 1)
		bench_fail_with("the first use of an interface", err);
}

static void detach(unsigned int interfaces)
{
	while (interfaces--)
		exmap_detach(&interface[interfaces]);
}

static void surfaces(void)
{
	static const uint64_t sizes[] = { GIB, 64 * GIB, LARGEST };
	unsigned int i;

	for (i = 0; i < 3; i++) {
		struct place place = { .spread = sizes[i] / TABLES };

		/* The surface is one page table longer, so that it can start with a whole one. */
		open_exmap(&exmap[0], sizes[i] + BENCH_TABLE_PAGES, TOTAL + GROW, 1);
		use(&exmap[0], &interface[0], 0);
		place.first = -((uintptr_t)exmap[0].surface / BENCH_PAGE_SIZE) % BENCH_TABLE_PAGES;
		measure("surface", sizes[i] / GIB, &place);
		detach(1);
		exmap_close(&exmap[0]);
	}
}

/* The other measurements use adjacent pages. These cost least, so growth shows most. */
static const struct place adjacent;

static void interfaces(void)
{
	static const unsigned int numbers[] = { 1, 32, EXMAP_MAX_INTERFACES };
	unsigned int i, j;

	for (i = 0; i < 3; i++) {
		open_exmap(&exmap[0], GIB, TOTAL + numbers[i] * GROW, numbers[i]);
		for (j = 0; j < numbers[i]; j++)
			use(&exmap[0], &interface[j], j);
		measure("interfaces", numbers[i], &adjacent);
		detach(numbers[i]);
		exmap_close(&exmap[0]);
	}
}

/* Each exmap is open, mapped, set up, and has been used once. */
static void exmaps(void)
{
	static const unsigned int numbers[] = { 1, 8, MANY };
	unsigned int i, j;

	for (i = 0; i < 3; i++) {
		for (j = 0; j < numbers[i]; j++) {
			open_exmap(&exmap[j], GIB, TOTAL + GROW, 1);
			use(&exmap[j], &interface[j], 0);
		}
		measure("exmaps", numbers[i], &adjacent);
		detach(numbers[i]);
		for (j = 0; j < numbers[i]; j++)
			exmap_close(&exmap[j]);
	}
}

/* A process with an exmap. It exits when the last writer of @until has closed it. */
static void __attribute__((noreturn)) child(int ready, int until)
{
	char byte = 0;

	open_exmap(&exmap[0], GIB, TOTAL, 1);
	use(&exmap[0], &interface[0], 0);
	if (write(ready, &byte, 1) != 1)
		bench_fail_with("a pipe", -errno);
	while (read(until, &byte, 1) < 0 && errno == EINTR)
		;
	_exit(0);
}

/* As exmaps(), but each exmap has a process of its own. */
static void processes(void)
{
	static const unsigned int numbers[] = { 1, 8, MANY };
	int ready[2], until[2], status;
	unsigned int i, j;
	char byte;

	for (i = 0; i < 3; i++) {
		if (pipe(ready) || pipe(until))
			bench_fail_with("a pipe", -errno);
		for (j = 1; j < numbers[i]; j++) {
			pid_t pid = fork();

			if (pid < 0)
				bench_fail_with("a process", -errno);
			if (!pid) {
				close(ready[0]);
				close(until[1]);
				child(ready[1], until[0]);
			}
		}
		close(ready[1]);
		close(until[0]);
		for (j = 1; j < numbers[i]; j++)
			if (read(ready[0], &byte, 1) != 1)
				bench_fail("another process failed (above)");
		open_exmap(&exmap[0], GIB, TOTAL + GROW, 1);
		use(&exmap[0], &interface[0], 0);
		measure("processes", numbers[i], &adjacent);
		detach(1);
		exmap_close(&exmap[0]);
		close(until[1]);
		close(ready[0]);
		while (wait(&status) > 0)
			;
	}
}

/* Neighbors */

#define GROUP 16U	/* pages that stay together when the order is shuffled */

/* The order in which a round goes through the groups. */
static unsigned int order[TOTAL / GROUP];

/* Put the groups into another order, the same one in each run of the program. */
static void shuffle(void)
{
	static unsigned int state = 1;
	unsigned int i;

	for (i = TOTAL / GROUP - 1; i; i--) {
		unsigned int other, old = order[i];

		state = state * 1103515245 + 12345;
		other = (state >> 16) % (i + 1);
		order[i] = order[other];
		order[other] = old;
	}
}

/* ALLOC or FREE of all pages at interface 0, 512 entries at a time. */
static void in_order(unsigned int opcode)
{
	unsigned int n;

	for (n = 0; n < TOTAL; n++) {
		if (n % 512 == 0)
			exmap_batch_clear(&interface[0]);
		exmap_batch_add(&interface[0], order[n / GROUP] * GROUP + n % GROUP, 1);
		if (n % 512 == 511)
			bench_timed_action(&interface[0], opcode);
	}
}

/* The same in runs of 512 pages, and in order. */
static void in_runs(unsigned int opcode)
{
	unsigned int n;

	for (n = 0; n < TOTAL; n += 512)
		if (exmap_run(&interface[0], opcode, n, 512) != 512)
			bench_fail_with("a run", -EIO);
}

/* The share of the groups of @size pages that are adjacent in memory, too. */
static double together(unsigned int size)
{
	static uint64_t frame[TOTAL];	/* the low bits are the number of the page frame */
	unsigned int first, i, groups = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0 || pread(fd, frame, sizeof(frame), (off_t)((uintptr_t)exmap[0].surface /
		  EXMAP_PAGE_SIZE * sizeof(*frame))) != sizeof(frame))
		bench_fail_with("/proc/self/pagemap", -errno);
	close(fd);
	for (first = 0; first < TOTAL; first += size) {
		for (i = 1; i < size && frame[first + i] == frame[first] + i; i++)
			;
		groups += i == size;
	}
	return (double)groups / (TOTAL / size);
}

/* Print the worst shares after ALLOC, in any of a few rounds of ALLOC and FREE. */
static void neighbors(const char *what, void (*call)(unsigned int opcode), bool shuffled)
{
	static const unsigned int sizes[] = { 4, GROUP, 512 };
	double worst[] = { 1, 1, 1 }, share;
	unsigned int i;
	int round;

	for (i = 0; i < TOTAL / GROUP; i++)
		order[i] = i;
	for (round = 0; round <= 2 * ROUNDS; round++) {
		call(EXMAP_OP_ALLOC);
		for (i = 0; i < 3; i++) {
			share = together(sizes[i]);
			if (share < worst[i])
				worst[i] = share;
		}
		if (shuffled)
			shuffle();
		call(EXMAP_OP_FREE);
		if (shuffled)
			shuffle();
	}
	for (i = 0; i < 3; i++)
		print(worst[i], "%s,%u,,", what, sizes[i]);
}

/* The pool comes from the system in the first round. Each case has a pool of its own. */
static void all_neighbors(void)
{
	static const struct {
		const char *what;
		void (*call)(unsigned int opcode);
		bool shuffled, defer;
	} cases[] = {
		{ "neighbors-order", in_order, false, false },
		{ "neighbors-shuffled", in_order, true, false },
		{ "neighbors-deferred", in_order, false, true },
		{ "neighbors-runs", in_runs, false, false },
	};
	unsigned int i;
	int err;

	for (i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		open_exmap(&exmap[0], TOTAL, TOTAL, 1);
		err = exmap_attach_to(&exmap[0], &interface[0], 0);
		if (err)
			bench_fail_with("an interface", err);
		exmap_defer(&interface[0], cases[i].defer);
		neighbors(cases[i].what, cases[i].call, cases[i].shuffled);
		detach(1);
		exmap_close(&exmap[0]);
	}
}

/* SETUP */

static uint64_t setup(uint64_t pool)
{
	struct exmap_ioctl_setup params = { .fd = -1, .max_interfaces = 1, .buffer_size = pool };
	int fd = exmap_open_device();
	uint64_t spent;
	void *surface;

	if (fd < 0)
		bench_fail_with("/dev/exmap", fd);
	surface = mmap(NULL, GIB * BENCH_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		       (off_t)EXMAP_OFF_EXMAP);
	if (surface == MAP_FAILED)
		bench_fail_with("a surface", -errno);
	spent = bench_nanoseconds();
	if (ioctl(fd, EXMAP_IOCTL_SETUP, &params))
		bench_fail_with("SETUP", -errno);
	spent = bench_nanoseconds() - spent;
	munmap(surface, GIB * BENCH_PAGE_SIZE);
	close(fd);
	return spent;
}

static void setups(void)
{
	static const uint64_t sizes[] = { MIB, GIB, 64 * GIB };
	uint64_t best[] = { UINT64_MAX, UINT64_MAX, UINT64_MAX }, spent;
	unsigned int i;
	int round;

	/* The sizes take turns, because the first SETUP of a process does more. */
	for (round = 0; round < 5 * ROUNDS; round++)
		for (i = 0; i < 3; i++) {
			spent = setup(sizes[i]);
			if (spent < best[i])
				best[i] = spent;
		}
	for (i = 0; i < 3; i++)
		print(best[i], "setup,%lu,,", sizes[i] / MIB);
}

/* Memory */

static int refresh;	/* /proc/sys/vm/stat_refresh */

/* The sum of all numbers that follow @name in a file; only the first number unless @all is set. */
static uint64_t number_in(const char *path, const char *name, bool all)
{
	/* Static, because a heap would grow and shrink between two measurements. */
	static char text[65536];
	const size_t len = strlen(name);
	uint64_t sum = 0;
	ssize_t got, size = 0;
	bool found = false;
	char *at;
	int fd;

	fd = open(path, O_RDONLY);
	while (fd >= 0 && (got = read(fd, text + size, sizeof(text) - 1 - size)) > 0)
		size += got;
	if (fd < 0 || got < 0)
		bench_fail("%s: %s", path, strerror(errno));
	close(fd);
	text[size] = '\0';
	for (at = text; (at = strstr(at, name)) && (all || !found); found = true) {
		at += len;
		sum += strtoull(at, NULL, 10);
	}
	if (!found)
		bench_fail("%s has no '%s'", path, name);
	return sum;
}

/*
 * The free memory of the system in bytes, exact to the page. The kernel first adds up the counters
 * of all CPUs. Pages on the allocator's lists of each CPU count as free. The result is exact only
 * if the rest of the machine is idle.
 */
static int64_t free_memory(void)
{
	if (write(refresh, "1", 1) != 1)
		bench_fail("/proc/sys/vm/stat_refresh: %s", strerror(errno));
	return (int64_t)(number_in("/proc/zoneinfo", " nr_free_pages ", true) +
			 number_in("/proc/zoneinfo", " count: ", true)) * (int64_t)EXMAP_PAGE_SIZE;
}

/*
 * The free memory once it no longer changes. Page tables, for example, become free only after an
 * RCU grace period, and user space cannot tell when that ends. If the value never settles, this
 * returns the last of 100 looks.
 */
static int64_t free_memory_settled(void)
{
	int64_t last, now = free_memory();
	int looks = 0;

	do {
		last = now;
		nanosleep(&(struct timespec){ .tv_nsec = 200000000 }, NULL);
		now = free_memory();
	} while (now != last && ++looks < 100);
	return now;
}

/* The size of this process's page tables in bytes. */
static int64_t tables(void)
{
	return (int64_t)number_in("/proc/self/status", "VmPTE:", false) * 1024;
}

/*
 * Kernel memory in bytes that an exmap with a surface of 4 TiB and a pool of 256 MiB uses, without
 * the pages of the pool. @untouched: before the first use. @attached: after a program has attached
 * to all interfaces. @full: after all of the pool is mapped. @tables: the page tables then, which
 * the other three do not include.
 */
struct takes {
	int64_t untouched;
	int64_t attached;
	int64_t full;
	int64_t tables;
};

#define POOL (256 * MIB)

static struct takes take(unsigned int interfaces)
{
	const uint64_t each = POOL / interfaces;
	const int64_t memory = free_memory_settled(), table = tables();
	struct takes takes;
	unsigned int i;
	int err;

	open_exmap(&exmap[0], LARGEST, POOL, interfaces);
	takes.untouched = memory - free_memory() - (tables() - table);
	for (i = 0; i < interfaces; i++) {
		err = exmap_attach_to(&exmap[0], &interface[i], i);
		if (err)
			bench_fail_with("an interface", err);
	}
	takes.attached = memory - free_memory() - (tables() - table);
	for (i = 0; i < interfaces; i++)
		if (exmap_run(&interface[i], EXMAP_OP_ALLOC, i * each, each) != (long)each)
			bench_fail("ALLOC cannot map the pool of %lu pages", POOL);
	takes.tables = tables() - table;
	takes.full = memory - free_memory() - takes.tables - (int64_t)(POOL * EXMAP_PAGE_SIZE);
	detach(interfaces);
	exmap_close(&exmap[0]);
	return takes;
}

static int compare(const void *a, const void *b)
{
	const struct takes *one = a, *other = b;

	return (one->full > other->full) - (one->full < other->full);
}

/* The median of several rounds, because other activity can make a result too large or too small. */
static struct takes take_median(unsigned int interfaces)
{
	struct takes takes[ROUNDS];
	int round;

	for (round = 0; round < ROUNDS; round++)
		takes[round] = take(interfaces);
	qsort(takes, ROUNDS, sizeof(*takes), compare);
	return takes[ROUNDS / 2];
}

static void memory(void)
{
	const double pool = POOL * EXMAP_PAGE_SIZE;
	struct takes one, many;

	take(MANY);	/* fills slabs and other caches */
	one = take_median(1);
	many = take_median(MANY);
	print((double)one.untouched / LARGEST, "memory-surface,%lu,,", LARGEST / GIB);
	print((double)(many.attached - many.untouched) / MANY, "memory-interface,%u,,", MANY);
	print((double)one.full / POOL, "memory-pool,1,,");
	print(one.full / (pool + one.tables), "memory-share,1,,");
	print((double)many.full / POOL, "memory-pool,%u,,", MANY);
	print(many.full / (pool + many.tables), "memory-share,%u,,", MANY);
}

static void usage(void)
{
	puts("usage: bench/bench-growth\n"
	     "\n"
	     "Prints what ALLOC and FREE cost per page as surface, interfaces and exmaps grow:\n"
	     "  what,size,opcode,batch,value\n"
	     "in nanoseconds. With the clock of vm/run -i these are instructions.\n"
	     "  surface     size in GiB; the pages are spread over all of it\n"
	     "  interfaces  how many have been used; the cost is at one of them\n"
	     "  exmaps      how many are open in this process\n"
	     "  processes   how many processes have an exmap open\n"
	     "Without opcode and batch:\n"
	     "  neighbors-...     of the groups of so many pages, the share that is still adjacent\n"
	     "                    in memory after rounds of ALLOC and FREE\n"
	     "  setup       nanoseconds of a SETUP; size of the pool in MiB\n"
	     "  memory-surface    bytes of kernel memory per page of an untouched surface\n"
	     "  memory-interface  bytes per interface\n"
	     "  memory-pool       bytes per page of a pool of 256 MiB, without the page itself;\n"
	     "                    size is interfaces in use\n"
	     "  memory-share      the same, divided by the size of pool and page tables\n"
	     "Needs 600 MiB of memory. The memory rows are exact only on an idle machine.\n"
	     "Exits with 0, 1 on failure, 77 if not root. make growth makes a table of this.");
}

int main(int argc, char **argv)
{
	if (argc > 1) {
		usage();
		return argc != 2 || strcmp(argv[1], "--help");
	}
	/* Only root may update the counters of memory, and set up a pool of any size. */
	refresh = open("/proc/sys/vm/stat_refresh", O_WRONLY);
	if (refresh < 0 && (errno == EACCES || errno == EPERM))
		bench_exit(BENCH_SKIP, "/proc/sys/vm/stat_refresh is for root");
	if (refresh < 0)
		bench_fail_with("/proc/sys/vm/stat_refresh", -errno);

	puts("what,size,opcode,batch,value");
	surfaces();
	interfaces();
	exmaps();
	processes();
	all_neighbors();
	setups();
	memory();
	return 0;
}
