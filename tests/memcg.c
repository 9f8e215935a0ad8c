// SPDX-License-Identifier: GPL-2.0
/*
 * Tests in a memory cgroup: its limit, whom it charges, and its OOM killer.
 */
#include <time.h>

#include "cgroup.h"
#include "hostile.h"

/*
 * What calls answer at the limit: how many pages @got before ALLOC failed; what it answered
 * @again; how many pages FREE gave @back; how many of those ALLOC @kept.
 */
struct limited {
	int got, again, back, kept;
};

/* Take pages one by one until the cgroup has no more. */
static void reach_limit(struct limited *seen)
{
	enum { MANY = 32 * MIB / PAGE };
	struct exmap *ex;
	int ret;

	become_hostile();
	ex = fenced_exmap(MANY, MANY, -1);
	/* First let exmap and the kernel get all other memory, such as page tables. */
	for (int page = 0; page < MANY; page += 512) {
		alloc(ex, 0, page, 1);
		release(ex, 0, page, 1);
	}
	assert_ok(mlockall(MCL_CURRENT));
	memset(seen, 0, sizeof(*seen));
	/*
	 * No assertion from here on: the note that each leaves in a file takes memory too, and at
	 * the limit the OOM killer would end this process.
	 */
	doomed = true;
	while ((ret = alloc(ex, 0, seen->got, 1)) == 1)
		seen->got++;
	seen->again = ret;
	seen->back = release(ex, 0, 0, 100);
	seen->kept = alloc(ex, 0, 0, 100);
	munmap(ex->surface, ex->size);
}

/* At the limit of a memory cgroup ALLOC returns ENOMEM, and no process is killed. */
TEST(memcg_at_its_limit_is_enomem, .needs = MEMCG)
{
	struct limited *seen = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	cgroup_new("16M");
	pid = cgroup_fork();
	if (!pid) {
		reach_limit(seen);
		_exit(0);
	}
	wait_child(pid, 0);
	ck_assert_int_eq(cgroup_events("oom_kill"), 0);
	ck_assert_int_gt(cgroup_events("max"), 0);
	ck_assert_int_ge(seen->got, 1000);
	ck_assert_int_lt(seen->got, 4096);
	ck_assert_int_eq(seen->again, -ENOMEM);
	ck_assert_int_eq(seen->back, 100);
	ck_assert_int_eq(seen->kept, 100);
	cgroup_settle();
	assert_ok(rmdir(cgroup));
}

/* If another process touches the surface, the cgroup of the process that has it is charged. */
TEST(memcg_of_the_process_pays_for_others, .needs = MEMCG)
{
	enum { MANY = 16 * MIB / PAGE };
	int ready[2];
	struct exmap *ex;
	struct iovec local, remote;
	char *surface, byte;
	long before;
	pid_t pid;

	cgroup_new("64M");
	assert_ok(pipe(ready));
	pid = cgroup_fork();
	if (!pid) {
		ex = exmap_new_flags(16 * MIB, MANY, 1, EXMAP_PAGEFAULT_ALLOC);
		if (write(ready[1], &ex->surface, sizeof(surface)) != sizeof(surface))
			_exit(1);
		for (;;)
			pause();
	}
	ck_assert_int_eq(read(ready[0], &surface, sizeof(surface)), sizeof(surface));
	before = cgroup_kib();
	for (int page = 0; page < MANY; page++) {
		local = (struct iovec){ &byte, 1 };
		remote = (struct iovec){ surface + page * PAGE, 1 };
		ck_assert_int_eq(process_vm_readv(pid, &local, 1, &remote, 1, 0), 1);
	}
	ck_assert_int_ge(cgroup_kib() - before, 12 * 1024);
	assert_ok(kill(pid, SIGKILL));
	wait_child(pid, SIGKILL);
	cgroup_settle();
	assert_ok(rmdir(cgroup));
}

