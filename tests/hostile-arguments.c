// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of arguments: wild ones of ioctls, entries that another thread changes during a call,
 * files that threads mix up, interfaces and pages at and above their limits.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "hostile.h"

/*
 * Wild arguments
 */
static uint64_t random64(void)
{
	return (uint64_t)random() << 42 ^ (uint64_t)random() << 21 ^ random();
}

/* A number, mostly at the edge of what is valid. */
static uint64_t wild_number(void)
{
	static const uint64_t numbers[] = {
		0, 1, 2, 3, 63, 64, 255, 256, 511, 512, 513, 1023, 1024, 1025, 4094, 4095, 4096,
		65535, INT32_MAX, 1U << 31, UINT32_MAX, 1UL << 35, 1UL << 52, INT64_MAX,
		1UL << 63, UINT64_MAX,
	};

	if (random() % 8 == 0)
		return random64();
	return numbers[random() % (sizeof(numbers) / sizeof(numbers[0]))];
}

/*
 * A pointer: to a struct with wild fields, to one that ends beyond @end and so beyond readable
 * memory, to somewhere on the surface, or to an address that no program has.
 */
static void *wild_pointer(struct exmap *ex, char *end)
{
	static const uint64_t bad[] = {
		0, 1, PAGE - 1, 0x7ffffffff000, 0x7fffffffefff, 0x800000000000, 1UL << 63,
		0xffff888000000000, 0xffffffff81000000, UINT64_MAX - 7, UINT64_MAX,
	};
	uint64_t *fields = (uint64_t *)(end - 64 + random() % 24);

	switch (random() % 8) {
	case 0:
		return (void *)bad[random() % (sizeof(bad) / sizeof(bad[0]))];
	case 1:
		return end - random() % 32;
	case 2:
		return where(ex, random() % PAGES) + random() % PAGE;
	}
	for (int i = 0; i < 4; i++)
		fields[i] = wild_number();
	/* A valid or nearly valid ACTION: interface and number of entries, opcode, flags. */
	if (random() % 2) {
		fields[0] = random() % 5 | random() % 514 << 16 | (random() % 5) << 32;
		fields[1] = random() % 3;
	}
	return fields;
}

/* Fill entries of each interface: some valid, some wild. */
static void wild_entries(struct exmap *ex)
{
	for (int i = 0; i < 3; i++)
		for (int n = 0; n < 512; n += 1 + random() % 16)
			entry(ex, i, n,
			      random() % 2 ? wild_number() >> 12 : (uint64_t)random() % PAGES,
			      random() % 2 ? random() % 32 : random() % 4096);
}

/* Make 300 ioctls, and look at the exmap afterwards. */
static void wild_calls(int file)
{
	static const unsigned int known[] = {
		EXMAP_IOCTL_SETUP, EXMAP_IOCTL_ACTION, EXMAP_IOCTL_CLONE, EXMAP_IOCTL_STATS,
	};
	struct exmap *ex = stamped_exmap(-1);
	char *end = (char *)elsewhere(2 * PAGE) + PAGE;
	int fds[] = { ex->fd, exmap_open(), exmap_open(), exmap_open(), file, -1, -2, 1 << 30 };

	assert_ok(mprotect(end - PAGE, PAGE, PROT_READ | PROT_WRITE));
	for (int i = 0; i < 300; i++) {
		unsigned int cmd = known[random() % 4];
		int fd = fds[random() % 4];
		char *pointer = wild_pointer(ex, end);

		if (random() % 8 == 0)
			cmd = _IOC(random() % 4, 'k', random() % 8, random() % 4096);
		if (cmd == EXMAP_IOCTL_CLONE)
			pointer = (char *)(long)fds[random() % 8];
		/* The backing file must be one of @fds: no other file may be overwritten. */
		else if (cmd == EXMAP_IOCTL_SETUP && pointer >= end - PAGE && pointer <= end - 4)
			*(int *)pointer = fds[random() % 8];
		if (random() % 4 == 0)
			wild_entries(ex);
		int ret = ioctl(fd, cmd, pointer);

		ck_assert_int_ge(ret, -1);
		ck_assert_int_le(ret, cmd == EXMAP_IOCTL_ACTION ? 512 : 0);
		ck_assert_msg(ret >= 0 || errno == EINVAL || errno == EFAULT || errno == EBADF ||
			      errno == ENOTTY || errno == EBUSY || errno == ENOMEM ||
			      errno == EPROTO || errno == EOPNOTSUPP,
			      "ioctl %#x: %s", cmd, strerror(errno));
	}
	assert_whole_pool(ex, POOL);
}

