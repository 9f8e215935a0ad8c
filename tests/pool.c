// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the pool: how free pages get to the interface that needs them, the shrinker, and what the
 * kernel accounts to the process.
 */
#include "worker.h"

/*
 * Free pages at other interfaces and in the depot
 */
TEST(pool_any_free_page_can_be_had)
{
	struct exmap *ex = exmap_new(MIB, 128, 128);

	/* Each interface has one free page, and the pool may take no more from the system. */
	ck_assert_int_eq(alloc(ex, 0, 0, 128), 128);
	for (int i = 0; i < 128; i++)
		ck_assert_int_eq(release(ex, i, i, 1), 1);
	assert_mapped(ex, 0);
	for (int i = 0; i < 128; i++)
		ck_assert_int_eq(alloc(ex, 77, i, 1), 1);
	assert_mapped(ex, 128);
	ck_assert_int_eq(alloc(ex, 77, 200, 1), -ENOMEM);
	ck_assert_int_eq(release(ex, 3, 9, 1), 1);
	ck_assert_int_eq(alloc(ex, 77, 200, 1), 1);
}

/* ALLOC of one entry steals free pages from as many interfaces as it needs. */
TEST(pool_one_entry_takes_from_all_interfaces)
{
	struct exmap *ex = exmap_new(64 * MIB, 4095, 64);

	ck_assert_int_eq(alloc(ex, 0, 0, 4095), 4095);
	for (int i = 0; i < 4095; i++)
		ck_assert_int_eq(release(ex, i % 64, i, 1), 1);
	ck_assert_int_eq(alloc(ex, 5, 5000, 4095), 4095);
	ck_assert_int_eq(alloc(ex, 6, 0, 1), -ENOMEM);
	assert_mapped(ex, 4095);
}

/*
 * Interface 0 allocates and interface 1 frees more pages than their bundles hold. The pages come
 * back to interface 0 through the depot.
 */
TEST(pool_pages_travel_between_interfaces)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 2);

	for (int round = 0; round < 50; round++) {
		for (int i = 0; i < 512; i++)
			entry(ex, 0, i, i * 5, 5);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 512, 0), 0);
		assert_mapped(ex, 2560);
		for (int i = 0; i < 512; i++)
			entry(ex, 1, i, i * 5, 5);
		ck_assert_int_eq(action(ex->fd, 1, EXMAP_OP_FREE, 512, 0), 0);
		assert_mapped(ex, 0);
	}
	ck_assert_int_eq(alloc(ex, 0, 0, 3000), 3000);
}

TEST(pool_1024_interfaces)
{
	struct exmap *ex = exmap_new(MIB, 256, 1024);

	for (int i = 0; i < 1024; i++) {
		ck_assert_int_eq(alloc(ex, i, i % 256, 1), 1);
		ck_assert_int_eq(release(ex, 1023 - i, i % 256, 1), 1);
	}
	assert_mapped(ex, 0);
	ck_assert_int_eq(alloc(ex, 500, 0, 256), 256);
}

/* Allocate and free the worker's own pages. No call may fail. */
static void *honest_worker(void *arg)
{
	struct worker *w = arg;
	uint64_t first = w->interface * 64;
	int ret;

	for (int round = 0; round < w->rounds && !w->error[0]; round++) {
		for (int i = 0; i < w->pages; i++)
			entry(w->ex, w->interface, i, first + i, 1);
		ret = action(w->ex->fd, w->interface, EXMAP_OP_ALLOC, w->pages, 0);
		if (ret) {
			worker_error(w, "ALLOC while pages were free", ret);
			break;
		}
		for (int i = 0; i < w->pages; i++)
			memset(w->ex->surface + (first + i) * PAGE, w->interface, PAGE);
		for (int i = 0; i < w->pages; i++) {
			if (!all_bytes(w->ex->surface + (first + i) * PAGE, w->interface))
				worker_error(w, "another thread has written to a page", 0);
			entry(w->ex, w->interface, i, first + i, 1);
		}
		ret = action(w->ex->fd, w->interface, EXMAP_OP_FREE, w->pages, 0);
		if (ret)
			worker_error(w, "FREE", ret);
	}
	return NULL;
}

