// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of EXMAP_TRIM_TABLES: page tables of the surface go back to the system.
 */
#include <sys/mman.h>

#include "hostile.h"
#include "worker.h"

enum { PER_TABLE = 512, PER_GIB = 512 * 512 };

/* Returns the number of tables given back, or the negative errno. */
static long trim_tables(struct exmap *ex, uint64_t page, uint64_t pages)
{
	struct exmap_ioctl_trim trim = {
		.flags = EXMAP_TRIM_TABLES, .page = page, .pages = pages,
	};

	return ioctl(ex->fd, EXMAP_IOCTL_TRIM, &trim) ? -errno : (long)trim.done;
}

static long tables_kib(void)
{
	return kib_of("/proc/self/status", "VmPTE:");
}

/* Give each of @nr page tables from @page on a page, and take it away again. */
static void walk(struct exmap *ex, uint64_t page, int nr)
{
	for (int done = 0; done < nr; done += 512) {
		int some = nr - done < 512 ? nr - done : 512;

		for (int opcode = EXMAP_OP_ALLOC; opcode <= EXMAP_OP_FREE; opcode++) {
			for (int i = 0; i < some; i++)
				entry(ex, 0, i, page + (done + i) * PER_TABLE, 1);
			ck_assert_int_eq(action(ex->fd, 0, opcode, some, 0), 0);
		}
	}
}

/* All page tables of a range go, without a trace in VmPTE, and can be made again. */
TEST(trim_tables_of_the_whole_surface)
{
	struct exmap *ex = exmap_new(5 * GIB, 1024, 1);
	long before = tables_kib();

	for (int round = 0; round < 2; round++) {
		walk(ex, 0, 5 * 512);
		ck_assert_int_ge(tables_kib() - before, 4 * 5 * 512);
		/* Some more or fewer tables: the surface need not begin at a multiple of 1 GiB. */
		ck_assert_int_ge(trim_tables(ex, 0, 0), 5 * 512 - 1 + 4);
		/* Those of the first and the last part of the surface may be shared with others. */
		ck_assert_int_le(tables_kib() - before, 4 * 5);
		ck_assert_int_eq(trim_tables(ex, 0, 0), 0);
	}
	assert_pages_add_up(ex->fd);
}

/* A table with a page stays, with the page; and so do tables outside the range. */
TEST(trim_tables_leaves_pages_alone)
{
	struct exmap *ex = exmap_new(4 * GIB, 1024, 1);

	walk(ex, 0, 4 * 512);
	for (int page = 0; page < 4 * PER_GIB; page += 100 * PER_TABLE) {
		ck_assert_int_eq(alloc(ex, 0, page + 511, 1), 1);
		memset(where(ex, page + 511), page / PER_TABLE, PAGE);
	}
	ck_assert_int_eq(trim_tables(ex, 7, 500), 0);
	ck_assert_int_le(trim_tables(ex, 100 * PER_TABLE, 10 * PER_TABLE), 9);
	ck_assert_int_ge(trim_tables(ex, 0, 0), 1900);
	for (int page = 0; page < 4 * PER_GIB; page += 100 * PER_TABLE)
		ck_assert(all_bytes(where(ex, page + 511), page / PER_TABLE));
	/* All of them can be used as before. */
	walk(ex, 1, 4 * 512);
	for (int page = 0; page < 4 * PER_GIB; page += 100 * PER_TABLE)
		ck_assert(all_bytes(where(ex, page + 511), page / PER_TABLE));
	assert_pages_add_up(ex->fd);
}

/* Pages whose flush is due keep no table. */
TEST(trim_tables_after_deferred_frees)
{
	struct exmap *ex = exmap_new(GIB, 1024, 1);

	for (int i = 0; i < 100; i++)
		ck_assert_int_eq(alloc(ex, 0, i * PER_TABLE, 1), 1);
	for (int i = 0; i < 100; i++)
		ck_assert_int_eq(run_flags(ex, 0, EXMAP_OP_FREE, i * PER_TABLE, 1,
					   EXMAP_FREE_DEFER), 1);
	ck_assert_int_ge(trim_tables(ex, 0, 0), 99);
	assert_fdinfo(ex->fd, "pages-deferred", 0);
	walk(ex, 0, 100);
	assert_pages_add_up(ex->fd);
}

/*
 * A walk over addresses that are not used again keeps its page tables within 1 % of the pool, if it
 * trims what it has left behind each time it has gone five times the size of the pool.
 */
