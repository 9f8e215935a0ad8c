// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of exmap_user.h: exmap_open() and exmap_close(), exmap_attach() and exmap_detach(), fork.
 * The Makefile builds this as C and as C++.
 */
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>

#include "user_common.h"

/*
 * exmap_open(), exmap_close(), exmap_strerror()
 */
TEST(open_sets_up_and_close_undoes_it, .needs_module = true)
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

	/* The surface is as large as requested: a touch maps its last page. */
	ck_assert_ptr_eq(exmap_address(&exmap, 0), exmap.surface);
	ck_assert_ptr_eq(exmap_address(&exmap, 3), exmap.surface + 12288);
	*(char *)exmap_address(&exmap, SURFACE - 1) = 1;
	assert_mapped(&exmap, 1);

	fd = exmap.fd;
	surface = exmap.surface;
	exmap_close(&exmap);
	ck_assert_int_eq(held(), before);
	/* A second close must not touch a new file with that number, or new memory there. */
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
		{ WIDE - 1, 1, 1, 0, ENOMEM },	/* not enough addresses */
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
		/* After a failure exmap_close() closes nothing. */
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

static void lock_file(int file, int command, struct flock *lock)
{
	memset(lock, 0, sizeof(*lock));
	lock->l_type = F_WRLCK;
	lock->l_whence = SEEK_SET;
	assert_ok(fcntl(file, command, lock));
}

/* Whether the parent, or any other process, has a POSIX lock on the file, as a child sees it. */
static bool is_locked(int file)
{
	pid_t child = fork();
	struct flock lock;
	int status;

	if (!child) {
		lock_file(file, F_GETLK, &lock);
		_exit(lock.l_type != F_UNLCK);
	}
	assert_ok(waitpid(child, &status, 0));
	return status;
}

/* exmap_open_path() and exmap_close() drop none of the process's locks on the file. */
TEST(open_path_keeps_posix_locks, .needs_module = true)
{
	int file = file_of_letters(2), again, before;
	struct exmap_interface interface;
	char path[64], byte;
	struct exmap exmap;
	struct flock lock;
	sigset_t signals;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	lock_file(file, F_SETLK, &lock);
	ck_assert(is_locked(file));
	before = held();
	ck_assert_int_eq(exmap_open_path(&exmap, SURFACE, 10, 1, path, O_RDWR, 0), 0);
	/* The process has no child that it does not know. */
	assert_errno(waitpid(-1, NULL, WNOHANG | __WALL), ECHILD);
	assert_ok(sigprocmask(SIG_SETMASK, NULL, &signals));
	ck_assert(!sigismember(&signals, SIGINT));
	ck_assert_int_eq(exmap_attach(&exmap, &interface), 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 1), 1);
	ck_assert(all_bytes(page_at(&exmap, 1), 'B'));
	memset(exmap_address(&exmap, 1), 'x', EXMAP_PAGE_SIZE);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_WRITE, 1), 1);
	ck_assert_int_eq(exmap_sync(&exmap), 0);
	ck_assert_int_eq(pread(file, &byte, 1, EXMAP_PAGE_SIZE), 1);
	ck_assert_int_eq(byte, 'x');
	exmap_detach(&interface);
	exmap_close(&exmap);
	ck_assert_int_eq(held(), before);
	ck_assert(is_locked(file));

	/* With a descriptor that is closed, they are lost. */
	again = open(path, O_RDWR);
	ck_assert_int_eq(exmap_open(&exmap, SURFACE, 10, 1, again, 0), 0);
	close(again);
	ck_assert(!is_locked(file));
}

TEST(open_path_refuses)
{
	static const struct {
		const char *path;
		int flags, err;
	} cases[] = {
		{ "/tmp/no/such/file", O_RDONLY, ENOENT }, { "/tmp", O_RDONLY, EISDIR },
		{ "/dev/zero", O_RDONLY, EINVAL }, { "/etc/passwd", O_WRONLY, EACCES },
		{ NULL, 0, EFAULT },
	};
	int before;

	drop_privileges();
	before = held();
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		const char *path = cases[i].path ? cases[i].path : (const char *)1;
		struct exmap exmap;
		int err = exmap_open_path(&exmap, SURFACE, 1, 1, path, cases[i].flags, 0);

		ck_assert_msg(err == -cases[i].err, "case %d: %d", (int)i, err);
		ck_assert_int_eq(held(), before);
	}
}

