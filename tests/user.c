// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of exmap_user.h, every function of it. Built as C and as C++: what is here is both.
 */
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "exmap_user.h"
#include "base.h"

/* As the surface of most tests: longer than a table of page tables. */
#define SURFACE ((uint64_t)1 << 22)
#define BATCH EXMAP_USER_INTERFACE_PAGES
#define WIDE ((uint64_t)1 << 52)	/* what a page's number must be below */

/* How many file descriptors and mappings of exmaps the process has. */
static int held(void)
{
	DIR *directory = opendir("/proc/self/fd");
	char line[4096];
	int sum = -3;	/* . and .. and this one */
	FILE *maps;

	ck_assert_ptr_nonnull(directory);
	while (readdir(directory))
		sum++;
	closedir(directory);
	maps = fopen("/proc/self/maps", "r");
	ck_assert_ptr_nonnull(maps);
	while (fgets(line, sizeof(line), maps))
		sum += !!strstr(line, "/dev/exmap");
	fclose(maps);
	return sum;
}

static void open_one(struct exmap *exmap, uint64_t pool, unsigned int interfaces)
{
	ck_assert_int_eq(exmap_open(exmap, SURFACE, pool, interfaces, -1, 0), 0);
}

/* One with an interface that is attached to. */
static void open_attached(struct exmap *exmap, struct exmap_interface *interface, uint64_t pool,
			  int backing)
{
	ck_assert_int_eq(exmap_open(exmap, SURFACE, pool, 1, backing, 0), 0);
	ck_assert_int_eq(exmap_attach(exmap, interface), 0);
}

static struct exmap_ioctl_stats stats(const struct exmap *exmap)
{
	struct exmap_ioctl_stats stats;

	assert_ok(ioctl(exmap->fd, EXMAP_IOCTL_STATS, &stats));
	return stats;
}

#define assert_mapped(exmap, n) ck_assert_uint_eq(stats(exmap).alloc_count, n)

/* A new file of so many pages, each full of a letter: A, B, and so on. */
static int file_of_letters(unsigned int pages)
{
	char path[] = "/tmp/test-user-XXXXXX", page[EXMAP_PAGE_SIZE];
	int fd = mkstemp(path);

	assert_ok(fd);
	unlink(path);
	for (unsigned int i = 0; i < pages; i++) {
		memset(page, 'A' + i, sizeof(page));
		ck_assert_int_eq(write(fd, page, sizeof(page)), sizeof(page));
	}
	return fd;
}

static const char *page_at(const struct exmap *exmap, uint64_t page)
{
	return (const char *)exmap_address(exmap, page);
}

/*
 * exmap_open(), exmap_close(), exmap_strerror()
 */
TEST(open_sets_up_and_close_undoes_it)
{
	int before = held(), fd;
	struct exmap exmap;
	char *surface;

	ck_assert_int_eq(exmap_open(&exmap, SURFACE, 100, 3, -1, EXMAP_PAGEFAULT_ALLOC), 0);
	ck_assert_int_gt(held(), before);
	ck_assert_uint_eq(exmap.surface_pages, SURFACE);
	ck_assert_uint_eq(stats(&exmap).buffer_size, 100);
	ck_assert_uint_eq(stats(&exmap).max_interfaces, 3);
	ck_assert_uint_eq(stats(&exmap).flags, EXMAP_PAGEFAULT_ALLOC);
	ck_assert_int_eq(fcntl(exmap.fd, F_GETFD), FD_CLOEXEC);

	/* The surface is as large as was asked for: its last page can be there. */
	ck_assert_ptr_eq(exmap_address(&exmap, 0), exmap.surface);
	ck_assert_ptr_eq(exmap_address(&exmap, 3), exmap.surface + 12288);
	*(char *)exmap_address(&exmap, SURFACE - 1) = 1;
	assert_mapped(&exmap, 1);

	fd = exmap.fd;
	surface = exmap.surface;
	exmap_close(&exmap);
	ck_assert_int_eq(held(), before);
	/* Once more: what has come there since is not the exmap's. */
	ck_assert_int_eq(open("/dev/null", O_RDONLY), fd);
	ck_assert_ptr_eq(mmap(surface, EXMAP_PAGE_SIZE, PROT_READ,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), surface);
	exmap_close(&exmap);
	assert_ok(close(fd));
	assert_ok(madvise(surface, EXMAP_PAGE_SIZE, MADV_NORMAL));
}