/* Wild arguments get an error that the man pages name, and no page is lost. */
TEST(ioctls_with_wild_arguments)
{
	become_hostile();
	int file = sparse_file();

	for (int round = scaled(60); round; round--) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid) {
			srandom(round);
			wild_calls(file);
			_exit(0);
		}
		wait_child(pid, 0);
	}
}

static bool ioctl_exists(unsigned int cmd)
{
	static const unsigned int known[] = {
		EXMAP_IOCTL_SETUP, EXMAP_IOCTL_ACTION, EXMAP_IOCTL_CLONE, EXMAP_IOCTL_STATS,
		EXMAP_IOCTL_RESIZE, EXMAP_IOCTL_TRIM, EXMAP_IOCTL_QUARANTINE,
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (cmd == known[i])
			return true;
	return false;
}

/* Every number, direction and size of an ioctl but those that exist is ENOTTY. */
TEST(ioctls_of_every_number)
{
	become_hostile();
	struct exmap *ex = stamped_exmap(-1);

	for (int nr = 0; nr < 256; nr++)
		for (int direction = 0; direction < 4; direction++)
			for (int size = 0; size < 64; size++) {
				unsigned int cmd = _IOC(direction, 'k', nr, size);

				if (!ioctl_exists(cmd))
					assert_errno(ioctl(ex->fd, cmd, ex->interface[0]), ENOTTY);
			}
	assert_fate(ex, KEEPS);
}

/* A thread that uses, sets up, clones, maps, closes and reopens files that other threads use. */
struct mixer {
	int *fds;
	unsigned int seed;
	pthread_t thread;
};

/* Do one of these with the file *@fd, then ALLOC. */
static void mix(int *fd, int other, int what)
{
	struct exmap_action_params params = { .iov_len = 1, .opcode = EXMAP_OP_ALLOC };
	void *mapping = MAP_FAILED;

	switch (what) {
	case 0:
		exmap_setup(*fd, 2, 10, 0);
		break;
	case 1:
		exmap_clone(*fd, other);
		break;
	case 2:
		mapping = map_surface(*fd, MIB);
		break;
	case 3:
		mapping = map_interface(*fd, 0);
		if (mapping != MAP_FAILED)
			*(volatile uint64_t *)mapping = 10UL << 52;
		break;
	case 4:
		close(*fd);
		*fd = open("/dev/exmap", O_RDWR | O_CLOEXEC);
		break;
	}
	ioctl(*fd, EXMAP_IOCTL_ACTION, &params);
	if (mapping != MAP_FAILED)
		munmap(mapping, what == 2 ? MIB : PAGE);
}

static void *mixer_thread(void *arg)
{
	struct mixer *m = arg;

	for (int i = scaled(700); i; i--)
		mix(&m->fds[rand_r(&m->seed) % 4], m->fds[rand_r(&m->seed) % 4],
		    rand_r(&m->seed) % 6);
	return NULL;
}

/* After four such threads, closing all files gives all memory back. */
TEST(files_mixed_up_by_threads)
{
	struct mixer m[4];
	int fds[4], first;

	become_hostile();
	for (int i = 0; i < 4; i++)
		fds[i] = exmap_open();
	first = fds[0];
	for (int i = 0; i < 4; i++) {
		m[i] = (struct mixer){ .fds = fds, .seed = i };
		ck_assert(!pthread_create(&m[i].thread, NULL, mixer_thread, &m[i]));
	}
	for (int i = 0; i < 4; i++)
		pthread_join(m[i].thread, NULL);
	/* Two threads that reopened the same file have lost a descriptor: close a range. */
	assert_ok(close_range(first, ~0U, 0));
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 0);
}

/*
 * Entries that change during a call
 */

/* A thread that changes the entries of interface 0. */
struct changer {
	struct exmap *ex;
	atomic_bool stop;
	pthread_t thread;
};

/* Valid and invalid in turns, so fast that a call that read an entry twice would see both. */
static void *changer_thread(void *arg)
{
	static const struct { uint64_t page; unsigned int len; } entries[] = {
		{ PAGES - 1, 1 }, { PAGES - 1, 4095 }, { 0, 1 }, { PAGES, 30 },
		{ 0, 0 }, { (1UL << 52) - 1, 1 }, { 600, 2 }, { PAGES + 500, 1 },
	};
	struct changer *c = arg;

	for (unsigned int i = 0; !atomic_load(&c->stop); i = (i + 1) % 8)
		for (int n = 0; n < 64; n++)
			entry(c->ex, 0, n, entries[i].page, entries[i].len);
	return NULL;
}

/*
 * Whatever such threads do, each call returns a valid count, and maps pages on the surface only.
 */
