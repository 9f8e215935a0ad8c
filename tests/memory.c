// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the kernel memory that an exmap takes: whom it is charged to; the directory of its
 * surface, up to one that takes 5-level page tables.
 */
#include <pthread.h>
#include <time.h>

#include "common.h"

#define PIB (1UL << 50)
#define LARGEST (62 * PIB)
#define LEAF (512 * GIB)		/* what a part of the directory is for */

/* Of a surface: where there may be a page. */
#define LAST(size) ((size) / PAGE - 1)

static long rss(void)
{
	return kib_of("/proc/self/status", "RssShmem:");
}

/* The kernel counts on each CPU, and adds up in steps of 32 pages or two per CPU. */
static long rss_slack(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN), step = cpus > 16 ? 2 * cpus : 32;

	return 4 * cpus * step;
}

/* A surface that the kernel puts above 2^47, or at @fixed, and an interface. */
static struct exmap *exmap_high(void *fixed, size_t size, size_t pool, int file)
{
	static struct exmap ex;

	ex.fd = exmap_open();
	ex.size = size;
	ex.surface = mmap(fixed ?: (void *)(1UL << 48), size, PROT_READ | PROT_WRITE,
			  MAP_SHARED | (fixed ? MAP_FIXED_NOREPLACE : 0), ex.fd, EXMAP_OFF_EXMAP);
	assert_ok(ex.surface);
	assert_ok(exmap_setup_file(ex.fd, 2, pool, 0, file));
	ex.interface[0] = map_interface(ex.fd, 0);
	assert_ok(ex.interface[0]);
	return &ex;
}

static struct exmap *exmap_largest(size_t pool)
{
	return exmap_high(NULL, LARGEST, pool, -1);
}

/* The number of the page of the i-th leaf of @nr that lie equally far apart, and i GiB into it. */
static uint64_t spread_page(size_t size, int i, int nr)
{
	return (size / nr / LEAF * LEAF * i + i % 512 * GIB) / PAGE;
}

/* ALLOC or FREE of @nr pages in as many leaves. */
static void spread(struct exmap *ex, int opcode, int nr)
{
	for (int i = 0; i < nr; i += EXMAP_USER_INTERFACE_PAGES) {
		int some = nr - i < EXMAP_USER_INTERFACE_PAGES ? nr - i : EXMAP_USER_INTERFACE_PAGES;

		for (int j = 0; j < some; j++)
			entry(ex, 0, j, spread_page(ex->size, i + j, nr), 1);
		ck_assert_int_eq(action(ex->fd, 0, opcode, some, 0), 0);
		for (int j = 0; j < some; j++)
			assert_entry(ex, 0, j, 0, 1);
	}
}

static void assert_spread(struct exmap *ex, int nr, bool there)
{
	assert_mapped(ex, there ? nr : 0);
	for (int i = 0; i < nr; i++)
		ck_assert_uint_eq(resident(ex, spread_page(ex->size, i, nr), 1), there);
}

/* Pages in many parts of a directory can be had, freed, and had again. */
static void pages_in_many_leaves(struct exmap *ex, int nr)
{
	for (int round = 0; round < 2; round++) {
		spread(ex, EXMAP_OP_ALLOC, nr);
		assert_spread(ex, nr, true);
		for (int i = 0; i < nr; i++)
			*(int *)(ex->surface + spread_page(ex->size, i, nr) * PAGE) = i;
		for (int i = 0; i < nr; i++)
			ck_assert_int_eq(*(int *)(ex->surface + spread_page(ex->size, i, nr) * PAGE), i);
		spread(ex, EXMAP_OP_FREE, nr);
		assert_spread(ex, nr, false);
	}
}

TEST(directory_of_100_tib)
{
	pages_in_many_leaves(exmap_new(100 * TIB, 200, 1), 200);
}

/* All the leaves by several threads at once, each with pages of its own. */
enum { MAKERS = 4, LEAVES = 200 };

