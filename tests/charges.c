// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of charges: how much of its kernel memory an exmap charges to RLIMIT_MEMLOCK, VmPin and
 * the resident set, to whom, and what fails above the limit.
 */
#include "common.h"
#include "rss.h"

/* Charges in pages, as in exmap(4). */
enum { PER_INTERFACE = 4, PER_QUARANTINE = 3, FAULTS = 3 };

/* What is charged to this process, in pages. */
static long pinned_pages(void)
{
	return kib_of("/proc/self/status", "VmPin:") / 4;
}

/* Make exmap allocate an interface, by a call without entries. Returns 0 or the errno. */
static int use(int fd, int interface)
{
	return action(fd, interface, EXMAP_OP_ALLOC, 0, 0) ? errno : 0;
}

/* Open a file and set it up with a pool of @pages. */
static int set_up(int interfaces, size_t pages, uint64_t flags)
{
	int fd = exmap_open();

	assert_ok(exmap_setup(fd, interfaces, pages, flags));
	return fd;
}

/* How many pages SETUP charges. Closing the file gives them back. */
static long setup_charge(int interfaces, size_t pages, uint64_t flags)
{
	long before = pinned_pages(), charge;
	int fd = set_up(interfaces, pages, flags);

	charge = pinned_pages() - before;
	close(fd);
	ck_assert_int_eq(pinned_pages(), before);
	return charge;
}

/* How many pages SETUP charges for the array of interfaces. */
static long array_charge(int interfaces)
{
	return setup_charge(interfaces, 1, 0) - 1;
}

/* Become a user without privileges who may lock @pages. */
static void become_limited(long pages)
{
	set_memlock(pages * PAGE);
	drop_privileges();
}

/* This user can still lock exactly @pages. */
static void assert_memlock_left(long pages)
{
	long array = array_charge(1);
	int fd = exmap_open();

	assert_errno(exmap_setup(fd, 1, pages - array + 1, 0), ENOMEM);
	assert_ok(exmap_setup(fd, 1, pages - array, 0));
	close(fd);
}

/* SETUP and the first use of an interface charge what exmap(4) says, to the page. */
TEST(charges_of_each_kind)
{
	long before;
	int fd;

	ck_assert_int_eq(setup_charge(1, 1000, 0), 1000 + 1);
	ck_assert_int_eq(setup_charge(1, 1000, EXMAP_PAGEFAULT_ALLOC), 1000 + 1 + FAULTS);
	/* Each interface has a cache line or more in the array. */
	ck_assert_int_ge(array_charge(EXMAP_MAX_INTERFACES), EXMAP_MAX_INTERFACES * 64 / PAGE);

	fd = set_up(2, 1000, 0);
	before = pinned_pages();
	ck_assert_int_eq(use(fd, 1), 0);
	ck_assert_int_eq(pinned_pages() - before, PER_INTERFACE);
	ck_assert_int_eq(use(fd, 1), 0);
	ck_assert_int_eq(pinned_pages() - before, PER_INTERFACE);
	assert_ok(map_interface(fd, 0));
	ck_assert_int_eq(pinned_pages() - before, 2 * PER_INTERFACE);
}

/* The first deferred FREE of an interface charges its quarantine. Later ones charge nothing. */
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

/* A quarantine of another size is charged for its bundles, addresses and index. */
TEST(charges_of_a_large_quarantine)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	long before = pinned_pages();

	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_QUARANTINE, EXMAP_MAX_QUARANTINE));
	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	ck_assert_int_eq(defer(ex, 0, 0, 1), 1);
	/* For each page a pointer and an address, and four bytes of index. */
	ck_assert_int_ge(pinned_pages() - before, EXMAP_MAX_QUARANTINE * 20 / PAGE);
	ck_assert_int_le(pinned_pages() - before, EXMAP_MAX_QUARANTINE * 20 / PAGE + 1);
}

/* Each call that would make an interface above the limit fails. Others go on working. */
TEST(interface_above_memlock_is_enomem)
{
	long array = array_charge(3);
	struct exmap *ex;
	int fd;

	become_limited(10 + array + 2 * PER_INTERFACE - 1 + 1 + array);
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
		/* ALLOC at interface 1, by pread on the exmap's file. */
		assert_errno(pread(ex->fd, ex->surface, PAGE, EXMAP_OP_ALLOC << 8 | 1), ENOMEM);
		ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
		ck_assert_int_eq(release(ex, 0, 0, 10), 10);
	}
	/* An interface can be made as soon as the limit has room. */
	close(fd);
	ck_assert_int_eq(use(ex->fd, 1), 0);
	ck_assert_int_eq(use(ex->fd, 2), ENOMEM);
}