TEST(open_within_memlock, .needs_module = true)
{
	struct exmap_interface interface;
	int before = held();
	struct exmap exmap;

	/* A page is charged for the array of interfaces, and four for each that is used. */
	set_memlock((100 + 1 + 4) * EXMAP_PAGE_SIZE);
	drop_privileges();
	ck_assert_int_eq(exmap_open(&exmap, SURFACE, 105, 1, -1, 0), -ENOMEM);
	ck_assert_int_eq(held(), before);
	/* An exmap that failed or was closed is no longer charged, so each round succeeds. */
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

/* exmap_open() without /dev/exmap, or without permission. Only this process sees that /dev. */
TEST(open_without_device, .needs_module = true)
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

	/* The next exmap_attach() gets an interface that was detached, with an empty batch. */
	ck_assert_int_eq(exmap_batch_add(&interface[700], 1, 1), 0);
	exmap_detach(&interface[700]);
	ck_assert_int_eq(exmap_attach(&exmap, &one_more), 0);
	ck_assert_uint_eq(one_more.number, interface[700].number);
	ck_assert_uint_eq(one_more.nr, 0);
	ck_assert_int_eq(exmap_page(&one_more, EXMAP_OP_ALLOC, 5), 1);
	interface[700] = one_more;

	for (int i = 0; i < EXMAP_MAX_INTERFACES; i++)
		exmap_detach(&interface[i]);
	/* Pages stay mapped after detach. */
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

	/* exmap_attach() returns only interfaces that nobody has attached to by number. */
	ck_assert_int_eq(exmap_attach(&exmap, &other), 0);
	ck_assert_uint_eq(other.number, 0);
	ck_assert_int_eq(exmap_attach(&exmap, &third), 0);
	ck_assert_uint_eq(third.number, 2);
	ck_assert_int_eq(exmap_attach(&exmap, &other), -EBUSY);
}

/* If attach fails, no interface is taken and nothing stays mapped. */
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
	int owners[INTERFACES];	/* how many threads are attached to each */
	int attached;
	int rounds;
};

/* Attach, use the interface and detach, again and again. The threads outnumber the interfaces. */
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

/* An interface has one owner at a time, however many threads call exmap_attach(). */
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

/* An interface works in the same way with the exmap's fd and with its own. */
TEST(own_fd_does_the_same, .needs_module = true)
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
	/* A second descriptor replaces the first. */
	ck_assert_int_eq(exmap_own_fd(&interface), 0);
	ck_assert_int_eq(held(), with_one);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 5), 1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 6), 1);
	assert_mapped(&exmap, 1);
	fd = interface.fd;
	exmap_detach(&interface);
	ck_assert_int_eq(held(), before + 2);	/* file and surface */
	/* The number now names another file. A second detach must not close it. */
	ck_assert_int_eq(dup2(exmap.fd, fd), fd);
	exmap_detach(&interface);
	assert_ok(close(fd));

	/* If exmap_own_fd() fails, the interface still works with the shared descriptor. */
	ck_assert_int_eq(exmap_attach(&exmap, &interface), 0);
	with_one = held();
	assert_ok(prlimit(0, RLIMIT_NOFILE, &few, NULL));
	ck_assert_int_eq(exmap_own_fd(&interface), -EMFILE);
	few.rlim_cur = few.rlim_max = 1000;
	assert_ok(prlimit(0, RLIMIT_NOFILE, &few, NULL));
	ck_assert_int_eq(held(), with_one);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 6), 1);

	/* Detach after close must not close a file that has the descriptor's number now. */
	exmap_close(&exmap);
	fd = open("/dev/null", O_RDONLY);
	exmap_detach(&interface);
	assert_ok(close(fd));
	ck_assert_int_eq(held(), before);
}

/*
 * fork()
 */