struct maker {
	struct exmap *ex;
	pthread_barrier_t *start;
	int number;
	pthread_t thread;
};

static uint64_t maker_page(int maker, int leaf)
{
	return (leaf * LEAF + maker * GIB) / PAGE;
}

static void *make_leaves(void *argument)
{
	struct maker *m = argument;

	for (int i = 0; i < LEAVES; i++)
		entry(m->ex, m->number, i, maker_page(m->number, i), 1);
	pthread_barrier_wait(m->start);
	return (void *)(long)action(m->ex->fd, m->number, EXMAP_OP_ALLOC, LEAVES, 0);
}

TEST(directory_is_made_by_threads)
{
	pthread_barrier_t start;
	struct maker m[MAKERS];

	pthread_barrier_init(&start, NULL, MAKERS);
	for (int round = scaled(20); round; round--) {
		struct exmap ex = { .fd = exmap_open(), .size = LEAVES * LEAF };

		ex.surface = map_surface(ex.fd, ex.size);
		assert_ok(ex.surface);
		assert_ok(exmap_setup(ex.fd, MAKERS, 2000, 0));
		for (int i = 0; i < MAKERS; i++) {
			ex.interface[i] = map_interface(ex.fd, i);
			assert_ok(ex.interface[i]);
			m[i] = (struct maker){ .ex = &ex, .start = &start, .number = i };
			ck_assert(!pthread_create(&m[i].thread, NULL, make_leaves, &m[i]));
		}
		for (int i = 0; i < MAKERS; i++) {
			void *ret;

			pthread_join(m[i].thread, &ret);
			ck_assert_ptr_null(ret);
		}
		assert_mapped(&ex, MAKERS * LEAVES);
		for (int i = 0; i < MAKERS; i++)
			for (int leaf = 0; leaf < LEAVES; leaf++)
				ck_assert_uint_eq(resident(&ex, maker_page(i, leaf), 1), 1);
		for (int i = 0; i < MAKERS; i++) {
			for (int leaf = 0; leaf < LEAVES; leaf++)
				entry(&ex, i, leaf, maker_page(i, leaf), 1);
			ck_assert_int_eq(action(ex.fd, i, EXMAP_OP_FREE, LEAVES, 0), 0);
			assert_ok(munmap(ex.interface[i], PAGE));
		}
		assert_mapped(&ex, 0);
		assert_ok(munmap(ex.surface, ex.size));
		close(ex.fd);
	}
}

/*
 * Who pays
 */

/* In pages: what exmap(4) says. */
enum { PER_INTERFACE = 4, PER_QUARANTINE = 2, FAULTS = 3 };

static long pinned_pages(void)
{
	return kib_of("/proc/self/status", "VmPin:") / 4;
}

/* Have an interface made, by a call that does nothing else. Returns 0 or the errno. */
static int use(int fd, int interface)
{
	return action(fd, interface, EXMAP_OP_ALLOC, 0, 0) ? errno : 0;
}

/* A file set up with a pool of @pages. */
static int set_up(int interfaces, size_t pages, uint64_t flags)
{
	int fd = exmap_open();

	assert_ok(exmap_setup(fd, interfaces, pages, flags));
	return fd;
}

/* That of a user who may lock so many pages has just that left, or nothing. */
static void assert_memlock_left(long pages)
{
	long array = pinned_pages();
	int fd = set_up(1, 1, 0);

	array = pinned_pages() - array - 1;
	close(fd);
	fd = exmap_open();
	assert_errno(exmap_setup(fd, 1, pages - array + 1, 0), ENOMEM);
	assert_ok(exmap_setup(fd, 1, pages - array, 0));
	close(fd);
}

