// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the surface as a mapping: mmap, size, refused changes, munmap, and touches of absent
 * pages with and without EXMAP_PAGEFAULT_ALLOC.
 */
#include <pthread.h>
#include <setjmp.h>

#include "common.h"

/*
 * mmap
 */
TEST(mmap_surface_after_setup)
{
	struct exmap ex = { .fd = exmap_open() };

	assert_ok(exmap_setup(ex.fd, 1, 10, 0));
	ex.surface = map_surface(ex.fd, MIB);
	assert_ok(ex.surface);
	ex.interface[0] = map_interface(ex.fd, 0);
	ck_assert_int_eq(alloc(&ex, 0, 7, 1), 1);
	ex.surface[7 * PAGE] = 1;
}

TEST(mmap_surface_twice_is_ebusy)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	assert_errno(map_surface(ex->fd, MIB), EBUSY);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	assert_ok(munmap(ex->surface, ex->size));
	assert_errno(map_surface(ex->fd, MIB), EBUSY);
}

TEST(mmap_private_is_einval)
{
	int fd = exmap_open();

	assert_ok(exmap_setup(fd, 1, 10, 0));
	assert_errno(mmap(NULL, MIB, PROT_READ, MAP_PRIVATE, fd, EXMAP_OFF_EXMAP), EINVAL);
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, EXMAP_OFF_INTERFACE(0)), EINVAL);
	assert_ok(map_surface(fd, MIB));
}

TEST(mmap_without_access_is_einval)
{
	int fd = exmap_open();

	assert_errno(mmap(NULL, MIB, PROT_NONE, MAP_SHARED, fd, EXMAP_OFF_EXMAP), EINVAL);
	assert_ok(map_surface(fd, MIB));
}

/* It is EINVAL on arm64, whose instruction caches exmap does not keep in step with the pages. */
TEST(mmap_executable)
{
	const int prot = PROT_READ | PROT_WRITE | PROT_EXEC;
	int fd = exmap_open();

	if (ARCH_EXECUTES) {
		assert_ok(mmap(NULL, MIB, prot, MAP_SHARED, fd, EXMAP_OFF_EXMAP));
	} else {
		assert_errno(mmap(NULL, MIB, prot, MAP_SHARED, fd, EXMAP_OFF_EXMAP), EINVAL);
		assert_ok(map_surface(fd, MIB));
	}
}

TEST(mmap_offsets_in_between_are_einval)
{
	int fd = exmap_open();

	assert_ok(exmap_setup(fd, 1, 10, 0));
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, EXMAP_OFF_PTEXPORT), EINVAL);
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE), EINVAL);
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd,
			  EXMAP_OFF_INTERFACE_BASE - PAGE), EINVAL);
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, EXMAP_OFF_INTERFACE_MAX), EINVAL);
	assert_ok(map_surface(fd, MIB));
}

/*
 * Refused changes, and sizes
 */
TEST(surface_read_only, .signal = SIGSEGV)
{
	struct exmap ex = { .fd = exmap_open() };

	ex.surface = mmap(NULL, MIB, PROT_READ, MAP_SHARED, ex.fd, EXMAP_OFF_EXMAP);
	assert_ok(ex.surface);
	assert_ok(exmap_setup(ex.fd, 1, 10, 0));
	ex.interface[0] = map_interface(ex.fd, 0);
	ck_assert_int_eq(alloc(&ex, 0, 0, 1), 1);
	ck_assert_int_eq(ex.surface[0], 0);
	ex.surface[0] = 1;
}

/* The kernel refuses to unmap, protect or resize a part of the surface, which stays as it is. */
TEST(surface_changes_are_refused)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	ex->surface[0] = 42;
	assert_errno(munmap(ex->surface, PAGE), EINVAL);
	assert_errno(munmap(ex->surface + ex->size - PAGE, PAGE), EINVAL);
	assert_errno(mprotect(ex->surface, ex->size, PROT_READ), EACCES);
	assert_errno(mremap(ex->surface, ex->size, 2 * ex->size, MREMAP_MAYMOVE), EFAULT);
	assert_errno(mremap(ex->surface, ex->size, ex->size / 2, 0), EINVAL);
	ck_assert_int_eq(ex->surface[0], 42);
	assert_mapped(ex, 10);
	ck_assert_int_eq(release(ex, 0, 0, 10), 10);
}