TEST(entries_changed_by_another_thread)
{
	become_hostile();
	struct exmap *ex = fenced_exmap(PAGES, POOL, sparse_file());
	struct changer c[2];

	for (int i = 0; i < 2; i++) {
		c[i] = (struct changer){ .ex = ex };
		ck_assert(!pthread_create(&c[i].thread, NULL, changer_thread, &c[i]));
	}
	for (int round = scaled(1000); round; round--) {
		for (int opcode = EXMAP_OP_READ; opcode <= EXMAP_OP_WRITE; opcode++) {
			int ret = action(ex->fd, 0, opcode, 64, round % 2);

			ck_assert_msg(ret >= 0 && ret <= 64, "opcode %d returned %d", opcode, ret);
			ck_assert_uint_le(stats(ex).alloc_count, POOL);
		}
		if (round % 64 == 0)
			assert_fence(ex);
	}
	for (int i = 0; i < 2; i++) {
		atomic_store(&c[i].stop, true);
		pthread_join(c[i].thread, NULL);
	}
	assert_whole_pool(ex, POOL);
}

/*
 * Interfaces and pages out of range
 */

/*
 * After SETUP with @nr interfaces, or before SETUP if @nr is 0: each way to name an interface
 * accepts those below @nr, and refuses all others.
 */
static void assert_interfaces(int fd, unsigned int nr)
{
	static const unsigned int edges[] = {
		0, 1, 2, 3, 254, 255, 256, 257, 1022, 1023, 1024, 1025, 4096, 65535,
	};
	static char memory[PAGE] __attribute__((aligned(4096)));

	for (size_t i = 0; i < sizeof(edges) / sizeof(edges[0]); i++) {
		unsigned int edge = edges[i];
		void *mapping = map_interface(fd, edge);

		if (edge < nr) {
			assert_ok(mapping);
			assert_ok(munmap(mapping, PAGE));
			assert_errno(action(fd, edge, EXMAP_OP_ALLOC, 1, 0), EPROTO);
		} else {
			ck_assert(mapping == MAP_FAILED && errno == ENXIO);
			assert_errno(action(fd, edge, EXMAP_OP_ALLOC, 1, 0), nr ? EINVAL : EBADF);
		}
		/* In the offset the opcode is bits 8 to 15: the number's higher bits follow it. */
		edge = edge > 255 ? edge << 16 : edge;
		assert_errno(pread(fd, memory, PAGE, EXMAP_OP_ALLOC << 8 | edge),
			     !nr ? EBADF : edge < nr ? EPROTO : EINVAL);
	}
	for (uint64_t far = 1UL << 16; far < 1UL << 48; far <<= 1)
		assert_errno(map_interface(fd, far), ENXIO);
}

/* Interfaces are checked against the number that SETUP was given. */
TEST(interfaces_at_and_above_the_limit)
{
	static const int limits[] = { 1, 2, 255, 256, 257, 1023, 1024 };

	become_hostile();
	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		int fd = exmap_open();

		assert_interfaces(fd, 0);
		assert_ok(exmap_setup(fd, limits[i], 10, 0));
		assert_interfaces(fd, limits[i]);
		close(fd);
	}
}

/* Pages are checked against a surface that is longer than the longest entry, and no power of 2. */
TEST(pages_at_and_above_the_limit)
{
	enum { SIZE = 4096 + 16 };
	static const uint64_t pages[] = {
		0, 1, 16, 17, 18, SIZE - 4095, SIZE - 512, SIZE - 17, SIZE - 16, SIZE - 1, SIZE,
		SIZE + 1, 4608, 1UL << 36, (1UL << 36) - 1, 1UL << 51, (1UL << 52) - 4095,
		(1UL << 52) - 2, (1UL << 52) - 1,
	};
	static const unsigned int lens[] = { 0, 1, 2, 16, 17, 511, 512, 513, 4094, 4095 };
	static const int opcodes[] = { EXMAP_OP_ALLOC, EXMAP_OP_WRITE, EXMAP_OP_FREE,
				       EXMAP_OP_READ, EXMAP_OP_FREE };

	become_hostile();
	struct exmap *ex = fenced_exmap(SIZE, SIZE, sparse_file());

	for (size_t p = 0; p < sizeof(pages) / sizeof(pages[0]); p++)
		for (size_t l = 0; l < sizeof(lens) / sizeof(lens[0]); l++)
			for (int o = 0; o < 5; o++) {
				bool fits = pages[p] + lens[l] <= SIZE;
				int ret = run(ex, 0, opcodes[o], pages[p], lens[l]);

				/* READ does not end early: WRITE has made the file long enough. */
				if (fits)
					ck_assert_int_eq(ret, lens[l]);
				else
					ck_assert_int_eq(ret, -EFAULT);
			}
	assert_whole_pool(ex, SIZE);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of arguments: wild, changing, or out of range.");
}