/* Each kind by itself, to the page. */
TEST(charges_of_each_kind)
{
	long before = pinned_pages(), small;
	int fd = set_up(1, 1000, 0);

	small = pinned_pages() - before - 1000;
	ck_assert_int_eq(small, 1);
	close(fd);
	ck_assert_int_eq(pinned_pages(), before);

	fd = set_up(1, 1000, EXMAP_PAGEFAULT_ALLOC);
	ck_assert_int_eq(pinned_pages() - before, 1000 + small + FAULTS);
	close(fd);

	/* The array has a cache line or more for each. */
	fd = set_up(EXMAP_MAX_INTERFACES, 1000, 0);
	ck_assert_int_ge(pinned_pages() - before - 1000, EXMAP_MAX_INTERFACES * 64 / PAGE);
	close(fd);

	fd = set_up(2, 1000, 0);
	before = pinned_pages();
	ck_assert_int_eq(use(fd, 1), 0);
	ck_assert_int_eq(pinned_pages() - before, PER_INTERFACE);
	ck_assert_int_eq(use(fd, 1), 0);
	ck_assert_int_eq(pinned_pages() - before, PER_INTERFACE);
	assert_ok(map_interface(fd, 0));
	ck_assert_int_eq(pinned_pages() - before, 2 * PER_INTERFACE);
}

TEST(charges_of_a_quarantine)
{
	struct exmap *ex = exmap_new(MIB, 1000, 1);
	long before = pinned_pages();

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	ck_assert_int_eq(release(ex, 0, 0, 1), 1);
	ck_assert_int_eq(pinned_pages(), before);
	for (int page = 1; page < 10; page++) {
		ck_assert_int_eq(defer(ex, 0, page, 1), 1);
		ck_assert_int_eq(pinned_pages() - before, PER_QUARANTINE);
	}
}

/* Whatever makes an interface. And one that is there goes on working. */
TEST(interface_above_memlock_is_enomem)
{
	struct exmap *ex;
	long array = pinned_pages();
	int fd = set_up(3, 1, 0);

	array = pinned_pages() - array - 1;
	close(fd);
	set_memlock((10 + array + 2 * PER_INTERFACE - 1 + 1 + array) * PAGE);
	drop_privileges();
	fd = set_up(1, 1, 0);
	ex = &(struct exmap){ .fd = set_up(3, 10, 0), .size = MIB };
	ex->surface = map_surface(ex->fd, MIB);
	assert_ok(ex->surface);
	ex->interface[0] = map_interface(ex->fd, 0);
	assert_ok(ex->interface[0]);
	for (int round = 0; round < 3; round++) {
		assert_errno(map_interface(ex->fd, 1), ENOMEM);
		assert_errno(action(ex->fd, 2, EXMAP_OP_ALLOC, 1, 0), ENOMEM);
		ck_assert_int_eq(use(ex->fd, 2), ENOMEM);
		/* ALLOC at interface 1, by way of the file. */
		assert_errno(pread(ex->fd, ex->surface, PAGE, EXMAP_OP_ALLOC << 8 | 1), ENOMEM);
		ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
		ck_assert_int_eq(release(ex, 0, 0, 10), 10);
	}
	/* As soon as there is room it can be made. */
	close(fd);
	ck_assert_int_eq(use(ex->fd, 1), 0);
	ck_assert_int_eq(use(ex->fd, 2), ENOMEM);
}

/* With no room for a quarantine FREE flushes at once, and does so each time. */
TEST(quarantine_above_memlock_flushes_at_once)
{
	struct exmap *ex;
	long array = pinned_pages();
	int fd = set_up(1, 1, 0);

	array = pinned_pages() - array - 1;
	close(fd);
	set_memlock((10 + array + PER_INTERFACE + PER_QUARANTINE - 1) * PAGE);
	drop_privileges();
	ex = exmap_new(MIB, 10, 1);
	for (int round = 1; round <= 3; round++) {
		ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
		ck_assert_int_eq(defer(ex, 0, 0, 10), 10);
		assert_fdinfo(ex->fd, "pages-deferred", 0);
		assert_fdinfo(ex->fd, "flushes", round);
	}
	assert_errno(exmap_setup(exmap_open(), 1, 1, 0), ENOMEM);
	close(ex->fd);
	assert_ok(munmap(ex->interface[0], PAGE));
	assert_ok(munmap(ex->surface, ex->size));
	/* With room it does not. */
	ex = exmap_new(MIB, 9, 1);
	ck_assert_int_eq(alloc(ex, 0, 0, 9), 9);
	ck_assert_int_eq(defer(ex, 0, 0, 9), 9);
	assert_fdinfo(ex->fd, "pages-deferred", 9);
}

