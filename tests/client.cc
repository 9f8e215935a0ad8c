// SPDX-License-Identifier: GPL-2.0
/*
 * A program in the style of those that were written for the published module. It includes only
 * linux/exmap.h, names the types of that header, leaves SETUP's flags uninitialized, and treats
 * only results below 0 as failures. It must compile without a warning as C++17 to C++23.
 */
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/exmap.h>

using Page = unsigned char[4096];

static void check(bool good, const char *what)
{
	if (good)
		return;
	std::fprintf(stderr, "%s (%s)\n", what, std::strerror(errno));
	std::exit(EXIT_FAILURE);
}

#define CHECK(condition) check(condition, #condition)

/* ACTION as vmcache calls it: the parameter has the type of the opcodes. */
static int action(int fd, exmap_opcode op, uint16_t interface, uint16_t len)
{
#if __cplusplus >= 202002L
	struct exmap_action_params params = {
		.interface = interface, .iov_len = len, .opcode = static_cast<uint16_t>(op),
		.flags = 0,
	};
#else
	struct exmap_action_params params{};

	params.interface = interface;
	params.iov_len = len;
	params.opcode = static_cast<uint16_t>(op);
#endif
	return ioctl(fd, EXMAP_IOCTL_ACTION, &params);
}

/* SETUP as LeanStore calls it, which leaves the flags as they are on its stack. */
static int setup(int fd, int backing, int interfaces, size_t pages)
{
	struct exmap_ioctl_setup buffer;

	/* LeanStore's stack held this. */
	buffer.flags = 0x383131ffffffdc38;
	buffer.fd = backing;
	buffer.max_interfaces = interfaces;
	buffer.buffer_size = pages;
	return ioctl(fd, EXMAP_IOCTL_SETUP, &buffer);
}

/* SETUP as a program calls it that sets the flags, with a variable of their type. */
static int setup_flags(int fd, int interfaces, size_t pages, exmap_flags flags)
{
	struct exmap_ioctl_setup buffer{};

	buffer.fd = -1;
	buffer.max_interfaces = interfaces;
	buffer.buffer_size = pages;
	buffer.flags = flags;
	return ioctl(fd, EXMAP_IOCTL_SETUP, &buffer);
}

static uint64_t flags_that_hold(int fd)
{
	struct exmap_ioctl_stats stats;

	CHECK(ioctl(fd, EXMAP_IOCTL_STATS, &stats) >= 0);
	return stats.flags;
}

static int file_of_letters(unsigned int pages)
{
	char path[] = "/tmp/test-client-XXXXXX";
	int fd = mkstemp(path);
	Page page;

	CHECK(fd >= 0);
	unlink(path);
	for (unsigned int i = 0; i < pages; i++) {
		std::memset(page, 'A' + static_cast<int>(i), sizeof(page));
		CHECK(write(fd, page, sizeof(page)) == sizeof(page));
	}
	return fd;
}

int main()
{
	const unsigned int threads = 128, pool = 64;
	const size_t size = (1 << 24) + (1 << 16);
	struct exmap_user_interface *interface[threads];
	int fd = open("/dev/exmap", O_RDWR), other = open("/dev/exmap", O_RDWR);
	int file = file_of_letters(16);

	CHECK(fd >= 0);
	CHECK(setup(fd, file, threads, pool) >= 0);
	CHECK(flags_that_hold(fd) == 0);
	for (unsigned int i = 0; i < threads; i++) {
		interface[i] = static_cast<struct exmap_user_interface *>(
			mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			     static_cast<off_t>(EXMAP_OFF_INTERFACE(i))));
		CHECK(interface[i] != MAP_FAILED);
	}
	Page *memory = static_cast<Page *>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED,
						fd, EXMAP_OFF_EXMAP));
	CHECK(memory != MAP_FAILED);

	/* A new page. */
	interface[3]->iov[0].page = 100;
	interface[3]->iov[0].len = 1;
	CHECK(action(fd, EXMAP_OP_ALLOC, 3, 1) >= 0);
	CHECK(interface[3]->iov[0].res == 0 && interface[3]->iov[0].pages == 1);
	memory[100][0] = 'Z';

	/* A miss: pread reads the page from the backing file. */
	CHECK(pread(fd, memory + 5, sizeof(Page), 127) == sizeof(Page));
	CHECK(memory[5][0] == 'F' && memory[5][4095] == 'F');

	/* ENOMEM leaves the entry unchanged, so the program repeats the call as it is. */
	interface[0]->iov[0].value = 0;
	interface[0]->iov[0].page = 1000;
	interface[0]->iov[0].len = pool - 2;
	CHECK(action(fd, EXMAP_OP_ALLOC, 0, 1) >= 0);
	interface[1]->iov[0].page = 2000;
	interface[1]->iov[0].len = 1;
	CHECK(action(fd, EXMAP_OP_ALLOC, 1, 1) < 0 && errno == ENOMEM);

	/* Eviction. */
	for (unsigned int i = 0; i < 32; i++) {
		interface[2]->iov[i].page = 1000 + i;
		interface[2]->iov[i].len = 1;
	}
	CHECK(action(fd, EXMAP_OP_FREE, 2, 32) >= 0);
	CHECK(action(fd, EXMAP_OP_ALLOC, 1, 1) >= 0);
	memory[2000][0] = 1;

	CHECK(other >= 0);
	CHECK(setup_flags(other, 1, 1, EXMAP_PAGEFAULT_ALLOC) >= 0);
	CHECK(flags_that_hold(other) == EXMAP_PAGEFAULT_ALLOC);

	/* A command must fit into a submission queue entry of io_uring. */
	struct exmap_uring_cmd command{};

	command.iov.iov_base = memory;
	command.iov.iov_len = sizeof(Page);
	CHECK(sizeof(command) <= 16);
	return 0;
}