/* Assert that smaps shows flag @want for the mapping at @address. dd is VM_DONTDUMP. */
static void assert_vm_flags(void *address, const char *want)
{
	char line[512], key[32];
	bool here = false, seen = false;
	FILE *f = fopen("/proc/self/smaps", "r");

	snprintf(key, sizeof(key), "%lx-", (long)address);
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, key, strlen(key)))
			here = true;
		if (here && !strncmp(line, "VmFlags:", 8)) {
			ck_assert_msg(strstr(line, want), "%s not in %s", want, line);
			seen = true;
			break;
		}
	}
	fclose(f);
	ck_assert(seen);
}

TEST(mappings_are_not_dumped)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	assert_vm_flags(ex->surface, " dd");
	assert_vm_flags(ex->interface[0], " dd");
}

/* mremap refuses to move the surface. By then the surface is dead: the kernel has cleared it. */
TEST(surface_does_not_move)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	char *there = mmap(NULL, ex->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	assert_errno(mremap(ex->surface, ex->size, ex->size, MREMAP_MAYMOVE | MREMAP_FIXED, there),
		     EINVAL);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), -EPROTO);
	assert_mapped(ex, 0);
	ck_assert_uint_eq(resident(ex, 0, 10), 0);
}

/* ALLOC and FREE of pages at the ends of page tables, of leaves and of a large surface. */
TEST(surface_of_16_tib)
{
	static const uint64_t pages[] = {
		0, 511, 512, GIB / PAGE - 1, GIB / PAGE, 512 * GIB / PAGE, 16 * TIB / PAGE - 1,
	};
	struct exmap *ex = exmap_new(16 * TIB, GIB / PAGE, 1);
	const int nr = sizeof(pages) / sizeof(pages[0]);

	for (int i = 0; i < nr; i++)
		entry(ex, 0, i, pages[i], 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, nr, 0), 0);
	for (int i = 0; i < nr; i++) {
		assert_entry(ex, 0, i, 0, 1);
		ck_assert(all_bytes(ex->surface + pages[i] * PAGE, 0));
		memset(ex->surface + pages[i] * PAGE, i + 1, PAGE);
	}
	for (int i = 0; i < nr; i++) {
		ck_assert(all_bytes(ex->surface + pages[i] * PAGE, i + 1));
		ck_assert_uint_eq(resident(ex, pages[i], 1), 1);
		entry(ex, 0, i, pages[i], 1);
	}
	assert_mapped(ex, nr);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FREE, nr, 0), 0);
	assert_mapped(ex, 0);
}

TEST(surface_of_100_tib_costs_nothing_untouched)
{
	long before = available_kib();
	struct exmap *ex = exmap_new(100 * TIB, 100, 1);

	assert_available(before, 16 * 1024);
	ck_assert_int_eq(alloc(ex, 0, 100 * TIB / PAGE - 1, 1), 1);
	ck_assert_int_eq(alloc(ex, 0, 100 * TIB / PAGE, 1), -EFAULT);
}

/* The size of a surface need not be a multiple of what a page table maps. LeanStore's is not. */
TEST(surface_of_an_odd_size)
{
	struct exmap *ex = exmap_new(MIB + 64 * 1024, 300, 1);

	ck_assert_int_eq(alloc(ex, 0, 256, 16), 16);
	ck_assert_int_eq(alloc(ex, 0, 271, 1), 0);
	ck_assert_int_eq(alloc(ex, 0, 271, 2), -EFAULT);
	ck_assert_int_eq(alloc(ex, 0, 272, 1), -EFAULT);
	assert_mapped(ex, 16);
}

/* munmap of one surface and close of another file leave other exmaps of the process alone. */
TEST(several_exmaps_in_one_process)
{
	struct exmap *ex[4];

	for (int i = 0; i < 4; i++) {
		ex[i] = exmap_new(MIB, 10, 1);
		ck_assert_int_eq(alloc(ex[i], 0, 0, 10), 10);
		memset(ex[i]->surface, i + 1, 10 * PAGE);
	}
	assert_ok(munmap(ex[1]->surface, ex[1]->size));
	close(ex[2]->fd);
	for (int i = 0; i < 4; i++)
		if (i != 1)
			ck_assert(all_bytes(ex[i]->surface + 9 * PAGE, i + 1));
	ck_assert_int_eq(release(ex[0], 0, 0, 10), 10);
	ck_assert(all_bytes(ex[3]->surface, 4));
	assert_mapped(ex[3], 10);
}