/*
 * Pools of one page each, and all the interfaces of each used, for @most exmaps or, if there is
 * a limit, until it is refused before that. Returns the pages that the interfaces have.
 */
static long hoard(int *fds, int most, bool limited)
{
	long pages = 0;
	int nr, i, err = 0;

	for (nr = 0; !err && nr < most; nr++) {
		fds[nr] = exmap_open();
		if (exmap_setup(fds[nr], EXMAP_MAX_INTERFACES, 1, 0))
			err = errno;
		for (i = 0; !err && i < EXMAP_MAX_INTERFACES; i++) {
			err = use(fds[nr], i);
			pages += err ? 0 : PER_INTERFACE;
		}
	}
	ck_assert_int_eq(err, limited ? ENOMEM : 0);
	fds[nr] = -1;
	return pages;
}

static void close_all(const int *fds)
{
	for (; *fds >= 0; fds++)
		close(*fds);
}

/* An ordinary user gets as much as the limit says, sees it, and can give it all back. */
TEST(interfaces_of_many_exmaps_stay_within_memlock)
{
	enum { LIMIT = 40 * MIB / PAGE, MOST = 20 };
	long before, available, pages;
	int fds[MOST + 1];

	set_memlock(LIMIT * PAGE);
	drop_privileges();
	for (int round = 0; round < 2; round++) {
		before = rss();
		available = available_kib();
		pages = hoard(fds, MOST, true);
		/* The rest is for pools and arrays. */
		ck_assert_int_le(pages, LIMIT);
		ck_assert_int_ge(pages, LIMIT / 10 * 9);
		ck_assert_int_le(pinned_pages(), LIMIT);
		ck_assert_int_ge(pinned_pages(), pages);
		ck_assert_int_ge(rss() - before, pages * 4 - rss_slack());
		close_all(fds);
		ck_assert_int_eq(pinned_pages(), 0);
		ck_assert_int_le(labs(rss() - before), rss_slack());
		assert_available(available, 4 * 1024);
		assert_memlock_left(LIMIT);
	}
}

/* Who may lock memory, or where the administrator has turned it off, has no limit. */
static void hoard_beyond_memlock(void)
{
	enum { MOST = 2, PAGES = MOST * EXMAP_MAX_INTERFACES * PER_INTERFACE };
	long before = rss();
	int fds[MOST + 1];

	ck_assert_int_eq(hoard(fds, MOST, false), PAGES);
	/* But is seen. */
	ck_assert_int_ge(rss() - before, PAGES * 4 - rss_slack());
	ck_assert_int_ge(pinned_pages(), PAGES);
	close_all(fds);
	ck_assert_int_le(labs(rss() - before), rss_slack());
	ck_assert_int_eq(pinned_pages(), 0);
}

TEST(interfaces_with_cap_ipc_lock_have_no_limit)
{
	set_memlock(8 * MIB);
	hoard_beyond_memlock();
}

#define MEMLOCK "/sys/module/exmap/parameters/memlock"

static int parameter;

/* Opened by root, it can be written by who is not root any more. */
static void open_parameter(void)
{
	parameter = open(MEMLOCK, O_WRONLY | O_CLOEXEC);
	assert_ok(parameter);
}

static void set_parameter(const char *value)
{
	ck_assert_int_eq(pwrite(parameter, value, 1, 0), 1);
}

