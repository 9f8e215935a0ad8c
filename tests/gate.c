// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the gate: the rest of the kernel works on the surface, alone and while calls run.
 */
#include <sys/syscall.h>

#include "worker.h"

/* MADV_DONTNEED unmaps the pages of its range and gives them back to the system. */
TEST(madvise_dontneed_takes_pages_away)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 3000), 3000);
	memset(ex->surface, 'q', 3000 * PAGE);
	assert_ok(madvise(ex->surface + 100 * PAGE, 2000 * PAGE, MADV_DONTNEED));
	assert_mapped(ex, 1000);
	ck_assert_uint_eq(resident(ex, 0, 3000), 1000);
	ck_assert(all_bytes(ex->surface + 99 * PAGE, 'q'));
	ck_assert(all_bytes(ex->surface + 2100 * PAGE, 'q'));
	/* The pages went back to the system, so ALLOC maps zeroed pages there. */
	ck_assert_int_eq(alloc(ex, 0, 0, 3000), 2000);
	ck_assert(all_bytes(ex->surface + 100 * PAGE, 0));
	ck_assert(all_bytes(ex->surface + 2099 * PAGE, 0));
	ck_assert_int_eq(alloc(ex, 0, 4000, 1), -ENOMEM);
	ck_assert_int_eq(release(ex, 0, 0, 3000), 3000);
}

/*
 * If the kernel splits a huge page, 6.1 and 6.12 announce all of its 2 MiB to MMU notifiers. Here
 * the surface has replaced half of that huge page: its pages must stay.
 */
TEST(huge_page_of_a_neighbour_is_split, .needs = "/sys/kernel/mm/transparent_hugepage")
{
	enum { PAGES = MIB / PAGE };
	struct exmap ex = { .fd = exmap_open(), .size = MIB };
	char *area = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	char *huge = (char *)(((uintptr_t)area + 2 * MIB - 1) & -(2 * MIB));

	assert_ok(area);
	assert_ok(madvise(huge, 2 * MIB, MADV_HUGEPAGE));
	memset(huge, 'h', 2 * MIB);
	ck_assert_int_eq(kib_of("/proc/self/smaps_rollup", "AnonHugePages:"), 2048);
	assert_ok(munmap(huge + MIB, MIB));
	ex.surface = mmap(huge + MIB, MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, ex.fd,
			  EXMAP_OFF_EXMAP);
	assert_ok(ex.surface);
	assert_ok(exmap_setup(ex.fd, 1, PAGES, 0));
	ex.interface[0] = map_interface(ex.fd, 0);
	assert_ok(ex.interface[0]);
	ck_assert_int_eq(alloc(&ex, 0, 0, PAGES), PAGES);
	memset(ex.surface, 'x', MIB);

	assert_ok(madvise(huge, MIB / 2, MADV_PAGEOUT));
	assert_mapped(&ex, PAGES);
	ck_assert_uint_eq(resident(&ex, 0, PAGES), PAGES);
	for (int page = 0; page < PAGES; page++)
		ck_assert(all_bytes(ex.surface + page * PAGE, 'x'));
	/* The gate is open again, and closes and opens as before. */
	assert_ok(madvise(ex.surface, MIB / 2, MADV_DONTNEED));
	ck_assert_int_eq(release(&ex, 0, 0, PAGES), PAGES / 2);
}

/*
 * clear_refs leaves pages mapped and writable. For soft-dirty tracking the kernel takes write
 * permission out of PTEs, and page faults put it back.
 */
TEST(clear_refs_is_survived)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 1);
	int fd = open("/proc/self/clear_refs", O_WRONLY);

	assert_ok(fd);
	ck_assert_int_eq(alloc(ex, 0, 0, 2000), 2000);
	for (char how = '1'; how <= '4'; how++) {
		memset(ex->surface, how, 2000 * PAGE);
		/* A kernel without soft-dirty tracking refuses 4. */
		if (write(fd, &how, 1) != 1)
			ck_assert_int_eq(errno, EINVAL);
		ck_assert(all_bytes(ex->surface + 1999 * PAGE, how));
		memset(ex->surface, how + 1, 2000 * PAGE);
		ck_assert(all_bytes(ex->surface + 1999 * PAGE, how + 1));
		ck_assert_int_eq(release(ex, 0, 0, 1000), 1000);
		ck_assert_int_eq(alloc(ex, 0, 0, 1000), 1000);
	}
	assert_mapped(ex, 2000);
}

struct madviser {
	char *where;
	size_t size;
	atomic_bool stop;
};

static void *madvise_worker(void *arg)
{
	struct madviser *m = arg;

	while (!atomic_load(&m->stop))
		madvise(m->where, m->size, MADV_DONTNEED);
	return NULL;
}

/*
 * SETUP runs while madvise works on the surface, in a process that has another exmap. The new
 * exmap has not seen the start of that work, so it must not count its end: otherwise its gate
 * would stay closed forever.
 */