/* What ALLOC did before it failed: how many pages it mapped, and how long calls took. */
struct prompt {
	int mapped, ret;
	long memory, tables;	/* the causes, from fdinfo */
	double all, last;	/* seconds */
};

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Map every @stride-th page until ALLOC fails. */
static void map_until_enomem(struct prompt *seen, int stride)
{
	enum { MANY = 128 * MIB / PAGE };
	double start, before;
	struct exmap *ex;

	become_hostile();
	ex = exmap_new(MANY * PAGE * stride, MANY, 1);
	memset(seen, 0, sizeof(*seen));
	doomed = true;	/* see reach_limit() */
	start = now();
	do {
		before = now();
		seen->ret = alloc(ex, 0, (uint64_t)seen->mapped++ * stride, 1);
	} while (seen->ret == 1);
	seen->last = now() - before;
	seen->all = now() - start;
	munmap(ex->surface, ex->size);
	ck_assert_int_eq(fdinfo(ex->fd, "enomem-ceiling"), 0);
	seen->memory = fdinfo(ex->fd, "enomem-memory");
	seen->tables = fdinfo(ex->fd, "enomem-tables");
}

/*
 * If the pages on the surface need more than the limit, ALLOC returns ENOMEM, and no process is
 * killed. It does not try for long: the call that fails takes less time than those that succeeded.
 */
static void check_prompt(int stride)
{
	struct prompt *seen = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	cgroup_new("32M");
	pid = cgroup_fork();
	if (!pid) {
		map_until_enomem(seen, stride);
		_exit(0);
	}
	wait_child(pid, 0);
	ck_assert_int_eq(cgroup_events("oom_kill"), 0);
	ck_assert_int_eq(seen->ret, -ENOMEM);
	ck_assert_int_ge(seen->mapped, 2000);
	ck_assert_int_ge(stride == 1 ? seen->memory : seen->memory + seen->tables, 1);
	ck_assert_msg(seen->last < seen->all - seen->last, "ALLOC failed after %.3f s",
		      seen->last);
	cgroup_settle();
	assert_ok(rmdir(cgroup));
}

TEST(memcg_too_small_for_the_pool, .needs = MEMCG)
{
	check_prompt(1);
}

/* Each page needs a page table, which the kernel would call the OOM killer for. */
TEST(memcg_too_small_for_page_tables, .needs = MEMCG)
{
	check_prompt(512);
}

/* Get mapped and free pages, then use more memory than the cgroup may have. */
static void use_too_much(void)
{
	struct exmap *ex;
	char *more;

	become_hostile();
	ex = fenced_exmap(PAGES, 2000, -1);
	ck_assert_int_eq(alloc(ex, 0, 0, 2000), 2000);
	ck_assert_int_eq(release(ex, 0, 0, 1000), 1000);
	more = elsewhere(64 * MIB);
	assert_ok(mprotect(more, 64 * MIB, PROT_READ | PROT_WRITE));
	for (size_t at = 0; at < 64 * MIB; at += PAGE)
		more[at] = 1;
}

/* If the OOM killer ends a process with an exmap, all its memory is given back. */
TEST(killed_for_memory, .needs = MEMCG, .expects = ARCH_CALL_TRACE)
{
	int printk = open("/proc/sys/kernel/printk", O_RDWR);
	char level[32] = { };
	pid_t pid;

	/* The OOM killer prints a stack: it must go to the log, but not to the console. */
	ck_assert_int_gt(read(printk, level, sizeof(level) - 1), 0);
	ck_assert_int_eq(pwrite(printk, "4", 1, 0), 1);
	cgroup_new("24M");
	for (int round = 0; round < 3; round++) {
		pid = cgroup_fork();
		if (!pid) {
			use_too_much();
			_exit(0);
		}
		wait_child(pid, SIGKILL);
		ck_assert_int_eq(cgroup_events("oom_kill"), round + 1);
		cgroup_settle();
	}
	/* On 7.3 a thread prints it, at a time that no file shows. */
	sleep(1);
	ck_assert_int_gt(pwrite(printk, level, strlen(level), 0), 0);
	assert_ok(rmdir(cgroup));
}

/*
 * Reclaim of a memory cgroup
 */

/* A process with an exmap, which has many free pages, and others on its surface. */
enum { KEEP_MIB = 4, FREE_MIB = 44, KEEP = KEEP_MIB * MIB / PAGE, FREE = FREE_MIB * MIB / PAGE };