TEST(interfaces_without_memlock_have_no_limit, .needs = MEMLOCK)
{
	int status;
	pid_t pid;

	open_parameter();
	set_parameter("N");
	pid = fork();
	if (!pid) {
		set_memlock(8 * MIB);
		drop_privileges();
		hoard_beyond_memlock();
		_exit(0);
	}
	waitpid(pid, &status, 0);
	set_parameter("Y");
	ck_assert_int_eq(status, 0);
}

/* Be without privileges for now, as another user, or again be root. */
static void pretend(bool nobody)
{
	assert_ok(setresuid(nobody ? 65534 : 0, nobody ? 65534 : 0, 0));
}

/*
 * What was charged to whom is given back to the same, whatever has become since of user,
 * capability, limit and parameter.
 */
TEST(charges_are_given_back_to_who_paid, .needs = MEMLOCK)
{
	enum { LIMIT = 1000 };
	long before = rss();
	int fds[3], err;

	open_parameter();
	set_memlock(LIMIT * PAGE);
	for (int round = 0; round < 4; round++) {
		/* The pool by one, each interface by another. */
		for (int i = 0; i < 3; i++) {
			pretend((round + i) % 2);
			fds[i] = set_up(4, 100, EXMAP_PAGEFAULT_ALLOC);
			for (int interface = 0; interface < 4; interface++) {
				pretend((round + interface) % 2);
				if (interface == 3)
					set_parameter("N");
				err = use(fds[i], interface);
				if (interface == 3)
					set_parameter("Y");
				ck_assert_int_eq(err, 0);
			}
		}
		pretend(round % 2);
		for (int i = 0; i < 3; i++)
			close(fds[i]);
		ck_assert_int_eq(pinned_pages(), 0);
		pretend(true);
		assert_memlock_left(LIMIT);
		pretend(false);
	}
	ck_assert_int_le(labs(rss() - before), rss_slack());
}

/*
 * With 5-level page tables
 */

/* Of this thread, in nanoseconds: whatever else the machine does meanwhile. */
static uint64_t cpu_time(void)
{
	struct timespec now;

	assert_ok(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now));
	return now.tv_sec * 1000000000UL + now.tv_nsec;
}

static uint64_t cost_of_surface(size_t size)
{
	uint64_t begin = cpu_time();
	struct exmap *ex = exmap_high(NULL, size, 1, -1);

	assert_ok(munmap(ex->surface, ex->size));
	begin = cpu_time() - begin;
	assert_ok(munmap(ex->interface[0], PAGE));
	close(ex->fd);
	return begin;
}

static uint64_t cost_of_memory(size_t size)
{
	uint64_t begin = cpu_time();
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	assert_ok(memory);
	assert_ok(munmap(memory, size));
	return cpu_time() - begin;
}

/*
 * One that is never used costs no more than memory for the directory's top, and less time than
 * 64 MiB of anonymous memory. (With 8 bytes for each GiB it would be 496 MiB.)
 */
TEST(la57_surface_of_62_pib_is_cheap, .needs_cpu = "la57")
{
	uint64_t surface = UINT64_MAX, memory = UINT64_MAX, cost;
	long before = available_kib(), rss_before = rss();
	struct exmap *ex = exmap_largest(10);

	assert_available(before, 16 * 1024);
	ck_assert_int_ge(rss() - rss_before, 1024 - rss_slack());
	assert_ok(munmap(ex->surface, ex->size));
	assert_ok(munmap(ex->interface[0], PAGE));
	close(ex->fd);
	ck_assert_int_le(labs(rss() - rss_before), rss_slack());

	for (int round = 0; round < 3; round++) {
		cost = cost_of_surface(LARGEST);
		surface = cost < surface ? cost : surface;
		cost = cost_of_memory(64 * MIB);
		memory = cost < memory ? cost : memory;
	}
	ck_assert_msg(surface < memory, "mmap and munmap: %lu us, those of 64 MiB: %lu us",
		      surface / 1000, memory / 1000);
}