TEST(setup_while_madvise_runs)
{
	enum { PAGES = 600 };
	struct exmap *first = exmap_new(MIB, 10, 1);
	struct madviser m = { .size = PAGES * PAGE };
	struct exmap ex = { .size = PAGES * PAGE };
	pthread_t thread[2];

	/* An address range that stays reserved between two surfaces. */
	m.where = mmap(NULL, m.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ok(m.where);
	ck_assert_int_eq(alloc(first, 0, 0, 10), 10);
	for (int i = 0; i < 2; i++)
		ck_assert(!pthread_create(&thread[i], NULL, madvise_worker, &m));
	for (int round = scaled(300); round; round--) {
		ex.fd = exmap_open();
		ex.surface = mmap(m.where, ex.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
				  ex.fd, EXMAP_OFF_EXMAP);
		assert_ok(ex.surface);
		assert_ok(exmap_setup(ex.fd, 1, PAGES, 0));
		ex.interface[0] = map_interface(ex.fd, 0);
		assert_ok(ex.interface[0]);
		/* madvise may unmap pages at any moment, so their number is not checked. */
		ck_assert_int_ge(alloc(&ex, 0, 0, PAGES), 0);
		ck_assert_int_ge(release(&ex, 0, 0, PAGES), 0);
		assert_ok(mmap(m.where, m.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			       -1, 0));
		assert_ok(munmap(ex.interface[0], PAGE));
		assert_ok(close(ex.fd));
		assert_mapped(first, 10);
	}
	atomic_store(&m.stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	ck_assert_int_eq(release(first, 0, 0, 10), 10);
}

TEST(mlockall_and_populate_are_survived)
{
	struct exmap *ex;

	assert_ok(mlockall(MCL_CURRENT | MCL_FUTURE));
	ex = exmap_new(MIB, 10, 1);
	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	mlock(ex->surface, ex->size);
	munlock(ex->surface, ex->size);
	ck_assert_int_eq(release(ex, 0, 0, 10), 10);
	assert_mapped(ex, 0);
}

/* Start two workers, both at interface 0, or each at its own. */
static void start_workers(struct exmap *ex, struct worker w[2], int interfaces, atomic_bool *stop)
{
	for (int i = 0; i < 2; i++) {
		w[i] = (struct worker){
			.ex = ex, .interface = i % interfaces, .pages = 512, .stop = stop,
		};
		ck_assert(!pthread_create(&w[i].thread, NULL, alloc_free_worker, &w[i]));
	}
}

static void join_workers(struct worker w[2], bool surface_gone)
{
	for (int i = 0; i < 2; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
		ck_assert_int_eq(w[i].surface_gone, surface_gone);
	}
}

/* Calls that run during munmap return EPROTO or answer EPROTO, and no page stays mapped. */
TEST(munmap_while_calls_run)
{
	for (int round = scaled(30); round; round--) {
		struct worker w[2];
		atomic_bool stop = false;
		pid_t pid = fork();

		if (!pid) {
			struct exmap *ex = exmap_new(64 * MIB, 3000, 2);

			start_workers(ex, w, 2, &stop);
			while (!stats(ex).alloc_count)
				;
			assert_ok(munmap(ex->surface, ex->size));
			join_workers(w, true);
			assert_mapped(ex, 0);
			_exit(0);
		}
		wait_child(pid, 0);
	}
}

/* Calls that run during madvise and clear_refs wait for the gate and succeed. */
TEST(madvise_and_clear_refs_while_calls_run)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 2);
	int fd = open("/proc/self/clear_refs", O_WRONLY);
	atomic_bool stop = false;
	struct worker w[2];

	start_workers(ex, w, 2, &stop);
	for (int round = scaled(300); round; round--) {
		assert_ok(madvise(ex->surface + round * PAGE, 700 * PAGE, MADV_DONTNEED));
		if (write(fd, "4", 1) != 1)
			ck_assert_int_eq(errno, EINVAL);
	}
	atomic_store(&stop, true);
	join_workers(w, false);
	assert_mapped(ex, 0);
	ck_assert_int_eq(alloc(ex, 0, 0, 3000), 3000);
}

/*
 * After munmap of a surface, the process maps other memory at the same address. The kernel may
 * take that memory away without being able to wait, as the OOM reaper does: exmap must not refuse.
 * process_mrelease() does the same as the OOM reaper.
 */
TEST(memory_in_place_of_a_surface)
{
	int reaped = 0, fd;
	pid_t pid;

	for (int round = 0; round < 100 && reaped < 3; round++) {
		pid = fork();
		if (!pid) {
			struct exmap *ex = exmap_new(4 * MIB, 10, 1);
			char *more = malloc(64 * MIB);

			ck_assert_ptr_nonnull(more);
			ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
			assert_ok(munmap(ex->surface, ex->size));
			ck_assert_ptr_eq(mmap(ex->surface, ex->size, PROT_READ | PROT_WRITE,
					      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
					 ex->surface);
			memset(ex->surface, 1, ex->size);
			/* The exit of so much memory leaves time for process_mrelease(). */
			memset(more, 1, 64 * MIB);
			raise(SIGSTOP);
			_exit(0);
		}
		assert_ok(waitpid(pid, NULL, WUNTRACED));
		fd = syscall(SYS_pidfd_open, pid, 0);
		assert_ok(fd);
		assert_ok(kill(pid, SIGKILL));
		reaped += !syscall(SYS_process_mrelease, fd, 0);
		wait_child(pid, SIGKILL);
		close(fd);
	}
	ck_assert_int_gt(reaped, 0);
}

/*
 * Two threads at one interface may get wrong answers, because they share its entries. They do not
 * harm the exmap: no page is lost, and it works as before.
 */
TEST(threads_sharing_an_interface)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 1);
	atomic_bool stop = false;
	struct worker w[2];
	long pages = 0;

	start_workers(ex, w, 1, &stop);
	for (int round = scaled(1000); round; round--)
		pages += stats(ex).alloc_count;
	atomic_store(&stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(w[i].thread, NULL);
	ck_assert_int_ge(pages, 0);
	release(ex, 0, 0, 4095);
	assert_mapped(ex, 0);
	ck_assert_int_eq(alloc(ex, 0, 0, 3000), 3000);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of the gate: the kernel works on the surface.");
}
