// SPDX-License-Identifier: GPL-2.0
/*
 * The paper's 1 IF: each thread allocates and frees a batch of single pages at its own interface.
 * --baseline measures what Linux offers instead.
 */
#include "bench/run.h"

#include <sys/pidfd.h>
#include <sys/uio.h>

enum { SHARED_FD = 256, OWN_EXMAP, DEFER, QUARANTINE, BASELINE };

static const struct option options[] = {
	{ "shared-fd", no_argument, NULL, SHARED_FD },
	{ "own-exmap", no_argument, NULL, OWN_EXMAP },
	{ "defer", no_argument, NULL, DEFER },
	{ "quarantine", required_argument, NULL, QUARANTINE },
	{ "baseline", required_argument, NULL, BASELINE },
	{ }
};

static int variant;	/* SHARED_FD, OWN_EXMAP, BASELINE or 0 */
static bool defer;
static unsigned int quarantine = 512;	/* the most pages that a thread defers */
static const char *baseline;
static int self;	/* pidfd of this process */

static void option(int value, const char *argument)
{
	if (value == QUARANTINE)
		quarantine = bench_number("--quarantine", argument, 1, EXMAP_MAX_QUARANTINE);
	if (value == QUARANTINE || value == DEFER)
		defer = true;
	else if (variant && variant != value)
		bench_fail("--shared-fd, --own-exmap and --baseline exclude each other");
	else
		variant = value;
	if (defer && variant && variant != OWN_EXMAP)
		bench_fail("--defer and --quarantine go with --own-exmap only");
	if (value != BASELINE)
		return;
	if (strcmp(argument, "madvise") && strcmp(argument, "process_madvise"))
		bench_fail("--baseline is '%s', but must be madvise or process_madvise", argument);
	baseline = argument;
}

static const struct bench_program program = {
	.about =
	"Measures how fast threads allocate and free batches of single pages, each thread at\n"
	"an interface of its own: the paper's 1 IF. Pages are mapped, but not touched.\n"
	"Exits with 0; 1 on failure, also if pages are left over; 77 if the kernel refuses\n"
	"the baseline.\n",
	.options = options,
	.option = option,
	.own_help =
	"      --shared-fd        one fd for all threads, not a clone for each; the scenario is\n"
	"                         1if-shared instead of 1if\n"
	"      --own-exmap        an exmap for each thread: the threads share the process, but\n"
	"                         nothing of exmap; the scenario begins with 1if-own\n"
	"      --defer            free with EXMAP_FREE_DEFER, and use an address again only\n"
	"                         after its flush; the scenario is 1if-deferred\n"
	"      --quarantine PAGES the same with a quarantine of 1 to 16384 pages per thread,\n"
	"                         not 512; the scenario is 1if-PAGES\n"
	"      --baseline HOW     without exmap: touch every page of a batch of anonymous\n"
	"                         memory, then free the pages with\n"
	"                           madvise          a call for each page\n"
	"                           process_madvise  one call per batch (Linux 6.13 and later)\n",
	.min_threads = 1,
	.max_threads = EXMAP_MAX_INTERFACES,
};

/* Batches of a thread. With --defer, its quarantine is flushed before an address comes again. */
static unsigned int batches(void)
{
	return defer ? 1 + (2 * quarantine - 1 + bench.batch) / bench.batch : 1;
}

static void set_quarantine(const struct exmap *exmap)
{
	int err = exmap_quarantine(exmap, quarantine);

	if (err)
		bench_fail("a quarantine of %u pages: %s", quarantine, exmap_strerror(err));
}

/* Open an exmap like that of bench_setup(). Only the place of its surface may differ. */
static void attach_own(struct exmap *exmap, struct exmap_interface *interface)
{
	int err = exmap_open(exmap, bench.exmap.surface_pages, bench.pages, 1, -1, 0);

	if (!err)
		err = exmap_attach(exmap, interface);
	if (err)
		bench_fail("an exmap for one thread: %s", exmap_strerror(err));
	set_quarantine(exmap);
}

