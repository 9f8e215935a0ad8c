// SPDX-License-Identifier: GPL-2.0
/*
 * Tests in a memory cgroup: its limit, whom it charges, and its OOM killer.
 */
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
TEST(killed_for_memory, .needs = MEMCG, .expects = "Call Trace")
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

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests in a memory cgroup.");
}