TEST(trim_tables_behind_a_walk)
{
	const int pool = 64 * MIB / PAGE, interval = 5 * 64 / 2, step = 32;
	struct exmap *ex = exmap_new(4 * GIB, pool, 1);
	long before = tables_kib(), most = 0;

	for (int table = 0; table < 4 * 512; table += step) {
		walk(ex, (uint64_t)table * PER_TABLE, step);
		if (tables_kib() - before > most)
			most = tables_kib() - before;
		if ((table + step) % interval == 0)
			ck_assert_int_ge(trim_tables(ex, 0, (table + step) * PER_TABLE),
					 interval - 1);
	}
	ck_assert_int_le(most, 64 * 1024 / 100 + 4 * step);
	assert_pages_add_up(ex->fd);
}

TEST(trim_tables_refuses_what_makes_no_sense)
{
	struct exmap *ex = exmap_new(4 * MIB, 10, 1);
	int fd = exmap_open();
	struct exmap only_set_up = { .fd = fd };

	assert_ok(exmap_setup(fd, 1, 1, 0));
	ck_assert_int_eq(trim_tables(&only_set_up, 0, 0), -EPROTO);
	ck_assert_int_eq(trim_tables(ex, 1025, 0), -EFAULT);
	ck_assert_int_eq(trim_tables(ex, 0, 1025), -EFAULT);
	ck_assert_int_eq(trim_tables(ex, 1024, 1), -EFAULT);
	ck_assert_int_eq(trim_tables(ex, -1, -1), -EFAULT);
	ck_assert_int_eq(trim_tables(ex, 1024, 0), 0);
	assert_ok(munmap(ex->surface, ex->size));
	ck_assert_int_eq(trim_tables(ex, 0, 0), -EPROTO);
}

/* Work in page tables of one's own that are empty again and again, and read what was written. */
static void *user(void *arg)
{
	struct worker *w = arg;
	uint64_t first = (uint64_t)w->interface * 8 * PER_TABLE;
	int ret;

	for (int round = 0; round < w->rounds && !w->error[0]; round++) {
		uint64_t page = first + round % 8 * PER_TABLE + round % PER_TABLE;

		ret = alloc(w->ex, w->interface, page, 1);
		if (ret != 1)
			worker_error(w, "ALLOC", ret);
		memset(where(w->ex, page), round, PAGE);
		if (!all_bytes(where(w->ex, page), round))
			worker_error(w, "another page than was written to", 0);
		ret = run_flags(w->ex, w->interface, EXMAP_OP_FREE, page, 1,
				round % 3 ? EXMAP_FREE_DEFER : 0);
		if (ret != 1)
			worker_error(w, "FREE", ret);
	}
	return NULL;
}

/* READ into tables that are empty otherwise. Each page must come. */
static void *reader(void *arg)
{
	struct worker *w = arg;
	uint64_t first = (uint64_t)w->interface * 8 * PER_TABLE;
	int ret;

	for (int round = 0; round < w->rounds && !w->error[0]; round++) {
		uint64_t page = first + round % 8 * PER_TABLE + round % 4;

		ret = run_flags(w->ex, w->interface, EXMAP_OP_READ, page, 2, 0);
		if (ret != 2)
			worker_error(w, "READ", ret);
		ret = run_flags(w->ex, w->interface, EXMAP_OP_FREE, page, 2, 0);
		if (ret != 2)
			worker_error(w, "FREE of what was read", ret);
	}
	return NULL;
}

static void *trimmer(void *arg)
{
	struct worker *w = arg;
	long ret;

	while (!atomic_load(w->stop)) {
		ret = trim_tables(w->ex, 0, 0);
		if (ret < 0)
			worker_error(w, "trim", ret);
		w->pages += ret > 0;
	}
	return NULL;
}

/* Calls work as if nobody trimmed. */
TEST(trim_tables_while_calls_run)
{
	enum { USERS = 2, READERS = 2, THREADS = USERS + READERS };
	size_t size = (size_t)THREADS * 8 * PER_TABLE * PAGE;
	int file = memfd_create("backing", 0);
	struct exmap *ex = exmap_new_file(size, 64, THREADS + 1, 0, file);
	struct worker w[THREADS + 1];
	atomic_bool stop = false;

	assert_ok(ftruncate(file, size));
	for (int i = 0; i <= THREADS; i++) {
		w[i] = (struct worker){ .ex = ex, .interface = i, .rounds = scaled(1000),
				       .stop = &stop };
		ck_assert(!pthread_create(&w[i].thread, NULL, i < USERS ? user :
					  i < THREADS ? reader : trimmer, &w[i]));
	}
	for (int i = 0; i <= THREADS; i++) {
		if (i == THREADS)
			atomic_store(&stop, true);
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
	}
	ck_assert_int_gt(w[THREADS].pages, 0);
	assert_mapped(ex, 0);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of page tables that go back to the system.");
}