/*
 * Calls without a surface
 */
TEST(action_without_a_surface_is_eproto)
{
	struct exmap ex = { .fd = exmap_open() };

	assert_ok(exmap_setup(ex.fd, 1, 10, 0));
	ex.interface[0] = map_interface(ex.fd, 0);
	ck_assert_int_eq(alloc(&ex, 0, 0, 1), -EPROTO);
	ck_assert_int_eq(release(&ex, 0, 0, 1), -EPROTO);
}

TEST(action_after_munmap_is_eproto)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	assert_ok(munmap(ex->surface, ex->size));
	ck_assert_int_eq(alloc(ex, 0, 20, 1), -EPROTO);
	ck_assert_int_eq(release(ex, 0, 0, 1), -EPROTO);
	assert_mapped(ex, 0);
}

/*
 * A surface that is unmapped before SETUP is dead, although no MMU notifier is registered then.
 * Calls must not reach the pages of another surface at the same address.
 */
TEST(action_after_munmap_before_setup_is_eproto)
{
	struct exmap a = { .fd = exmap_open(), .size = MIB };
	struct exmap b = { .fd = exmap_open(), .size = MIB };

	a.surface = map_surface(a.fd, a.size);
	assert_ok(munmap(a.surface, a.size));
	/* The surface of another exmap takes its place. */
	b.surface = mmap(a.surface, b.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, b.fd,
			 EXMAP_OFF_EXMAP);
	ck_assert_ptr_eq(b.surface, a.surface);
	assert_ok(exmap_setup(b.fd, 1, 10, 0));
	b.interface[0] = map_interface(b.fd, 0);
	ck_assert_int_eq(alloc(&b, 0, 0, 10), 10);
	assert_ok(exmap_setup(a.fd, 1, 10, 0));
	a.interface[0] = map_interface(a.fd, 0);
	ck_assert_int_eq(release(&a, 0, 0, 10), -EPROTO);
	ck_assert_int_eq(alloc(&a, 0, 0, 10), -EPROTO);
	assert_ok(munmap(a.interface[0], PAGE));
	close(a.fd);
	assert_mapped(&b, 10);
	ck_assert_int_eq(release(&b, 0, 0, 10), 10);
}

/*
 * Touches
 */
TEST(touch_read_of_a_page_that_is_not_there, .signal = SIGSEGV)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 4, 1), 1);
	ck_assert_int_eq(ex->surface[4 * PAGE], 0);
	*(volatile char *)(ex->surface + 5 * PAGE);
}

TEST(touch_write_to_a_freed_page, .signal = SIGSEGV)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 4, 1), 1);
	ex->surface[4 * PAGE] = 1;
	ck_assert_int_eq(release(ex, 0, 4, 1), 1);
	ex->surface[4 * PAGE] = 1;
}

static sigjmp_buf segv_jump;
static volatile void *segv_address;

static void on_segv(int sig, siginfo_t *info, void *context)
{
	segv_address = info->si_addr;
	siglongjmp(segv_jump, 1);
}

static void catch_segv(void)
{
	struct sigaction sa = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };

	assert_ok(sigaction(SIGSEGV, &sa, NULL));
	assert_ok(sigaction(SIGBUS, &sa, NULL));
}

/* A touch of an absent page gives SIGSEGV with its address. vmcache relies on that to go on. */
TEST(touch_signal_tells_the_address)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	volatile char *where = ex->surface + 33 * PAGE + 123;

	catch_segv();
	if (!sigsetjmp(segv_jump, 1)) {
		*where;
		ck_abort_msg("no signal");
	}
	ck_assert_ptr_eq((void *)segv_address, (void *)where);
	ck_assert_int_eq(alloc(ex, 0, 33, 1), 1);
	ck_assert_int_eq(*where, 0);
}

TEST(touch_by_a_system_call_is_efault)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	int fd = open("/dev/zero", O_RDONLY);

	assert_errno(read(fd, ex->surface, 1), EFAULT);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(read(fd, ex->surface, PAGE + 1), PAGE);
}

/*
 * EXMAP_PAGEFAULT_ALLOC
 */