static const uint64_t places[] = {
	0, 511, 512, GIB / PAGE - 1, GIB / PAGE, LEAF / PAGE - 1, LEAF / PAGE,
	LARGEST / 2 / PAGE - 1, LARGEST / 2 / PAGE, LAST(LARGEST) - 512, LAST(LARGEST),
};

#define PLACES (sizeof(places) / sizeof(*places))

/* At both ends and in the middle. */
TEST(la57_alloc_and_free_all_over, .needs_cpu = "la57")
{
	struct exmap *ex = exmap_largest(100);

	for (int round = 0; round < 2; round++) {
		for (size_t i = 0; i < PLACES; i++)
			ck_assert_int_eq(alloc(ex, 0, places[i], 1), 1);
		assert_mapped(ex, PLACES);
		for (size_t i = 0; i < PLACES; i++)
			memset(ex->surface + places[i] * PAGE, 'a' + i, PAGE);
		for (size_t i = 0; i < PLACES; i++) {
			ck_assert(all_bytes(ex->surface + places[i] * PAGE, 'a' + i));
			ck_assert_int_eq(i % 2 ? defer(ex, 0, places[i], 1) :
					 release(ex, 0, places[i], 1), 1);
			ck_assert_uint_eq(resident(ex, places[i], 1), 0);
		}
		assert_mapped(ex, 0);
	}
	/* Over the border between two leaves. */
	ck_assert_int_eq(alloc(ex, 0, 3 * LEAF / PAGE - 20, 40), 40);
	ck_assert_uint_eq(resident(ex, 3 * LEAF / PAGE - 20, 40), 40);
	ck_assert_int_eq(release(ex, 0, 3 * LEAF / PAGE - 20, 40), 40);
	/* What is never used, and what is not there. */
	ck_assert_int_eq(release(ex, 0, 20 * PIB / PAGE, 4095), 0);
	ck_assert_int_eq(alloc(ex, 0, LAST(LARGEST), 2), -EFAULT);
	assert_pages_add_up(ex->fd);
}

TEST(la57_read_and_write_all_over, .needs_cpu = "la57")
{
	int file = memfd_create("test-memory", MFD_CLOEXEC);
	char page[PAGE];
	struct exmap *ex;

	assert_ok(file);
	assert_ok(ftruncate(file, LARGEST));
	for (size_t i = 0; i < PLACES; i++) {
		memset(page, 'a' + i, PAGE);
		ck_assert_int_eq(pwrite(file, page, PAGE, places[i] * PAGE), PAGE);
	}
	ex = exmap_high(NULL, LARGEST, 100, file);
	for (size_t i = 0; i < PLACES; i++) {
		char *at = ex->surface + places[i] * PAGE;

		if (i % 2)
			ck_assert_int_eq(run(ex, 0, EXMAP_OP_READ, places[i], 1), 1);
		else
			ck_assert_int_eq(pread(ex->fd, at, PAGE, 0), PAGE);
		ck_assert(all_bytes(at, 'a' + i));
		memset(at, 'A' + i, PAGE);
		ck_assert_int_eq(run(ex, 0, EXMAP_OP_WRITE, places[i], 1), 1);
		ck_assert_int_eq(pread(file, page, PAGE, places[i] * PAGE), PAGE);
		ck_assert(all_bytes(page, 'A' + i));
	}
	assert_mapped(ex, PLACES);
}

/* What the kernel takes away with the surface: the pages, and the directory but for its top. */
TEST(la57_munmap_with_pages_all_over, .needs_cpu = "la57")
{
	enum { NR = 2000 };
	long before = available_kib(), rss_before = rss();
	struct exmap *ex = exmap_largest(NR);

	pages_in_many_leaves(ex, NR);
	spread(ex, EXMAP_OP_ALLOC, NR);
	/* Pages and leaves. */
	ck_assert_int_ge(rss() - rss_before, 2 * NR * 4 - rss_slack());
	assert_ok(munmap(ex->surface, ex->size));
	assert_mapped(ex, 0);
	assert_fdinfo(ex->fd, "pages-system", 0);
	ck_assert_int_le(rss() - rss_before, 2048 + rss_slack());
	assert_available(before, 16 * 1024);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), -EPROTO);
	assert_ok(munmap(ex->interface[0], PAGE));
	close(ex->fd);
	ck_assert_int_le(labs(rss() - rss_before), rss_slack());
}