struct open_case {
	uint64_t surface, pool;
	unsigned int interfaces;
	uint64_t flags;
	int err;
};

TEST(open_out_of_range)
{
	static const struct open_case cases[] = {
		{ 0, 1, 1, 0, EINVAL },
		{ WIDE, 1, 1, 0, EINVAL },
		{ UINT64_MAX, 1, 1, 0, EINVAL },
		{ WIDE - 1, 1, 1, 0, ENOMEM },	/* of addresses */
		{ 1, 0, 1, 0, EINVAL },
		{ 1, UINT64_MAX, 1, 0, EINVAL },
		{ 1, 1, 0, 0, EINVAL },
		{ 1, 1, EXMAP_MAX_INTERFACES + 1, 0, EINVAL },
		{ 1, 1, UINT32_MAX, 0, EINVAL },
		{ 1, 1, 1, 1, EINVAL },
		{ 1, 1, 1, (uint64_t)1 << 63 | EXMAP_PAGEFAULT_ALLOC, EINVAL },
		{ 1, 1, 1, 0, 0 },
		{ SURFACE, 100000, EXMAP_MAX_INTERFACES, 0, 0 },
	};
	int before = held();

	for (const struct open_case *c = cases; c < cases + sizeof(cases) / sizeof(*cases); c++) {
		struct exmap exmap;
		int err = exmap_open(&exmap, c->surface, c->pool, c->interfaces, -1, c->flags);

		ck_assert_msg(err == -c->err, "case %d: %d, expected %d", (int)(c - cases), err,
			      -c->err);
		if (!err)
			exmap_close(&exmap);
		ck_assert_int_eq(held(), before);
		/* Nothing is left to be closed: not a descriptor that is another's by now. */
		exmap_close(&exmap);
		ck_assert_int_eq(held(), before);
	}
}

static void refuse_backing(int backing, int err)
{
	int before = held();
	struct exmap exmap;

	ck_assert_int_eq(exmap_open(&exmap, SURFACE, 1, 1, backing, 0), -err);
	ck_assert_int_eq(held(), before);
}

TEST(open_refuses_backing)
{
	int ends[2];

	refuse_backing(1000, EBADF);
	refuse_backing(-2, EBADF);
	refuse_backing(open("/tmp", O_WRONLY | O_TMPFILE, 0600), EBADF);
	refuse_backing(open("/tmp", O_RDONLY | O_DIRECTORY), EISDIR);
	assert_ok(pipe(ends));
	refuse_backing(ends[0], ESPIPE);
	refuse_backing(open("/dev/zero", O_RDWR), EINVAL);
}

TEST(backing_may_be_closed)
{
	int file = file_of_letters(2);
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 10, file);
	close(file);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 1), 1);
	ck_assert_int_eq(*page_at(&exmap, 1), 'B');
}

TEST(open_within_memlock)
{
	struct exmap_interface interface;
	int before = held();
	struct exmap exmap;

	/* A page for the array of interfaces, four for each that is used. */
	set_memlock((100 + 1 + 4) * EXMAP_PAGE_SIZE);
	drop_privileges();
	ck_assert_int_eq(exmap_open(&exmap, SURFACE, 105, 1, -1, 0), -ENOMEM);
	ck_assert_int_eq(held(), before);
	/* Neither that one nor these count any more. */
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(exmap_open(&exmap, SURFACE, 101, 1, -1, 0), 0);
		ck_assert_int_eq(exmap_attach(&exmap, &interface), -ENOMEM);
		exmap_close(&exmap);
		ck_assert_int_eq(held(), before);
		open_attached(&exmap, &interface, 100, -1);
		ck_assert_int_eq(exmap_own_fd(&interface), 0);
		exmap_detach(&interface);
		exmap_close(&exmap);
	}
	set_memlock(0);
	ck_assert_int_eq(exmap_open(&exmap, SURFACE, 1, 1, -1, 0), -EPERM);
	ck_assert_int_eq(held(), before);
}

