// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the directory, which finds the page tables of a surface: of large surfaces, and with
 * 5-level page tables (la57) of very large ones.
 */
#include <pthread.h>
#include <time.h>

#include "common.h"
#include "rss.h"

#define PIB (1UL << 50)
#define LARGEST (62 * PIB)
#define LEAF (512 * GIB)		/* the addresses whose page tables one leaf finds */

/* The last page of a surface. */
#define LAST(size) ((size) / PAGE - 1)

/*
 * Make an exmap with two interfaces, one of them mapped. Its surface is at @fixed or, if that is
 * NULL, above 2^47.
 */
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

/*
 * The number of the i-th of @nr pages that are each in a leaf of their own. The leaves are equally
 * far apart, and the page is i % 512 GiB into its leaf.
 */
static uint64_t spread_page(size_t size, int i, int nr)
{
	return (size / nr / LEAF * LEAF * i + i % 512 * GIB) / PAGE;
}

/* ALLOC or FREE of these @nr pages. */
static void spread(struct exmap *ex, int opcode, int nr)
{
	for (int i = 0; i < nr; i += EXMAP_USER_INTERFACE_PAGES) {
		int some = nr - i < EXMAP_USER_INTERFACE_PAGES ?
			   nr - i : EXMAP_USER_INTERFACE_PAGES;

		for (int j = 0; j < some; j++)
			entry(ex, 0, j, spread_page(ex->size, i + j, nr), 1);
		ck_assert_int_eq(action(ex->fd, 0, opcode, some, 0), 0);
		for (int j = 0; j < some; j++)
			assert_entry(ex, 0, j, 0, 1);
	}
}

/* Those @nr pages, and no others, are mapped if @there; else no page is. */
static void assert_spread(struct exmap *ex, int nr, bool there)
{
	assert_mapped(ex, there ? nr : 0);
	for (int i = 0; i < nr; i++)
		ck_assert_uint_eq(resident(ex, spread_page(ex->size, i, nr), 1), there);
}

/* Pages in many leaves can be allocated, used, freed, and allocated again. */
static void pages_in_many_leaves(struct exmap *ex, int nr)
{
	for (int round = 0; round < 2; round++) {
		spread(ex, EXMAP_OP_ALLOC, nr);
		assert_spread(ex, nr, true);
		for (int i = 0; i < nr; i++)
			*(int *)(ex->surface + spread_page(ex->size, i, nr) * PAGE) = i;
		for (int i = 0; i < nr; i++)
			ck_assert_int_eq(*(int *)(ex->surface +
						  spread_page(ex->size, i, nr) * PAGE), i);
		spread(ex, EXMAP_OP_FREE, nr);
		assert_spread(ex, nr, false);
	}
}

TEST(directory_of_100_tib)
{
	pages_in_many_leaves(exmap_new(100 * TIB, 200, 1), 200);
}

/*
 * Threads that make the same leaves at the same time
 */
enum { MAKERS = 4, LEAVES = 200 };

/* A thread that allocates a page in each leaf, at the same time as the others. */
struct maker {
	struct exmap *ex;
	pthread_barrier_t *start;
	int number;
	pthread_t thread;
};

/* Each maker has pages of its own. */
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

/* Each leaf is made once: no page is missing afterwards. */
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
 * With 5-level page tables
 */

/* CPU time of this thread in nanoseconds, so that other load on the machine does not count. */
static uint64_t cpu_time(void)
{
	struct timespec now;

	assert_ok(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now));
	return now.tv_sec * 1000000000UL + now.tv_nsec;
}

/* CPU time to make a surface and unmap it. */
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

/* CPU time to populate anonymous memory and unmap it. */
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
 * A surface of 62 PiB that is never used takes only the memory of the directory's top level, and
 * less time than 64 MiB of anonymous memory. (8 bytes for each GiB would be 496 MiB.)
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
	ck_assert_msg(surface < memory, "mmap and munmap took %lu us, those of 64 MiB %lu us",
		      surface / 1000, memory / 1000);
}

/* Pages at both ends of the surface, of page tables and leaves, and around its middle. */
static const uint64_t places[] = {
	0, 511, 512, GIB / PAGE - 1, GIB / PAGE, LEAF / PAGE - 1, LEAF / PAGE,
	LARGEST / 2 / PAGE - 1, LARGEST / 2 / PAGE, LAST(LARGEST) - 512, LAST(LARGEST),
};

#define PLACES (sizeof(places) / sizeof(*places))

/* ALLOC and FREE at all places, and across the border of two leaves. */
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
	/* Across the border of two leaves. */
	ck_assert_int_eq(alloc(ex, 0, 3 * LEAF / PAGE - 20, 40), 40);
	ck_assert_uint_eq(resident(ex, 3 * LEAF / PAGE - 20, 40), 40);
	ck_assert_int_eq(release(ex, 0, 3 * LEAF / PAGE - 20, 40), 40);
	/* Pages that were never used, and pages beyond the surface. */
	ck_assert_int_eq(release(ex, 0, 20 * PIB / PAGE, 4095), 0);
	ck_assert_int_eq(alloc(ex, 0, LAST(LARGEST), 2), -EFAULT);
	assert_pages_add_up(ex->fd);
}

/* READ, pread and WRITE at all places, with a backing file as long as the surface. */
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

/* munmap gives back all pages, and all of the directory but its top level. */
TEST(la57_munmap_with_pages_all_over, .needs_cpu = "la57")
{
	enum { NR = 2000 };
	long before = available_kib(), rss_before = rss();
	struct exmap *ex = exmap_largest(NR);

	pages_in_many_leaves(ex, NR);
	spread(ex, EXMAP_OP_ALLOC, NR);
	/* A page and a leaf for each. */
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

/* MADV_DONTNEED of all gives back all pages; of a part, those of that part only. */
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
	/* A part that begins and ends within leaves. */
	spread(ex, EXMAP_OP_ALLOC, NR);
	assert_ok(madvise(ex->surface + spread_page(LARGEST, 1, NR) * PAGE,
			  (spread_page(LARGEST, NR - 1, NR) - spread_page(LARGEST, 1, NR)) * PAGE,
			  MADV_DONTNEED));
	assert_mapped(ex, 2);
	ck_assert_uint_eq(resident(ex, spread_page(LARGEST, 0, NR), 1), 1);
	ck_assert_uint_eq(resident(ex, spread_page(LARGEST, NR - 1, NR), 1), 1);
}

/* The end of the process gives back all memory, by exit or by SIGKILL. */
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

/* The end of the last mapping below 2^47. Above the stack, a gap of random size follows it. */
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

/* A surface across 2^47, where the addresses of 4-level page tables end. */
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
	return check_main(argc, argv,
			  "Tests of the directory of page tables, and of very large surfaces.");
}