TEST(la57_dontneed_of_all, .needs_cpu = "la57")
{
	enum { NR = 1000 };
	struct exmap *ex = exmap_largest(NR);

	for (int round = 0; round < 2; round++) {
		spread(ex, EXMAP_OP_ALLOC, NR);
		assert_ok(madvise(ex->surface, ex->size, MADV_DONTNEED));
		assert_spread(ex, NR, false);
		assert_fdinfo(ex->fd, "pages-mapped", 0);
		assert_pages_add_up(ex->fd);
	}
	/* And of a part that begins and ends within leaves. */
	spread(ex, EXMAP_OP_ALLOC, NR);
	assert_ok(madvise(ex->surface + spread_page(LARGEST, 1, NR) * PAGE,
			  (spread_page(LARGEST, NR - 1, NR) - spread_page(LARGEST, 1, NR)) * PAGE,
			  MADV_DONTNEED));
	assert_mapped(ex, 2);
	ck_assert_uint_eq(resident(ex, spread_page(LARGEST, 0, NR), 1), 1);
	ck_assert_uint_eq(resident(ex, spread_page(LARGEST, NR - 1, NR), 1), 1);
}

TEST(la57_exit_with_pages_all_over, .needs_cpu = "la57")
{
	long before = available_kib();

	for (int round = 0; round < 4; round++) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid) {
			struct exmap *ex = exmap_largest(2000);

			spread(ex, EXMAP_OP_ALLOC, 2000);
			if (round % 2)
				raise(SIGKILL);
			_exit(0);
		}
		wait_child(pid, round % 2 ? SIGKILL : 0);
	}
	assert_available(before, 16 * 1024);
}

/* The end of what is mapped below 2^47: above the stack there is a gap of random size. */
static char *end_of_low_mappings(void)
{
	unsigned long start, end, highest = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	char line[512];

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && end < 1UL << 47)
			highest = end;
	fclose(f);
	return (char *)highest;
}

/* What a 4-level table has addresses for ends within the surface. */
TEST(la57_surface_across_2_to_the_47, .needs_cpu = "la57")
{
	char *const border = (char *)(1UL << 47), *start = end_of_low_mappings();
	struct exmap *ex = exmap_high(start, border - start + GIB, 100, -1);
	uint64_t middle = (border - start) / PAGE - 1;

	ck_assert_ptr_eq(ex->surface, start);
	for (int round = 0; round < 2; round++) {
		ck_assert_int_eq(alloc(ex, 0, middle, 20), 20);
		ck_assert_int_eq(alloc(ex, 0, LAST(ex->size), 1), 1);
		assert_mapped(ex, 21);
		memset(border - PAGE, 'x', 2 * PAGE);
		ck_assert(all_bytes(border - PAGE, 'x') && all_bytes(border, 'x'));
		ck_assert_uint_eq(resident(ex, middle, 20), 20);
		if (round)
			assert_ok(madvise(ex->surface, ex->size, MADV_DONTNEED));
		else
			ck_assert_int_eq(release(ex, 0, middle, 20), 20);
		ck_assert_uint_eq(resident(ex, middle, 20), 0);
		release(ex, 0, LAST(ex->size), 1);
	}
	assert_mapped(ex, 0);
	ck_assert_int_eq(alloc(ex, 0, middle, 20), 20);
	assert_ok(munmap(ex->surface, ex->size));
	assert_mapped(ex, 0);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of the kernel memory that an exmap takes.");
}