/* With another /dev, for this process alone. */
TEST(open_without_device)
{
	int before = held();
	struct exmap exmap;

	assert_ok(unshare(CLONE_NEWNS));
	assert_ok(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	assert_ok(mount("none", "/dev", "tmpfs", 0, NULL));
	ck_assert_int_eq(exmap_open(&exmap, SURFACE, 1, 1, -1, 0), -ENOENT);
	ck_assert_int_eq(held(), before);

	assert_ok(close(open("/dev/exmap", O_CREAT | O_WRONLY, 0600)));
	drop_privileges();
	ck_assert_int_eq(exmap_open(&exmap, SURFACE, 1, 1, -1, 0), -EACCES);
	ck_assert_int_eq(held(), before);
}

TEST(strerror_says_what_to_do)
{
	static const struct {
		int err;
		const char *word;
	} cases[] = {
		{ ENOENT, "load the module" }, { EACCES, "permission" }, { ENOMEM, "ulimit -l" },
		{ EPERM, "ulimit -l" }, { EBADF, "backing file" }, { EISDIR, "backing file" },
		{ ESPIPE, "backing file" }, { EINVAL, "1 to 1024" }, { EMFILE, "ulimit -n" },
		{ ENXIO, "interface" }, { EBUSY, "interface" },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		const char *text = exmap_strerror(-cases[i].err);

		ck_assert_msg(strstr(text, cases[i].word) && !strchr(text, '\n'), "%s: %s",
			      strerror(cases[i].err), text);
	}
	ck_assert_str_eq(exmap_strerror(-EINTR), strerror(EINTR));
}

/*
 * exmap_attach(), exmap_attach_to(), exmap_own_fd(), exmap_detach()
 */
TEST(attach_until_all_are_taken)
{
	static struct exmap_interface interface[EXMAP_MAX_INTERFACES];
	static bool seen[EXMAP_MAX_INTERFACES];
	struct exmap_interface one_more;
	int before = held();
	struct exmap exmap;

	open_one(&exmap, 100, EXMAP_MAX_INTERFACES);
	for (int i = 0; i < EXMAP_MAX_INTERFACES; i++) {
		ck_assert_int_eq(exmap_attach(&exmap, &interface[i]), 0);
		ck_assert(!seen[interface[i].number]);
		seen[interface[i].number] = true;
	}
	ck_assert_int_eq(exmap_attach(&exmap, &one_more), -EBUSY);

	/* One that is given back is there for the next who comes, with an empty batch. */
	ck_assert_int_eq(exmap_batch_add(&interface[700], 1, 1), 0);
	exmap_detach(&interface[700]);
	ck_assert_int_eq(exmap_attach(&exmap, &one_more), 0);
	ck_assert_uint_eq(one_more.number, interface[700].number);
	ck_assert_uint_eq(one_more.nr, 0);
	ck_assert_int_eq(exmap_page(&one_more, EXMAP_OP_ALLOC, 5), 1);
	interface[700] = one_more;

	for (int i = 0; i < EXMAP_MAX_INTERFACES; i++)
		exmap_detach(&interface[i]);
	/* Pages stay. */
	assert_mapped(&exmap, 1);
	exmap_close(&exmap);
	ck_assert_int_eq(held(), before);
}

TEST(attach_to_a_number)
{
	struct exmap_interface one, other, third;
	struct exmap exmap;

	open_one(&exmap, 100, 3);
	ck_assert_int_eq(exmap_attach_to(&exmap, &one, 3), -ENXIO);
	ck_assert_int_eq(exmap_attach_to(&exmap, &one, UINT32_MAX), -ENXIO);
	ck_assert_int_eq(exmap_attach_to(&exmap, &one, 1), 0);
	ck_assert_uint_eq(one.number, 1);
	ck_assert_int_eq(exmap_page(&one, EXMAP_OP_ALLOC, 5), 1);

	/* Who does not give a number gets none of those. */
	ck_assert_int_eq(exmap_attach(&exmap, &other), 0);
	ck_assert_uint_eq(other.number, 0);
	ck_assert_int_eq(exmap_attach(&exmap, &third), 0);
	ck_assert_uint_eq(third.number, 2);
	ck_assert_int_eq(exmap_attach(&exmap, &other), -EBUSY);
}

TEST(attach_failure_takes_nothing)
{
	struct exmap_interface interface;
	struct exmap exmap;
	int before;
	pid_t child;

	open_one(&exmap, 100, 2);
	child = fork();
	if (!child) {
		before = held();
		if (exmap_attach(&exmap, &interface) != -EPERM ||
		    exmap_attach_to(&exmap, &interface, 1) != -EPERM || exmap.taken[0] ||
		    held() != before)
			_exit(1);
		_exit(0);
	}
	wait_child(child, 0);
}

#define THREADS 4
#define INTERFACES 2

struct crowd {
	struct exmap exmap;
	int owners[INTERFACES];	/* threads that have it */
	int attached;
	int rounds;
};

/* There are more threads than interfaces, and all want one all the time. */
static void *attach_and_detach(void *arg)
{
	struct crowd *crowd = (struct crowd *)arg;
	struct exmap_interface interface;
	int err, *owners;

	while (__atomic_load_n(&crowd->attached, __ATOMIC_RELAXED) < crowd->rounds) {
		err = exmap_attach(&crowd->exmap, &interface);
		if (err == -EBUSY) {
			sched_yield();
			continue;
		}
		ck_assert_int_eq(err, 0);
		owners = &crowd->owners[interface.number];
		ck_assert_int_eq(__atomic_add_fetch(owners, 1, __ATOMIC_SEQ_CST), 1);
		ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, interface.number), 1);
		ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, interface.number), 1);
		ck_assert_int_eq(__atomic_sub_fetch(owners, 1, __ATOMIC_SEQ_CST), 0);
		exmap_detach(&interface);
		__atomic_add_fetch(&crowd->attached, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

TEST(no_two_threads_get_the_same)
{
	struct crowd crowd = { };
	pthread_t thread[THREADS];
	int before = held();

	crowd.rounds = scaled(300);
	open_one(&crowd.exmap, 100, INTERFACES);
	for (int i = 0; i < THREADS; i++)
		ck_assert_int_eq(pthread_create(&thread[i], NULL, attach_and_detach, &crowd), 0);
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	exmap_close(&crowd.exmap);
	ck_assert_int_eq(held(), before);
}

TEST(own_fd_does_the_same)
{
	struct rlimit few = { 3, 3 };
	struct exmap_interface interface;
	struct exmap exmap;
	int before = held(), with_one, fd;

	open_attached(&exmap, &interface, 100, -1);
	ck_assert_int_eq(interface.fd, exmap.fd);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 5), 1);
	ck_assert_int_eq(exmap_own_fd(&interface), 0);
	ck_assert_int_ne(interface.fd, exmap.fd);
	with_one = held();
	/* A second one takes the first one's place. */
	ck_assert_int_eq(exmap_own_fd(&interface), 0);
	ck_assert_int_eq(held(), with_one);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 5), 1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 6), 1);
	assert_mapped(&exmap, 1);
	fd = interface.fd;
	exmap_detach(&interface);
	ck_assert_int_eq(held(), before + 2);	/* file and surface */
	/* Another's file has the number now: a second time does nothing. */
	ck_assert_int_eq(dup2(exmap.fd, fd), fd);
	exmap_detach(&interface);
	assert_ok(close(fd));

	/* Where there is none to be had it works on with the other. */
	ck_assert_int_eq(exmap_attach(&exmap, &interface), 0);
	with_one = held();
	assert_ok(prlimit(0, RLIMIT_NOFILE, &few, NULL));
	ck_assert_int_eq(exmap_own_fd(&interface), -EMFILE);
	few.rlim_cur = few.rlim_max = 1000;
	assert_ok(prlimit(0, RLIMIT_NOFILE, &few, NULL));
	ck_assert_int_eq(held(), with_one);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 6), 1);

	/* Detached too late: what has the descriptor's number by now is not the exmap's. */
	exmap_close(&exmap);
	fd = open("/dev/null", O_RDONLY);
	exmap_detach(&interface);
	assert_ok(close(fd));
	ck_assert_int_eq(held(), before);
}