/* Make the exmap. Some of the free pages are in the depot, some in a quarantine. */
static struct exmap *with_free_pages(void)
{
	struct exmap *ex = exmap_new(64 * MIB, KEEP + FREE, 2);

	for (int page = 0; page < KEEP + FREE; page += 2048) {
		ck_assert_int_eq(alloc(ex, 0, page, 2048), 2048);
		memset(where(ex, page), 'x', 2048 * PAGE);
	}
	for (int page = KEEP; page < KEEP + FREE - 512; page += 512)
		ck_assert_int_eq(release(ex, 0, page, 512), 512);
	ck_assert_int_eq(run_flags(ex, 1, EXMAP_OP_FREE, KEEP + FREE - 512, 512,
				   EXMAP_FREE_DEFER), 512);
	return ex;
}

/* Pages on the surface are as before, the books add up, and all pages can be had again. */
static void check_pages(struct exmap *ex)
{
	assert_mapped(ex, KEEP);
	for (int page = 0; page < KEEP; page++)
		ck_assert(all_bytes(where(ex, page), 'x'));
	ck_assert_int_lt(fdinfo(ex->fd, "pages-system"), KEEP + FREE);
	assert_pages_add_up(ex->fd);
}

/* Use memory that is not exmap's. */
static void touch_memory(size_t size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);

	assert_ok(memory);
	for (size_t at = 0; at < size; at += PAGE)
		memory[at] = 1;
	assert_ok(munmap(memory, size));
}

/* Start a process in the cgroup that has an exmap, calls @then, and exits if all is well. */
static pid_t start_with_free_pages(int ready[2], void (*then)(int go), int go[2])
{
	struct exmap *ex;
	pid_t pid;

	assert_ok(pipe(ready));
	assert_ok(pipe(go));
	pid = cgroup_fork();
	if (pid)
		return pid;
	ex = with_free_pages();
	ck_assert_int_eq(write(ready[1], "", 1), 1);
	then(go[0]);
	check_pages(ex);
	_exit(0);
}

static void wait_to_go(int go)
{
	char byte;

	ck_assert_int_eq(read(go, &byte, 1), 1);
}

/* Let the process go on with its checks, and wait until it has ended well. */
static void let_go(pid_t pid, int go[2])
{
	ck_assert_int_eq(write(go[1], "", 1), 1);
	wait_child(pid, 0);
}

static void touch_much(int go)
{
	touch_memory(36 * MIB);
}

/* The cgroup's limit is reached: by the process that has the exmap. */
TEST(memcg_gets_free_pages_for_the_same_process, .needs = MEMCG)
{
	int ready[2], go[2];

	cgroup_new("64M");
	wait_child(start_with_free_pages(ready, touch_much, go), 0);
	ck_assert_int_eq(cgroup_events("oom_kill"), 0);
	cgroup_settle();
	assert_ok(rmdir(cgroup));
}

/* The cgroup's limit is reached: by another process. */
TEST(memcg_gets_free_pages_for_another_process, .needs = MEMCG)
{
	int ready[2], go[2];
	pid_t pid, other;
	char byte;

	cgroup_new("64M");
	pid = start_with_free_pages(ready, wait_to_go, go);
	ck_assert_int_eq(read(ready[0], &byte, 1), 1);
	other = cgroup_fork();
	if (!other) {
		touch_memory(36 * MIB);
		_exit(0);
	}
	wait_child(other, 0);
	let_go(pid, go);
	ck_assert_int_eq(cgroup_events("oom_kill"), 0);
	cgroup_settle();
	assert_ok(rmdir(cgroup));
}

/* Somebody writes to memory.reclaim. */
TEST(memcg_reclaim_gets_free_pages, .needs = MEMCG)
{
	int ready[2], go[2];
	long before;
	pid_t pid;
	char byte;

	cgroup_new("max");
	pid = start_with_free_pages(ready, wait_to_go, go);
	ck_assert_int_eq(read(ready[0], &byte, 1), 1);
	before = cgroup_kib();
	/* Since 6.4 the kernel does not count what it gets from modules, and may report EAGAIN. */
	if (!cgroup_write("memory.reclaim", "40M"))
		ck_assert_int_eq(errno, EAGAIN);
	ck_assert_int_ge(before - cgroup_kib(), 39 * 1024);
	let_go(pid, go);
	cgroup_settle();
	assert_ok(rmdir(cgroup));
}