/*
 * ALLOC does not return ENOMEM while the pool has a free page. The pool has exactly the pages
 * that the threads use, so each ALLOC finds enough. Most of them are at another interface or on
 * the way there.
 */
TEST(pool_no_false_enomem)
{
	enum { THREADS = 8, PAGES = 3 };
	struct exmap *ex = exmap_new(16 * MIB, THREADS * PAGES, THREADS);
	struct worker w[THREADS];

	for (int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){ .ex = ex, .interface = i, .pages = PAGES,
				       .rounds = scaled(1000) };
		ck_assert(!pthread_create(&w[i].thread, NULL, honest_worker, &w[i]));
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
	}
	assert_mapped(ex, 0);
}

struct racer {
	struct exmap *ex;
	int interface;
	pthread_barrier_t *barrier;	/* before and after each round */
	atomic_bool *stop;
	pthread_t thread;
	int ret;			/* of the last ALLOC */
};

static void *alloc_racer(void *arg)
{
	struct racer *r = arg;

	for (;;) {
		pthread_barrier_wait(r->barrier);
		if (atomic_load(r->stop))
			return NULL;
		entry(r->ex, r->interface, 0, 0, 1);
		r->ret = action(r->ex->fd, r->interface, EXMAP_OP_ALLOC, 1, 0);
		pthread_barrier_wait(r->barrier);
	}
}

/*
 * Two threads ALLOC the same page, with one free page in the pool. One of them maps it, and the
 * other one finds it mapped: both succeed, even if the second one looked before it was mapped.
 */
TEST(alloc_of_the_same_page_is_no_false_enomem)
{
	struct exmap *ex = exmap_new(MIB, 1, 2);
	atomic_bool stop = false;
	pthread_barrier_t barrier;
	struct racer r[2];

	ck_assert(!pthread_barrier_init(&barrier, NULL, 3));
	for (int i = 0; i < 2; i++) {
		r[i] = (struct racer){
			.ex = ex, .interface = i, .barrier = &barrier, .stop = &stop,
		};
		ck_assert(!pthread_create(&r[i].thread, NULL, alloc_racer, &r[i]));
	}
	for (int i = scaled(10000); i; i--) {
		pthread_barrier_wait(&barrier);
		pthread_barrier_wait(&barrier);
		ck_assert_int_eq(r[0].ret, 0);
		ck_assert_int_eq(r[1].ret, 0);
		ck_assert_int_eq(release(ex, 0, 0, 1), 1);
	}
	atomic_store(&stop, true);
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < 2; i++)
		ck_assert(!pthread_join(r[i].thread, NULL));
	assert_pages_add_up(ex->fd);
}

/*
 * Neighbors: pages that are adjacent on the surface stay adjacent in memory.
 */
enum { NEIGHBORS = 4096, GROUP = 16 };

/* ALLOC or FREE all pages, 512 a call: group after group, in the order of @group. */
static void in_groups(struct exmap *ex, int opcode, uint64_t flags, const int *group)
{
	for (int page = 0; page < NEIGHBORS; page++) {
		entry(ex, 0, page % 512, group[page / GROUP] * GROUP + page % GROUP, 1);
		if (page % 512 == 511)
			ck_assert_int_eq(action(ex->fd, 0, opcode, 512, flags), 0);
	}
}

/* Put the groups into a random order. */
static void shuffle(int *group)
{
	for (int i = NEIGHBORS / GROUP - 1; i > 0; i--) {
		int other = rand() % (i + 1), old = group[i];

		group[i] = group[other];
		group[other] = old;
	}
}

/* Of the groups of @size pages among @pages from @page on, how many are adjacent in memory, too. */
static int together(struct exmap *ex, int page, int pages, int size)
{
	static uint64_t frame[NEIGHBORS];
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), groups = 0;

	assert_ok(fd);
	ck_assert_int_eq(pread(fd, frame, pages * sizeof(*frame),
			       ((uintptr_t)ex->surface / PAGE + page) * sizeof(*frame)),
			 pages * sizeof(*frame));
	close(fd);
	for (int first = 0; first < pages; first += size) {
		int i = 1;

		/* The frame's number is in the low bits. The others are the same for all pages. */
		while (i < size && frame[first + i] == frame[first] + i)
			i++;
		groups += i == size;
	}
	return groups;
}