/*
 * exmap_page()
 */
TEST(page_is_allocated_and_freed)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 2, -1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 7), 1);
	memset(exmap_address(&exmap, 7), 'x', EXMAP_PAGE_SIZE);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 7), 0);
	ck_assert_int_eq(*page_at(&exmap, 7), 'x');
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, SURFACE - 1), 1);
	assert_mapped(&exmap, 2);

	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 8), -ENOMEM);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, SURFACE), -EFAULT);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, WIDE), -EINVAL);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 8), -EOPNOTSUPP);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_WRITE, 7), -EOPNOTSUPP);
	ck_assert_int_eq(exmap_page(&interface, 4, 7), -EINVAL);
	assert_mapped(&exmap, 2);

	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 7), 1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 7), 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, SURFACE - 1), 1);
	assert_mapped(&exmap, 0);
}

TEST(page_is_read_and_written)
{
	struct exmap_interface interface;
	int file = file_of_letters(3);
	char byte;
	struct exmap exmap;

	open_attached(&exmap, &interface, 10, file);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 2), 1);
	ck_assert(all_bytes(page_at(&exmap, 2), 'C'));
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 2), 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 3), -ENODATA);

	memset(exmap_address(&exmap, 2), 'x', EXMAP_PAGE_SIZE);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_WRITE, 2), 1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_WRITE, 1), 0);
	ck_assert_int_eq(pread(file, &byte, 1, 3 * EXMAP_PAGE_SIZE - 1), 1);
	ck_assert_int_eq(byte, 'x');
	ck_assert_int_eq(pread(file, &byte, 1, 2 * EXMAP_PAGE_SIZE - 1), 1);
	ck_assert_int_eq(byte, 'B');
	assert_mapped(&exmap, 1);
}