/* If the limit has no room for a quarantine, each deferred FREE flushes at once. */
TEST(quarantine_above_memlock_flushes_at_once)
{
	struct exmap *ex;

	become_limited(10 + array_charge(1) + PER_INTERFACE + PER_QUARANTINE - 1);
	ex = exmap_new(MIB, 10, 1);
	for (int round = 1; round <= 3; round++) {
		ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
		ck_assert_int_eq(defer(ex, 0, 0, 10), 10);
		assert_fdinfo(ex->fd, "pages-deferred", 0);
		assert_fdinfo(ex->fd, "flushes", round);
	}
	assert_errno(exmap_setup(exmap_open(), 1, 2, 0), ENOMEM);
	close(ex->fd);
	assert_ok(munmap(ex->interface[0], PAGE));
	assert_ok(munmap(ex->surface, ex->size));
	/* With room for it, FREE defers the flush. */
	ex = exmap_new(MIB, 9, 1);
	ck_assert_int_eq(alloc(ex, 0, 0, 9), 9);
	ck_assert_int_eq(defer(ex, 0, 0, 9), 9);
	assert_fdinfo(ex->fd, "pages-deferred", 9);
}

/*
 * Make @most exmaps with pools of one page, and use all their interfaces. If @limited, a call must
 * fail with ENOMEM before that. Returns how many pages the interfaces have.
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

/* An ordinary user gets interfaces up to the limit, sees their memory, and can give it all back. */
TEST(interfaces_of_many_exmaps_stay_within_memlock)
{
	enum { LIMIT = 40 * MIB / PAGE, MOST = 20 };
	long before, available, pages;
	int fds[MOST + 1];

	become_limited(LIMIT);
	for (int round = 0; round < 2; round++) {
		before = rss();
		available = available_kib();
		pages = hoard(fds, MOST, true);
		/* Pools and arrays take the rest. */
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

/* Get more interfaces than the limit has room for. They are counted, though without a limit. */
static void hoard_beyond_memlock(void)
{
	enum { MOST = 2, PAGES = MOST * EXMAP_MAX_INTERFACES * PER_INTERFACE };
	long before = rss();
	int fds[MOST + 1];

	ck_assert_int_eq(hoard(fds, MOST, false), PAGES);
	ck_assert_int_ge(rss() - before, PAGES * 4 - rss_slack());
	ck_assert_int_ge(pinned_pages(), PAGES);
	close_all(fds);
	ck_assert_int_le(labs(rss() - before), rss_slack());
	ck_assert_int_eq(pinned_pages(), 0);
}

/* The limit does not hold with CAP_IPC_LOCK. */
TEST(interfaces_with_cap_ipc_lock_have_no_limit)
{
	set_memlock(8 * MIB);
	hoard_beyond_memlock();
}

#define MEMLOCK "/sys/module/exmap/parameters/memlock"

/* The file of the module parameter memlock. */
static int parameter;

/* Root opens it, so that this process can write to it after it is no longer root. */
static void open_parameter(void)
{
	parameter = open(MEMLOCK, O_WRONLY | O_CLOEXEC);
	assert_ok(parameter);
}

static void set_parameter(const char *value)
{
	ck_assert_int_eq(pwrite(parameter, value, 1, 0), 1);
}

/* The limit holds for nobody if the administrator sets the module parameter memlock to N. */
TEST(interfaces_without_memlock_have_no_limit, .needs = MEMLOCK)
{
	int status;
	pid_t pid;

	open_parameter();
	set_parameter("N");
	pid = fork();
	if (!pid) {
		become_limited(8 * MIB / PAGE);
		hoard_beyond_memlock();
		_exit(0);
	}
	waitpid(pid, &status, 0);
	set_parameter("Y");
	ck_assert_int_eq(status, 0);
}

/* Be another user without privileges for now, or root again. */
static void pretend(bool nobody)
{
	assert_ok(setresuid(nobody ? 65534 : 0, nobody ? 65534 : 0, 0));
}

/*
 * Charges are given back to the user who paid, even if user, capability, limit or module parameter
 * have changed since.
 */
TEST(charges_are_given_back_to_who_paid, .needs = MEMLOCK)
{
	enum { LIMIT = 1000 };
	long before = rss();
	int fds[3], err;

	open_parameter();
	set_memlock(LIMIT * PAGE);
	for (int round = 0; round < 4; round++) {
		/* Two users take turns to pay for pools and interfaces. */
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

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of what an exmap charges to its user and its process.");
}