/* Fail unless nine of ten groups of @size pages are together. */
static void assert_neighbors(struct exmap *ex, int size)
{
	int groups = together(ex, 0, NEIGHBORS, size);

	ck_assert_msg(groups >= NEIGHBORS / size * 9 / 10, "%d of %d groups of %d are together",
		      groups, NEIGHBORS / size, size);
}

/* Rounds of ALLOC and FREE, in order or shuffled. FREE has @flags. */
static void neighbors(uint64_t flags, bool shuffled)
{
	struct exmap *ex = exmap_new(NEIGHBORS * PAGE, NEIGHBORS, 1);
	int group[NEIGHBORS / GROUP];

	for (int i = 0; i < NEIGHBORS / GROUP; i++)
		group[i] = i;
	for (int round = 0; round < 4; round++) {
		in_groups(ex, EXMAP_OP_ALLOC, 0, group);
		assert_neighbors(ex, 4);
		assert_neighbors(ex, GROUP);
		if (shuffled)
			shuffle(group);
		in_groups(ex, EXMAP_OP_FREE, flags, group);
		if (shuffled)
			shuffle(group);
	}
}

TEST(pool_neighbors_stay_neighbors)
{
	neighbors(0, false);
}

TEST(pool_neighbors_in_shuffled_groups)
{
	neighbors(0, true);
}

TEST(pool_neighbors_with_deferred_flushes)
{
	neighbors(EXMAP_FREE_DEFER, false);
	neighbors(EXMAP_FREE_DEFER, true);
}

/* A run of 512 pages gets a block of 512 from the system, even if some pages are free already. */
TEST(pool_long_runs_grow_by_large_blocks)
{
	struct exmap *ex = exmap_new(NEIGHBORS * PAGE, NEIGHBORS, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	assert_fdinfo(ex->fd, "pages-system", 64);
	ck_assert_int_eq(alloc(ex, 0, 512, 512), 512);
	assert_fdinfo(ex->fd, "pages-system", 64 + 512);
	ck_assert_int_eq(together(ex, 512, 512, 512), 1);
	ck_assert_int_eq(alloc(ex, 0, 1024, 2000), 2000);
	ck_assert_int_ge(together(ex, 1024, 1536, 512), 3);
	assert_pages_add_up(ex->fd);
}

/* A small pool takes no large block for a run that needs less. */
TEST(pool_small_grows_by_what_it_needs)
{
	struct exmap *ex = exmap_new(4 * MIB, 600, 8);

	ck_assert_int_eq(alloc(ex, 0, 0, 300), 300);
	ck_assert_int_lt(fdinfo(ex->fd, "pages-system"), 300 + 64);
	ck_assert_int_eq(alloc(ex, 1, 300, 300), 300);
	assert_fdinfo(ex->fd, "pages-system", 600);
}

/*
 * The shrinker
 */

/* Start a process that calls the shrinkers all the time. */
static pid_t start_shrinking(void)
{
	pid_t pid = fork();

	assert_ok(pid);
	if (pid)
		return pid;
	/* No assertions here: this child will be killed (see doomed in base.h). */
	while (shrink())
		;
	_exit(1);
}

static void stop_shrinking(pid_t pid)
{
	assert_ok(kill(pid, SIGKILL));
	wait_child(pid, SIGKILL);
}

/* The shrinker takes the free pages of all interfaces, and leaves those that are mapped. */
TEST(shrinker_takes_free_pages)
{
	enum { POOL = 4000, KEPT = 500, SLACK = 1024 };
	struct exmap *ex = exmap_new(64 * MIB, POOL, 2);
	long rss, peak;

	ck_assert_int_eq(alloc(ex, 0, 0, POOL), POOL);
	memset(ex->surface, 'x', POOL * PAGE);
	peak = kib_of("/proc/self/status", "VmRSS:");
	ck_assert_int_eq(release(ex, 0, KEPT, 2000), 2000);
	ck_assert_int_eq(release(ex, 1, KEPT + 2000, 1500), 1500);
	rss = kib_of("/proc/self/status", "RssShmem:");
	ck_assert_int_ge(rss, POOL * 4 - SLACK);

	ck_assert(shrink());
	rss -= kib_of("/proc/self/status", "RssShmem:");
	ck_assert_msg(labs(rss - (POOL - KEPT) * 4) <= SLACK, "the shrinker took %ld KiB", rss);
	ck_assert_int_ge(kib_of("/proc/self/status", "VmHWM:"), peak - SLACK);
	assert_mapped(ex, KEPT);
	for (int page = 0; page < KEPT; page++)
		ck_assert(all_bytes(ex->surface + page * PAGE, 'x'));
	ck_assert_int_eq(alloc(ex, 1, 0, POOL), POOL - KEPT);
	for (int page = KEPT; page < POOL; page++)
		ck_assert(all_bytes(ex->surface + page * PAGE, 0));
	ck_assert_int_eq(alloc(ex, 0, POOL, 1), -ENOMEM);
}

/* ALLOC does not return ENOMEM while the shrinker gives pages back to the system. */
TEST(shrinker_while_calls_run)
{
	enum { THREADS = 4, PAGES = 3, BULK = 2000 };
	struct exmap *ex = exmap_new(64 * MIB, THREADS * PAGES + BULK, THREADS + 2);
	pid_t shrinking = start_shrinking();
	struct worker w[THREADS];

	for (int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){ .ex = ex, .interface = i, .pages = PAGES,
				       .rounds = scaled(1000) };
		ck_assert(!pthread_create(&w[i].thread, NULL, honest_worker, &w[i]));
	}
	/* These pages pass through the depot in full bundles. */
	for (int round = scaled(200); round; round--) {
		ck_assert_int_eq(alloc(ex, THREADS, 1024, BULK), BULK);
		ck_assert_int_eq(release(ex, THREADS + 1, 1024, BULK), BULK);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
	}
	stop_shrinking(shrinking);
	assert_mapped(ex, 0);
	ck_assert_int_eq(alloc(ex, 0, 0, THREADS * PAGES + BULK), THREADS * PAGES + BULK);
}