/*
 * exmap_run()
 */
TEST(run_longer_than_an_entry)
{
	const uint64_t pages = 2 * EXMAP_MAX_RUN + 1;
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 10000, -1);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 100, 0), 0);
	/* What is there already does not count. */
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 100 + EXMAP_MAX_RUN), 1);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 100, pages), (long)pages - 1);
	assert_mapped(&exmap, pages);
	for (uint64_t page = 100; page < 100 + pages; page++)
		*(uint64_t *)exmap_address(&exmap, page) = page;
	for (uint64_t page = 100; page < 100 + pages; page++)
		ck_assert_uint_eq(*(uint64_t *)exmap_address(&exmap, page), page);

	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 99, 1), 0);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 100 + pages, 1), 0);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 100, pages), (long)pages);
	assert_mapped(&exmap, 0);
}

/* Pages at the ends of every batch, and nothing else. */
TEST(run_longer_than_a_batch)
{
	const uint64_t batch = BATCH * EXMAP_MAX_RUN;
	const uint64_t there[] = { 1, batch - 1, batch, batch + 1, SURFACE - 1 };
	struct exmap_interface interface;
	struct exmap exmap;

	ck_assert_uint_gt(SURFACE, batch + EXMAP_MAX_RUN);
	open_attached(&exmap, &interface, 10, -1);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, there, 5), 5);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 1, SURFACE - 2), 4);
	assert_mapped(&exmap, 1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, SURFACE - 1), 1);
}

TEST(run_that_leaves_the_surface)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 10000, -1);
	/* The first entry can be done, and is. */
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, SURFACE - EXMAP_MAX_RUN,
				   EXMAP_MAX_RUN + 1), -EFAULT);
	assert_mapped(&exmap, EXMAP_MAX_RUN);
	/* Of these none, and no page at the beginning of the surface. */
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, UINT64_MAX - 10, 20), -EINVAL);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, UINT64_MAX - EXMAP_MAX_RUN + 1,
				   EXMAP_MAX_RUN + 1), -EINVAL);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, WIDE, 1), -EINVAL);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 0, UINT64_MAX), -EINVAL);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, WIDE - 1, 2), -EFAULT);
	assert_mapped(&exmap, EXMAP_MAX_RUN);
}

TEST(run_is_read_and_written)
{
	struct exmap_interface interface;
	int file = file_of_letters(26);
	struct exmap exmap;
	char byte;

	open_attached(&exmap, &interface, 100, file);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_READ, 3, 20), 20);
	for (int page = 3; page < 23; page++) {
		ck_assert(all_bytes(page_at(&exmap, page), 'A' + page));
		memset(exmap_address(&exmap, page), 'a' + page, EXMAP_PAGE_SIZE);
	}
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_WRITE, 0, 26), 20);
	for (int page = 0; page < 26; page++) {
		ck_assert_int_eq(pread(file, &byte, 1, page * EXMAP_PAGE_SIZE), 1);
		ck_assert_int_eq(byte, (page < 3 || page >= 23 ? 'A' : 'a') + page);
	}
}

/*
 * exmap_list()
 */