/* Make page tables, and give them back. @kib becomes what they cost the cgroup, and what is left. */
static void tables_come_and_go(long kib[2])
{
	enum { TABLES = 4096 };
	struct exmap_ioctl_trim trim = { .flags = EXMAP_TRIM_TABLES };
	struct exmap *ex = exmap_new(TABLES * 512 * PAGE, 512, 1);
	long before = cgroup_kib();

	for (int table = 0; table < TABLES; table++) {
		ck_assert_int_eq(alloc(ex, 0, table * 512, 1), 1);
		ck_assert_int_eq(release(ex, 0, table * 512, 1), 1);
	}
	kib[0] = cgroup_kib() - before;
	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_TRIM, &trim));
	ck_assert_int_ge(trim.done, TABLES - 2);
	/* The kernel may free page tables some time later, and a CPU keeps up to 256 KiB charged. */
	do
		kib[1] = cgroup_kib() - before;
	while (kib[1] > 2048);
}

/* EXMAP_TRIM_TABLES gives page tables back to the cgroup. */
TEST(memcg_gets_page_tables_back, .needs = MEMCG)
{
	long *kib = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	cgroup_new("max");
	pid = cgroup_fork();
	if (!pid) {
		tables_come_and_go(kib);
		_exit(0);
	}
	wait_child(pid, 0);
	ck_assert_int_ge(kib[0], 15 * 1024);
	cgroup_settle();
	assert_ok(rmdir(cgroup));
}

/* A process moves to the cgroup after SETUP. The cgroup then pays, and gets free pages. */
TEST(memcg_gets_free_pages_after_a_move, .needs = MEMCG)
{
	struct exmap *ex;
	pid_t pid;

	cgroup_new("64M");
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		ex = exmap_new(64 * MIB, 44 * MIB / PAGE, 1);
		ck_assert(cgroup_write("cgroup.procs", "0"));
		for (int page = 0; page < (int)(44 * MIB / PAGE); page += 1024)
			ck_assert_int_eq(alloc(ex, 0, page, 1024), 1024);
		for (int page = 0; page < (int)(44 * MIB / PAGE); page += 1024)
			ck_assert_int_eq(release(ex, 0, page, 1024), 1024);
		touch_memory(36 * MIB);
		assert_pages_add_up(ex->fd);
		_exit(0);
	}
	wait_child(pid, 0);
	ck_assert_int_eq(cgroup_events("oom_kill"), 0);
	cgroup_settle();
	assert_ok(rmdir(cgroup));
}

/* A cgroup is removed while an exmap charged to it lives: its parent's limit then finds it. */
TEST(memcg_removed_before_its_exmap, .needs = MEMCG)
{
	char inner[80], procs[96];
	int ready[2], go[2];
	pid_t pid;
	char byte;
	int fd;

	cgroup_new("max");
	ck_assert(cgroup_write("cgroup.subtree_control", "+memory"));
	snprintf(inner, sizeof(inner), "%s/inner", cgroup);
	assert_ok(mkdir(inner, 0755));
	strcat(cgroup, "/inner");
	pid = start_with_free_pages(ready, wait_to_go, go);
	ck_assert_int_eq(read(ready[0], &byte, 1), 1);
	*strrchr(cgroup, '/') = 0;
	/* The process leaves, but its pages stay charged. */
	strcpy(procs, "/sys/fs/cgroup/cgroup.procs");
	fd = open(procs, O_WRONLY | O_CLOEXEC);
	ck_assert_int_gt(dprintf(fd, "%d", pid), 0);
	close(fd);
	assert_ok(rmdir(inner));
	/* A lower limit makes the kernel reclaim. */
	ck_assert(cgroup_write("memory.max", "20M"));
	for (int i = 0; cgroup_kib() > 20 * 1024 && i < 100; i++)
		usleep(100000);
	ck_assert_int_le(cgroup_kib(), 20 * 1024);
	let_go(pid, go);
	cgroup_settle();
	assert_ok(rmdir(cgroup));
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests in a memory cgroup.");
}