static void one_interface(struct bench_thread *thread)
{
	struct exmap_interface interface;
	struct exmap exmap;

	if (variant == OWN_EXMAP)
		attach_own(&exmap, &interface);
	else if (variant == SHARED_FD)
		bench_attach_shared(&interface, thread->id);
	else
		bench_attach(&interface, thread->id);
	exmap_defer(&interface, defer);
	bench_alloc_free(thread, &interface, &interface, batches());
}

/* The baselines */

static void fill_iovec(struct bench_thread *thread, struct iovec *iovec)
{
	char *address = bench_batch_address(thread->id, 0);
	unsigned int i;

	for (i = 0; i < bench.batch; i++) {
		iovec[i].iov_base = address + i * BENCH_STRIDE * BENCH_PAGE_SIZE;
		iovec[i].iov_len = BENCH_PAGE_SIZE;
	}
}

static void touch(const struct iovec *iovec)
{
	unsigned int i;

	for (i = 0; i < bench.batch; i++)
		*(volatile char *)iovec[i].iov_base = 1;
}

static void each_madvise(struct bench_thread *thread)
{
	struct iovec iovec[EXMAP_USER_INTERFACE_PAGES];
	unsigned int i;

	fill_iovec(thread, iovec);
	bench_start();
	while (!bench_stopped()) {
		touch(iovec);
		for (i = 0; i < bench.batch && !bench_stopped(); i++) {
			if (madvise(iovec[i].iov_base, iovec[i].iov_len, MADV_DONTNEED))
				bench_fail("madvise: %s", strerror(errno));
			/* Count each page, because a whole batch can take a second. */
			bench_count(thread, 1);
		}
	}
}

static void batch_madvise(struct bench_thread *thread)
{
	struct iovec iovec[EXMAP_USER_INTERFACE_PAGES];
	ssize_t size = bench.batch * BENCH_PAGE_SIZE;

	fill_iovec(thread, iovec);
	bench_start();
	while (!bench_stopped()) {
		ssize_t freed;

		touch(iovec);
		freed = process_madvise(self, iovec, bench.batch, MADV_DONTNEED, 0);
		if (freed != size)
			bench_fail("process_madvise freed %zd bytes of %zd: %s", freed, size,
				   freed < 0 ? strerror(errno) : "it stopped half-way");
		bench_count(thread, bench.batch);
	}
}

static void run_baseline(void)
{
	struct iovec one;

	bench_map_anonymous(1);
	if (!strcmp(baseline, "madvise")) {
		bench_run(baseline, each_madvise);
		return;
	}

	one = (struct iovec){ .iov_base = bench.base, .iov_len = BENCH_PAGE_SIZE };
	self = pidfd_open(getpid(), 0);
	if (self < 0 || process_madvise(self, &one, 1, MADV_DONTNEED, 0) < 0)
		bench_exit(BENCH_SKIP, "this kernel refuses process_madvise(MADV_DONTNEED) for the "
			   "own process (%s): it needs 6.13 or later", strerror(errno));
	bench_run(baseline, batch_madvise);
}

/* The name of the scenario in the output. */
static const char *scenario(void)
{
	const char *base = variant == SHARED_FD ? "1if-shared" : variant == OWN_EXMAP ? "1if-own" :
		"1if";
	static char name[32];

	if (!defer)
		return base;
	if (quarantine == 512)
		snprintf(name, sizeof(name), "%s-deferred", base);
	else
		snprintf(name, sizeof(name), "%s-%u", base, quarantine);
	return name;
}

int main(int argc, char **argv)
{
	bench_options(argc, argv, &program);
	if (baseline) {
		run_baseline();
		return 0;
	}
	bench_need_pages();
	bench_setup(bench.threads, batches());
	set_quarantine(&bench.exmap);
	bench_run(scenario(), one_interface);
	return 0;
}