#define LIST (2 * BATCH + 100)

/* Every other page: no two of them are neighbours. */
static void fill_list(uint64_t *page)
{
	for (unsigned int i = 0; i < LIST; i++)
		page[i] = 1000 + 2 * i;
}

TEST(list_longer_than_a_batch)
{
	struct exmap_interface interface;
	uint64_t page[LIST];
	struct exmap exmap;

	fill_list(page);
	open_attached(&exmap, &interface, LIST, -1);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, NULL, 0), 0);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, page, BATCH), BATCH);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, page, LIST), LIST - BATCH);
	assert_mapped(&exmap, LIST);
	for (unsigned int i = 0; i < LIST; i++)
		*(uint64_t *)exmap_address(&exmap, page[i]) = i;
	for (unsigned int i = 0; i < LIST; i++)
		ck_assert_uint_eq(*(uint64_t *)exmap_address(&exmap, page[i]), i);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_FREE, page, LIST), LIST);
	assert_mapped(&exmap, 0);
}

/* One that fails, in the first batch, the second, or as the last of all. */
static void list_with(unsigned int where, uint64_t number, int err)
{
	struct exmap_interface interface;
	uint64_t page[LIST], good;
	struct exmap exmap;

	fill_list(page);
	good = page[where];
	page[where] = number;
	open_attached(&exmap, &interface, LIST, -1);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, page, LIST), -err);
	/* All others are there, and nothing else is. */
	assert_mapped(&exmap, LIST - 1);
	page[where] = good;
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_FREE, page, LIST), LIST - 1);
	exmap_detach(&interface);
	exmap_close(&exmap);
}

TEST(list_with_one_that_fails)
{
	static const unsigned int where[] = { 0, 100, BATCH - 1, BATCH, BATCH + 100, LIST - 1 };

	for (size_t i = 0; i < sizeof(where) / sizeof(*where); i++) {
		list_with(where[i], SURFACE, EFAULT);
		list_with(where[i], WIDE, EINVAL);
		list_with(where[i], UINT64_MAX, EINVAL);
	}
}

TEST(list_without_a_free_page)
{
	struct exmap_interface interface;
	uint64_t page[LIST];
	struct exmap exmap;

	fill_list(page);
	open_attached(&exmap, &interface, BATCH + 50, -1);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, page, LIST), -ENOMEM);
	assert_mapped(&exmap, BATCH + 50);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_FREE, page, LIST), BATCH + 50);
}

TEST(list_is_read)
{
	const uint64_t page[] = { 20, 3, 25, 4 };
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 10, file_of_letters(26));
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_READ, page, 4), 4);
	for (int i = 0; i < 4; i++)
		ck_assert(all_bytes(page_at(&exmap, page[i]), 'A' + page[i]));
	assert_mapped(&exmap, 4);
}

/* Nothing can be done by who may not, or without a surface: that is no answer, but an errno. */
TEST(refusals_reach_the_caller)
{
	const uint64_t page[] = { 1, 3 };
	struct exmap_interface interface;
	struct exmap exmap;
	pid_t child;

	open_attached(&exmap, &interface, 10, -1);
	child = fork();
	if (!child) {
		/* It inherits no entries: here are some. */
		interface.user = (struct exmap_user_interface *)calloc(1, EXMAP_PAGE_SIZE);
		_exit(exmap_page(&interface, EXMAP_OP_ALLOC, 1) != -EPERM ||
		      exmap_run(&interface, EXMAP_OP_ALLOC, 1, 10000) != -EPERM ||
		      exmap_list(&interface, EXMAP_OP_ALLOC, page, 2) != -EPERM);
	}
	wait_child(child, 0);
	assert_mapped(&exmap, 0);

	assert_ok(munmap(exmap.surface, SURFACE * EXMAP_PAGE_SIZE));
	exmap.surface = NULL;
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 1), -EPROTO);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 1, 10000), -EPROTO);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, page, 2), -EPROTO);
}

/*
 * The batch
 */