/*
 * Processes exit while the shrinker takes their pages. The kernel would complain about a wrong
 * resident set, and no memory may be lost.
 */
TEST(shrinker_while_processes_die)
{
	long before = available_kib();
	pid_t shrinking = start_shrinking();

	for (int round = scaled(20); round; round--) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid) {
			struct exmap *ex = exmap_new(64 * MIB, 2000, 2);

			ck_assert_int_eq(alloc(ex, 0, 0, 2000), 2000);
			ck_assert_int_eq(release(ex, 1, round, 1500), 1500);
			_exit(0);
		}
		wait_child(pid, 0);
	}
	stop_shrinking(shrinking);
	assert_available(before, 8 * 1024);
}

/*
 * What the kernel accounts to the process
 */

/* VmRSS grows with the pages that the pool takes, and is as before after munmap and close. */
TEST(pool_counts_as_resident)
{
	long before = kib_of("/proc/self/status", "VmRSS:"), after;
	struct exmap *ex = exmap_new(64 * MIB, 4000, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 4000), 4000);
	after = kib_of("/proc/self/status", "VmRSS:");
	ck_assert_int_ge(after - before, 4000 * 4 - 1024);
	assert_ok(munmap(ex->surface, ex->size));
	close(ex->fd);
	ck_assert_int_lt(kib_of("/proc/self/status", "VmRSS:") - before, 2048);
}

/* munmap gives all pages back to the system, although the file is still open. */
TEST(pool_is_given_back_at_munmap)
{
	long before = kib_of("/proc/self/status", "VmRSS:");
	struct exmap *ex = exmap_new(64 * MIB, 4000, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 4000), 4000);
	ck_assert_int_eq(release(ex, 0, 0, 4000), 4000);
	assert_ok(munmap(ex->surface, ex->size));
	ck_assert_int_lt(kib_of("/proc/self/status", "VmRSS:") - before, 2048);
}

/* SETUP adds the pool and its overhead to VmPin, and close takes that away again. */
TEST(pool_counts_as_pinned)
{
	struct exmap *ex = exmap_new(MIB, 1000, 1);

	/* The pool, 16 KiB for the interface and a page for the array of interfaces. */
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 4000 + 16 + 4);
	assert_ok(munmap(ex->interface[0], PAGE));
	assert_ok(munmap(ex->surface, ex->size));
	close(ex->fd);
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 0);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of the pool: free pages, the shrinker, accounting.");
}