static struct {
	struct exmap exmap;
	struct exmap_interface interface;
	char *place[2];		/* addresses of surface and interface */
	int before;		/* result of held() before exmap_open() */
	pid_t parent;
} forked;

static void *map_over(void *where)
{
	return mmap(where, EXMAP_PAGE_SIZE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

/*
 * Detach and close, as destructors and atexit handlers do in every process in which they run.
 * In a child this must close descriptors only.
 */
static void close_forked(void)
{
	exmap_detach(&forked.interface);
	exmap_close(&forked.exmap);
	if (getpid() != forked.parent) {
		ck_assert_int_eq(held(), forked.before);
		ck_assert_int_eq(*forked.place[0], 'S');
		ck_assert_int_eq(*forked.place[1], 'I');
		/* A second time must not close descriptors that have these numbers now. */
		ck_assert_int_ge(open("/dev/null", O_RDONLY), 0);
		ck_assert_int_ge(open("/dev/null", O_RDONLY), 0);
		exmap_detach(&forked.interface);
		exmap_close(&forked.exmap);
		ck_assert_int_eq(held(), forked.before + 2);
		_exit(0);
	}
}

/* In a child, detach and close must not unmap memory that the child has at the old addresses. */
TEST(close_in_a_child_closes_descriptors_only, .needs_module = true)
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
		/* The child maps memory at the addresses of the parent's surface and interface. */
		ck_assert_ptr_eq(map_over(forked.place[0]), forked.place[0]);
		ck_assert_ptr_eq(map_over(forked.place[1]), forked.place[1]);
		*forked.place[0] = 'S';
		*forked.place[1] = 'I';
		exit(1);
	}
	wait_child(pid, 0);

	/* Everything still works in the parent. */
	ck_assert_int_eq(*forked.place[0], 'P');
	ck_assert_int_eq(exmap_page(&forked.interface, EXMAP_OP_FREE, 0), 1);
	close_forked();
	ck_assert_int_eq(held(), forked.before);
}

/* A child has closed all descriptors, and uses their numbers again. */
TEST(close_in_a_child_leaves_other_files_alone, .needs_module = true)
{
	struct exmap exmap, other;
	struct exmap_interface interface;
	int file;
	pid_t pid;

	open_attached(&exmap, &interface, 10, -1);
	ck_assert_int_eq(exmap_own_fd(&interface), 0);
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		file = open("/dev/null", O_RDONLY);
		ck_assert_int_eq(dup2(file, interface.fd), interface.fd);
		close(exmap.fd);
		/* An exmap of the child's own, with the number of the parent's. */
		open_one(&other, 10, 1);
		ck_assert_int_eq(other.fd, exmap.fd);
		file = interface.fd;
		exmap_detach(&interface);
		exmap_close(&exmap);
		assert_ok(fcntl(file, F_GETFD));
		ck_assert_int_eq(stats(&other).buffer_size, 10);
		_exit(0);
	}
	wait_child(pid, 0);
}

/* In a PID namespace of its own, a child can have the number of its parent. */
TEST(close_in_a_child_with_the_same_pid, .needs_module = true)
{
	pid_t pid, child;

	assert_ok(unshare(CLONE_NEWPID));
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		open_attached(&forked.exmap, &forked.interface, 10, -1);
		forked.place[0] = forked.exmap.surface;
		forked.place[1] = (char *)forked.interface.user;
		assert_ok(unshare(CLONE_NEWPID));
		child = fork();
		assert_ok(child);
		if (!child) {
			ck_assert_int_eq(getpid(), forked.exmap.process);
			ck_assert_ptr_eq(map_over(forked.place[0]), forked.place[0]);
			ck_assert_ptr_eq(map_over(forked.place[1]), forked.place[1]);
			*forked.place[0] = 'S';
			*forked.place[1] = 'I';
			exmap_detach(&forked.interface);
			exmap_close(&forked.exmap);
			_exit(*forked.place[0] != 'S' || *forked.place[1] != 'I');
		}
		wait_child(child, 0);
		_exit(0);
	}
	wait_child(pid, 0);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of exmap_user.h: open and close, attach and detach.");
}