TEST(batch_has_512_entries)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 2 * BATCH, -1);
	for (int i = 0; i < BATCH; i++)
		ck_assert_int_eq(exmap_batch_add(&interface, 3 * i, 2), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 3 * BATCH, 2), -ENOSPC);
	ck_assert_uint_eq(interface.nr, BATCH);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 0);
	for (int i = 0; i < BATCH; i++)
		ck_assert_int_eq(exmap_batch_answer(&interface, i), 2);
	assert_mapped(&exmap, 2 * BATCH);

	/* The first after that is the first of the next batch. */
	ck_assert_int_eq(exmap_batch_add(&interface, 0, 2), 0);
	ck_assert_uint_eq(interface.nr, 1);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_FREE, 0), 0);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), 2);
	assert_mapped(&exmap, 2 * BATCH - 2);
}

TEST(batch_refuses_what_does_not_fit)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 5000, -1);
	ck_assert_int_eq(exmap_batch_add(&interface, 0, EXMAP_MAX_RUN + 1), -EINVAL);
	ck_assert_int_eq(exmap_batch_add(&interface, 0, UINT64_MAX), -EINVAL);
	ck_assert_int_eq(exmap_batch_add(&interface, WIDE, 1), -EINVAL);
	ck_assert_uint_eq(interface.nr, 0);
	ck_assert_int_eq(exmap_batch_add(&interface, WIDE - 1, 1), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 0, EXMAP_MAX_RUN), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 5, 0), 0);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 1);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), -EFAULT);
	ck_assert_int_eq(exmap_batch_answer(&interface, 1), EXMAP_MAX_RUN);
	ck_assert_int_eq(exmap_batch_answer(&interface, 2), 0);
}

TEST(batch_answers_in_order)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 100, -1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 12), 1);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, SURFACE, 1), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 20, 3), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, SURFACE - 1, 2), 0);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 2);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), 4);
	ck_assert_int_eq(exmap_batch_answer(&interface, 1), -EFAULT);
	ck_assert_int_eq(exmap_batch_answer(&interface, 2), 3);
	ck_assert_int_eq(exmap_batch_answer(&interface, 3), -EFAULT);
	assert_mapped(&exmap, 8);

	/* Where the requests were there are answers now: not to be carried out. */
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_FREE, 0), -EINVAL);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), 4);
	assert_mapped(&exmap, 8);
}

/* The answer to an entry of which some pages could be written, and then none. */
TEST(batch_answer_is_the_error)
{
	struct rlimit two_pages = { 2 * EXMAP_PAGE_SIZE, 2 * EXMAP_PAGE_SIZE };
	struct exmap_interface interface;
	int file = file_of_letters(4);
	struct exmap exmap;

	open_attached(&exmap, &interface, 10, file);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_READ, 0, 4), 4);
	signal(SIGXFSZ, SIG_IGN);
	assert_ok(setrlimit(RLIMIT_FSIZE, &two_pages));
	ck_assert_int_eq(exmap_batch_add(&interface, 0, 4), 0);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_WRITE, 0), 1);
	ck_assert_int_eq(interface.user->iov[0].pages, 2);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), -EFBIG);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_WRITE, 0, 4), -EFBIG);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_WRITE, 0, 2), 2);
}

TEST(batch_is_forgotten)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 100, -1);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 0);
	exmap_batch_clear(&interface);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	exmap_batch_clear(&interface);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 0);
	assert_mapped(&exmap, 0);
	/* So do the simple calls: none of them carries out more than it was told. */
	exmap_batch_clear(&interface);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 1), 1);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 2, 2), 2);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, (const uint64_t[]){ 5 }, 1), 1);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 0);
	assert_mapped(&exmap, 4);
}

TEST(batch_flags)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 100, -1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 10), 1);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 9, 5), 0);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 2), -EINVAL);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, (uint64_t)1 << 32), -EINVAL);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, EXMAP_ALLOC_PROBE), 0);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), 0);
	ck_assert_int_eq(exmap_batch_answer(&interface, 1), 4);
}

#define assert_deferred(exmap, n) assert_fdinfo((exmap)->fd, "pages-deferred", n)

TEST(flush_can_be_put_off)
{
	const uint64_t list[] = { 50, 60 };
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 100, -1);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 0, 100), 100);
	exmap_defer(&interface, 1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 10), 1);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 20, 10), 10);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_FREE, list, 2), 2);
	assert_deferred(&exmap, 13);
	/* It is no flag of ALLOC. */
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 1000), 1);
	exmap_defer(&interface, 0);
	ck_assert_int_eq(exmap_flush(&interface), 0);
	assert_deferred(&exmap, 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 11), 1);
	assert_deferred(&exmap, 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 0, 5), 0);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_FREE, EXMAP_FREE_DEFER), 0);
	assert_deferred(&exmap, 5);
	munmap(exmap.surface, exmap.surface_pages * EXMAP_PAGE_SIZE);
	ck_assert_int_eq(exmap_flush(&interface), -EPROTO);
}