TEST(pagefault_alloc_maps_what_is_touched)
{
	struct exmap *ex = exmap_new_flags(TIB, 10, 1, EXMAP_PAGEFAULT_ALLOC);

	ck_assert_int_eq(ex->surface[5 * PAGE], 0);
	ex->surface[TIB - 1] = 1;
	ck_assert_uint_eq(resident(ex, 4, 3), 1);
	assert_mapped(ex, 2);
	ck_assert_int_eq(alloc(ex, 0, 5, 2), 1);
	ck_assert_int_eq(release(ex, 0, 5, 2), 2);
	ck_assert_int_eq(release(ex, 0, TIB / PAGE - 1, 1), 1);
	assert_mapped(ex, 0);
	ex->surface[5 * PAGE] = 2;
	assert_mapped(ex, 1);
}

TEST(pagefault_alloc_takes_pages_from_other_interfaces)
{
	struct exmap *ex = exmap_new_flags(MIB, 10, 1, EXMAP_PAGEFAULT_ALLOC);

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	ck_assert_int_eq(release(ex, 0, 0, 10), 10);
	for (int i = 20; i < 30; i++)
		ex->surface[i * PAGE] = 1;
	assert_mapped(ex, 10);
	ck_assert_int_eq(release(ex, 0, 20, 10), 10);
}

TEST(pagefault_alloc_of_an_empty_pool_is_sigbus, .signal = SIGBUS)
{
	struct exmap *ex = exmap_new_flags(MIB, 10, 1, EXMAP_PAGEFAULT_ALLOC);

	for (int i = 0; i < 10; i++)
		ex->surface[i * PAGE] = 1;
	ex->surface[10 * PAGE] = 1;
}

/*
 * A touch of a dead surface by the kernel returns EFAULT. If the kernel retried the touch
 * forever, no signal could kill the task.
 */
TEST(pagefault_alloc_on_a_dead_surface_is_efault)
{
	struct exmap *ex = exmap_new_flags(MIB, 10, 1, EXMAP_PAGEFAULT_ALLOC);
	char *there = mmap(NULL, ex->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int pipes[2];

	assert_ok(pipe(pipes));
	ck_assert_int_eq(write(pipes[1], ex->surface, 1), 1);
	assert_errno(mremap(ex->surface, ex->size, ex->size, MREMAP_MAYMOVE | MREMAP_FIXED, there),
		     EINVAL);
	assert_errno(write(pipes[1], ex->surface, 1), EFAULT);
}

/* A task that is killed while the kernel touches pages for it ends, even if the pool is empty. */
TEST(pagefault_alloc_can_be_killed)
{
	for (int round = 0; round < 30; round++) {
		pid_t pid = fork();

		if (!pid) {
			int fd = open("/dev/zero", O_RDONLY);
			struct exmap *ex;

			doomed = true;
			ex = exmap_new_flags(64 * MIB, 16000, 1, EXMAP_PAGEFAULT_ALLOC);
			for (;;) {
				if (read(fd, ex->surface, 64 * MIB) < 0)
					_exit(1);
				for (int page = 0; page < 16384; page += 4095)
					release(ex, 0, page, 4095);
			}
		}
		for (volatile long spin = random() % 3000000; spin > 0; spin--)
			;
		kill(pid, SIGKILL);
		wait_child(pid, SIGKILL);
	}
}

enum { TOUCHERS = 3 };

static pthread_barrier_t touch_barrier;

static void *touching_thread(void *arg)
{
	struct exmap *ex = arg;

	for (;;) {
		pthread_barrier_wait(&touch_barrier);
		*(volatile char *)ex->surface = 1;
		pthread_barrier_wait(&touch_barrier);
	}
	return NULL;
}

/*
 * Threads touch the same page at once, and the pool has only one page. A thread that gets none
 * must find the page of another thread mapped at that address.
 */
TEST(pagefault_alloc_of_the_same_page_by_threads)
{
	struct exmap *ex = exmap_new_flags(MIB, 1, 1, EXMAP_PAGEFAULT_ALLOC);
	pthread_t thread;

	pthread_barrier_init(&touch_barrier, NULL, TOUCHERS + 1);
	for (int i = 0; i < TOUCHERS; i++)
		ck_assert(!pthread_create(&thread, NULL, touching_thread, ex));
	for (int round = scaled(3000); round; round--) {
		pthread_barrier_wait(&touch_barrier);
		pthread_barrier_wait(&touch_barrier);
		ck_assert_int_eq(release(ex, 0, 0, 1), 1);
	}
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of the surface: mmap, size, changes, touches.");
}