TEST(batch_can_be_run_again_after_enomem)
{
	struct exmap_interface one, other;
	struct exmap exmap;

	open_one(&exmap, 100, 2);
	ck_assert_int_eq(exmap_attach(&exmap, &one), 0);
	ck_assert_int_eq(exmap_attach(&exmap, &other), 0);
	ck_assert_int_eq(exmap_run(&other, EXMAP_OP_ALLOC, 1000, 100), 100);
	ck_assert_int_eq(exmap_batch_add(&one, 10, 5), 0);
	ck_assert_int_eq(exmap_batch_add(&one, 20, 1), 0);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(exmap_batch_run(&one, EXMAP_OP_ALLOC, 0), -ENOMEM);
	ck_assert_uint_eq(one.nr, 2);
	assert_mapped(&exmap, 100);
	/* There is room in it, too. */
	ck_assert_int_eq(exmap_batch_add(&one, 30, 1), 0);
	ck_assert_int_eq(exmap_run(&other, EXMAP_OP_FREE, 1000, 100), 100);
	ck_assert_int_eq(exmap_batch_run(&one, EXMAP_OP_ALLOC, 0), 0);
	ck_assert_int_eq(exmap_batch_answer(&one, 0), 5);
	ck_assert_int_eq(exmap_batch_answer(&one, 1), 1);
	ck_assert_int_eq(exmap_batch_answer(&one, 2), 1);
	assert_mapped(&exmap, 7);
}

/*
 * fork()
 */
static struct {
	struct exmap exmap;
	struct exmap_interface interface;
	char *place[2];		/* where surface and interface are */
	int before;		/* what held() was */
	pid_t parent;
} forked;

static void *map_over(void *where)
{
	return mmap(where, EXMAP_PAGE_SIZE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

/* As destructors and atexit handlers do, in every process in which they run. */
static void close_forked(void)
{
	exmap_detach(&forked.interface);
	exmap_close(&forked.exmap);
	if (getpid() != forked.parent) {
		ck_assert_int_eq(held(), forked.before);
		ck_assert_int_eq(*forked.place[0], 'S');
		ck_assert_int_eq(*forked.place[1], 'I');
		/* Once more: the descriptors may be others' by now. */
		ck_assert_int_ge(open("/dev/null", O_RDONLY), 0);
		ck_assert_int_ge(open("/dev/null", O_RDONLY), 0);
		exmap_detach(&forked.interface);
		exmap_close(&forked.exmap);
		ck_assert_int_eq(held(), forked.before + 2);
		_exit(0);
	}
}

TEST(close_in_a_child_closes_descriptors_only)
{
	pid_t pid;

	forked.parent = getpid();
	forked.before = held();
	open_attached(&forked.exmap, &forked.interface, 10, -1);
	ck_assert_int_eq(exmap_own_fd(&forked.interface), 0);
	ck_assert_int_eq(exmap_page(&forked.interface, EXMAP_OP_ALLOC, 0), 1);
	forked.place[0] = forked.exmap.surface;
	forked.place[1] = (char *)forked.interface.user;
	*forked.place[0] = 'P';
	ck_assert_int_eq(atexit(close_forked), 0);

	pid = fork();
	assert_ok(pid);
	if (!pid) {
		/* Something of the child's comes to be where they were in the parent. */
		ck_assert_ptr_eq(map_over(forked.place[0]), forked.place[0]);
		ck_assert_ptr_eq(map_over(forked.place[1]), forked.place[1]);
		*forked.place[0] = 'S';
		*forked.place[1] = 'I';
		exit(1);
	}
	wait_child(pid, 0);

	/* The parent has all of it. */
	ck_assert_int_eq(*forked.place[0], 'P');
	ck_assert_int_eq(exmap_page(&forked.interface, EXMAP_OP_FREE, 0), 1);
	close_forked();
	ck_assert_int_eq(held(), forked.before);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests exmap_user.h, what it does and what it refuses.");
}
