// SPDX-License-Identifier: GPL-2.0
/*
 * A random tester: calls of all kinds, right ones and wrong ones, from a seed.
 *
 * With one thread a model knows what each call has to return, which pages are there after it
 * and what is in them. With several threads, in processes that are killed at random moments,
 * there is no telling; but each thread has a stripe of every surface in which nobody else maps
 * or unmaps anything: what it finds there must be right. So must the sum when all have paused.
 *
 * A page that is written to gets a tag in its first word and its last one, and is zero in
 * between: whatever turns up in a page tells whose it is and where it belongs.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "linux/exmap.h"

#define PAGE 4096UL
#define WORDS (PAGE / sizeof(uint64_t))
#define ENTRIES EXMAP_USER_INTERFACE_PAGES
#define SLOTS 4			/* exmaps that a process has at a time */
#define MAX_PAGES 16384U	/* of a surface */
#define MAX_POOL 8192U
#define FDS 3			/* of an exmap: the first one, and clones */
#define MAX_THREADS 16U
#define MAX_PROCESSES 63U
#define SHARED 2		/* interfaces that are no thread's own */
#define MAX_INTERFACES (MAX_THREADS + SHARED)
#define STRIPE 64U		/* pages that are a thread's own: a bit each */
#define HOT 32U			/* shared pages to which most calls go */
#define ROUND 300		/* steps of a thread between two pauses */
#define PATIENCE 180		/* seconds without a call: it hangs */

static struct {
	uint64_t seed;
	unsigned long seeds, calls;
	unsigned int threads, processes;
	bool verbose;
} options = { .seeds = 1, .calls = 100000, .threads = 1, .processes = 1 };

/* Its first word and its last. */
struct content {
	uint64_t first, last;
};

enum state { ABSENT, STALE, KNOWN };	/* STALE: mapped, with anything of this exmap's in it */

#define NOBODY 0xff

/* Where a page was freed and its flush may be due yet: a touch may find what it held. */
struct due {
	uint8_t from;		/* the interface that freed it, or NOBODY */
	bool known;		/* what it held is still in content[] */
};

/*
 * An exmap, in the same place always: surface, interfaces and descriptors have addresses and
 * numbers that nothing else gets. A thread that comes too late does no harm.
 */
struct exmap {
	unsigned int number;	/* in the tags */
	unsigned int pages, pool, interfaces;
	uint64_t flags;
	char *surface;
	unsigned int quota;	/* pages that each thread may have, and the pool holds; or 0 */
	int file;		/* the backing file, or -1 */
	bool read_only;

	/* What the model knows. */
	unsigned int mapped;
	unsigned int fds;
	unsigned int hot;	/* where most calls go */
	uint64_t file_size;
	uint8_t state[MAX_PAGES];
	struct content content[MAX_PAGES];
	struct due due[MAX_PAGES];
	struct content in_file[MAX_PAGES];

	/* Odd while it is being replaced; who writes to it has the lock. */
	atomic_uint generation;
	pthread_rwlock_t lock;
};

static struct exmap exmaps[SLOTS];
static char *surfaces, *elsewhere;
static struct exmap_user_interface *interfaces;

/* What a thread is doing. */
static __thread struct task {
	uint64_t random;
	unsigned int process, number;
	atomic_ulong *calls;
	const struct exmap *exmap;
	const char *format;
	long argument[8];
	unsigned int nr;	/* entries of the call */
	struct exmap_iov request[ENTRIES + 1];
	sigjmp_buf jump;
	volatile sig_atomic_t touching;
	void *volatile fault;
	uint64_t owned[SLOTS];	/* pages of its stripe that are mapped */
	uint64_t due[SLOTS];	/* those that are not, and whose flush may be due */
	unsigned int generation[SLOTS];
} me;

/* What the parent sees of a process, in memory that they share. */
static struct progress {
	atomic_ulong calls[MAX_THREADS];
} *progress;

/* Random numbers (splitmix64) */
static uint64_t mix(uint64_t z)
{
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static uint64_t rnd(void)
{
	return mix(me.random += 0x9e3779b97f4a7c15);
}

static unsigned int below(unsigned int n)
{
	return (rnd() >> 32) * n >> 32;
}

static bool one_in(unsigned int n)
{
	return !below(n);
}

/* What goes wrong */
static void print_call(void)
{
	const struct exmap *ex = me.exmap;
	const long *a = me.argument;

	if (ex)
		printf("exmap %ld (%u pages, pool %u, %u interfaces, flags %#lx%s): ",
		       (long)(ex - exmaps), ex->pages, ex->pool, ex->interfaces, ex->flags,
		       ex->file < 0 ? "" : ex->read_only ? ", read-only file" : ", file");
	printf(me.format ?: "", a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
	for (unsigned int i = 0; i < me.nr; i++)
		printf(" %lu+%u", (unsigned long)me.request[i].page,
		       (unsigned int)me.request[i].len);
	putchar('\n');
}

static _Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...)
{
	va_list arguments;

	/* Never unlocked: what fails next does so because of this, or will again. */
	flockfile(stdout);
	printf("\ntests/fuzz: seed %lu, process %u, thread %u, call %lu: ", options.seed,
	       me.process, me.number, atomic_load(me.calls));
	print_call();
	printf("tests/fuzz: ");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\ntests/fuzz: to see it again: ./tests/fuzz --seed %lu --calls %lu --threads %u "
	       "--processes %u\n", options.seed, options.calls, options.threads, options.processes);
	fflush(stdout);
	_exit(1);
}

/* Note what is going to be called, for print_call(). */
static void note(const struct exmap *ex, unsigned int nr, const char *format, const long *argument)
{
	me.exmap = ex;
	me.nr = nr;
	me.format = format;
	memcpy(me.argument, argument, sizeof(me.argument));
	if (!options.verbose)
		return;
	flockfile(stdout);
	printf("%u.%u.%lu: ", me.process, me.number, atomic_load(me.calls));
	print_call();
	fflush(stdout);
	funlockfile(stdout);
}

#define note(ex, nr, format, ...) (note)(ex, nr, format, (long[8]){ __VA_ARGS__ })

/* Count a system call on an exmap. Returns its result, or the negative errno. */
static long counted(long ret)
{
	/* Nobody else writes to it. */
	atomic_store_explicit(me.calls, atomic_load_explicit(me.calls, memory_order_relaxed) + 1,
			      memory_order_relaxed);
	return ret == -1 ? -errno : ret;
}

/* A call that has to return this, or a negative errno. */
#define expect(ex, call, want) do {						\
	long want_ = (want), got_;						\
	note(ex, 0, #call);							\
	got_ = counted((long)(call));						\
	if (got_ != want_)							\
		fail("returned %ld, expected %ld", got_, want_);		\
} while (0)

/* One of several calls, each of which has to return what is given: one_of() and then these. */
#define one_of(n) unsigned int n_ = below(n)
#define or_expect(ex, want, call) do {						\
	if (!n_--)								\
		expect(ex, call, want);						\
} while (0)

#define die_if(condition) do {							\
	if (condition)								\
		fail("%s: %s", #condition, strerror(errno));			\
} while (0)

/* Touching the surface */
static void on_fault(int number, siginfo_t *info, void *context)
{
	if (!me.touching) {
		/* It comes again, and is the end. */
		signal(number, SIG_DFL);
		return;
	}
	me.fault = info->si_addr;
	siglongjmp(me.jump, number);
}

static char *address(const struct exmap *ex, uint64_t page)
{
	return ex->surface + page * PAGE;
}

/* Read first, last and another word of a page. Returns 0 or the signal that came. */
static int load(const struct exmap *ex, unsigned int page, struct content *content,
		uint64_t *between)
{
	const volatile uint64_t *words = (void *)address(ex, page);
	const unsigned int other = 1 + below(WORDS - 2);
	int number = sigsetjmp(me.jump, 0);

	me.touching = !number;
	if (!number) {
		content->first = words[0];
		content->last = words[WORDS - 1];
		*between = words[other];
	}
	me.touching = false;
	return number;
}

/* Write a tag. The same. */
static int store(const struct exmap *ex, unsigned int page, uint64_t tag)
{
	volatile uint64_t *words = (void *)address(ex, page);
	int number = sigsetjmp(me.jump, 0);

	me.touching = !number;
	if (!number) {
		words[0] = tag;
		words[WORDS - 1] = tag;
	}
	me.touching = false;
	return number;
}

/* Read the first word of a page that the page table has there, whatever is in a TLB. */
static bool load_by_table(const struct exmap *ex, unsigned int page, uint64_t *word)
{
	struct iovec here = { word, sizeof(*word) }, there = { address(ex, page), sizeof(*word) };

	return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == sizeof(*word);
}

/* Tags: whose it is (28 bits), of which page (16), a counter (20). */
static uint64_t owner(const struct exmap *ex)
{
	return 0xe5aULL << 16 | me.process << 10 | ex->number;
}

static uint64_t new_tag(const struct exmap *ex, unsigned int page)
{
	static __thread unsigned int counter;

	return owner(ex) << 36 | (uint64_t)page << 20 | (++counter & 0xfffff);
}

static bool is_own(const struct exmap *ex, uint64_t word)
{
	return !word || word >> 36 == owner(ex);
}

static void check_own(const struct exmap *ex, unsigned int page, struct content content,
		      uint64_t between)
{
	if (!is_own(ex, content.first) || !is_own(ex, content.last) || between)
		fail("page %u holds %#lx, %#lx, %#lx: something not of this exmap (%#lx)", page,
		     content.first, between, content.last, owner(ex));
}

/* Descriptors and addresses of an exmap */
static int fd_of(const struct exmap *ex, unsigned int nr)
{
	return 100 + (ex - exmaps) * FDS + nr;
}

static int any_fd(const struct exmap *ex)
{
	return fd_of(ex, below(ex->fds));
}

static struct exmap_user_interface *interface_of(const struct exmap *ex, unsigned int nr)
{
	return &interfaces[(ex - exmaps) * MAX_INTERFACES + nr];
}

static char *window_of(const struct exmap *ex)
{
	return surfaces + (ex - exmaps) * 2 * MAX_PAGES * PAGE;
}

static long setup(int fd, int file, int nr, size_t pages, uint64_t flags)
{
	struct exmap_ioctl_setup setup = {
		.fd = file, .max_interfaces = nr, .buffer_size = pages, .flags = flags,
	};

	return ioctl(fd, EXMAP_IOCTL_SETUP, &setup);
}

static void *map(void *where, size_t size, int fd, uint64_t offset)
{
	return mmap(where, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset);
}

/* Have nothing where the surface was, nor anything else. */
static long reserve(void *where, size_t size)
{
	return (long)mmap(where, size, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

/* ACTION without taking note of it. */
static long action_at(int fd, unsigned int interface, unsigned int opcode, unsigned int nr,
		      uint64_t flags)
{
	struct exmap_action_params params;

	/* The hole is never looked at. */
	memset(&params, 0xa5, sizeof(params));
	params.interface = interface;
	params.iov_len = nr;
	params.opcode = opcode;
	params.flags = flags;
	return ioctl(fd, EXMAP_IOCTL_ACTION, &params);
}

static long action(const struct exmap *ex, int fd, unsigned int interface, unsigned int opcode,
		   unsigned int nr, uint64_t flags)
{
	note(ex, nr, "ACTION: fd %ld, interface %ld, opcode %ld, %ld entries, flags %#lx:",
	     fd, interface, opcode, nr, flags);
	return counted(action_at(fd, interface, opcode, nr, flags));
}

static unsigned long stats_count(const struct exmap *ex, int fd)
{
	struct exmap_ioctl_stats stats;

	memset(&stats, 0xa5, sizeof(stats));
	expect(ex, ioctl(fd, EXMAP_IOCTL_STATS, &stats), 0);
	if (stats.flags != ex->flags || stats.buffer_size != ex->pool ||
	    stats.max_interfaces != ex->interfaces)
		fail("flags %#lx, buffer_size %lu, max_interfaces %u", stats.flags,
		     stats.buffer_size, stats.max_interfaces);
	return stats.alloc_count;
}

struct books {
	unsigned long system, mapped, free, deferred, in_flight, pinned;
};

static bool read_books(const struct exmap *ex, struct books *books)
{
	char path[64], text[8192], *found;
	struct {
		const char *key;
		unsigned long *value;
	} rows[] = {
		{ "exmap-pages-system:", &books->system }, { "exmap-pages-mapped:", &books->mapped },
		{ "exmap-pages-free:", &books->free }, { "exmap-pages-deferred:", &books->deferred },
		{ "exmap-pages-in-flight:", &books->in_flight },
		{ "exmap-pages-pinned:", &books->pinned },
	};
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd_of(ex, 0));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	die_if(fd < 0);
	memset(text, 0, sizeof(text));
	die_if(read(fd, text, sizeof(text) - 1) < 0);
	close(fd);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		found = strstr(text, rows[i].key);
		if (found)
			*rows[i].value = strtoul(found + strlen(rows[i].key), NULL, 10);
		else
			fail("fdinfo has no %s", rows[i].key);
	}
	return books->system == books->mapped + books->free + books->deferred +
		books->in_flight + books->pinned;
}

/* While no call is at work each page is in one place; @most of them wait for their flush. */
static void check_books(const struct exmap *ex, unsigned long mapped, unsigned long most)
{
	struct books books;

	note(ex, 0, "fdinfo");
	/* The kernel may be taking pages back. */
	for (int i = 0; !read_books(ex, &books) && i < 100; i++)
		usleep(1000);
	if (!read_books(ex, &books) || books.mapped != mapped || books.deferred > most)
		fail("%lu pages: %lu mapped (expected %lu), %lu free, %lu deferred (at most %lu), "
		     "%lu in flight, %lu pinned", books.system, books.mapped, mapped, books.free,
		     books.deferred, most, books.in_flight, books.pinned);
}

/*
 * The model
 */
static void check_stats(struct exmap *ex)
{
	unsigned long count = stats_count(ex, any_fd(ex));

	if (count != ex->mapped)
		fail("alloc_count is %lu, expected %u", count, ex->mapped);
}

static bool is_mapped(const struct exmap *ex, uint64_t page)
{
	return ex->state[page] != ABSENT;
}

/* What mincore says about a range. */
static const unsigned char *look(struct exmap *ex, unsigned int page, unsigned int nr)
{
	static unsigned char seen[MAX_PAGES];

	note(ex, 0, "mincore: %ld+%ld", page, nr);
	if (counted(mincore(address(ex, page), nr * PAGE, seen)))
		fail("%s", strerror(errno));
	return seen;
}

static void check_mapped(struct exmap *ex, unsigned int page, unsigned int nr)
{
	const unsigned char *seen = look(ex, page, nr);

	for (unsigned int i = 0; i < nr; i++)
		if ((seen[i] & 1) != (ex->state[page + i] != ABSENT))
			fail("page %u is %smapped", page + i, seen[i] & 1 ? "" : "not ");
}

/* A mapped page holds what it should. After this it is known what that is. */
static void check_content(struct exmap *ex, unsigned int page)
{
	struct content *want = &ex->content[page], got;
	uint64_t between;
	int number = load(ex, page, &got, &between);

	if (number)
		fail("page %u should be mapped, and a touch is signal %d", page, number);
	if (ex->state[page] == STALE)
		*want = got;
	ex->state[page] = KNOWN;
	if (got.first != want->first || got.last != want->last)
		fail("page %u holds %#lx and %#lx, expected %#lx and %#lx", page, got.first,
		     got.last, want->first, want->last);
	check_own(ex, page, got, between);
}

static void model_map(struct exmap *ex, unsigned int page, const struct content *content)
{
	ex->mapped++;
	ex->due[page].from = NOBODY;
	ex->state[page] = content ? KNOWN : STALE;
	if (content)
		ex->content[page] = *content;
}

static void model_unmap(struct exmap *ex, unsigned int page)
{
	ex->mapped -= ex->state[page] != ABSENT;
	ex->state[page] = ABSENT;
}

/* Nothing that an interface has freed, or with NOBODY any of them, is to be flushed yet. */
static void model_flush(struct exmap *ex, uint8_t from)
{
	for (unsigned int page = 0; page < ex->pages; page++)
		if (from == NOBODY || ex->due[page].from == from)
			ex->due[page].from = NOBODY;
}

static bool is_due(const struct exmap *ex, unsigned int page)
{
	return ex->due[page].from != NOBODY;
}

static void model_check_books(struct exmap *ex)
{
	unsigned long most = 0;

	for (unsigned int page = 0; page < ex->pages; page++)
		most += is_due(ex, page);
	check_books(ex, ex->mapped, most);
}

static void flush(struct exmap *ex, unsigned int interface)
{
	expect(ex, action_at(any_fd(ex), interface, EXMAP_OP_FLUSH, 0, 0), 0);
	model_flush(ex, interface);
}

static void model_tag(struct exmap *ex, unsigned int page)
{
	uint64_t tag = new_tag(ex, page);

	if (store(ex, page, tag))
		fail("page %u should be mapped, and cannot be written to", page);
	ex->content[page] = (struct content){ tag, tag };
	ex->state[page] = KNOWN;
}

/* What is mapped is what touches find, not what was there before. */
static void check_table(struct exmap *ex, unsigned int page)
{
	uint64_t word;

	model_tag(ex, page);
	note(ex, 0, "process_vm_readv of page %ld", page);
	if (!counted(load_by_table(ex, page, &word)))
		fail("%s", strerror(errno));
	if (word != ex->content[page].first)
		fail("page %u holds %#lx, and a touch finds another one with %#lx", page, word,
		     ex->content[page].first);
}

/* A page that is not mapped has been touched with this result. */
static void absent_touched(struct exmap *ex, unsigned int page, int got)
{
	bool alloc = ex->flags & EXMAP_PAGEFAULT_ALLOC;
	int want = !alloc ? SIGSEGV : ex->mapped < ex->pool ? 0 : SIGBUS;

	if (got != want && (got || !is_due(ex, page)))
		fail("signal %d, expected %d", got, want);
	/* Half way through a flush may come, too. */
	if (got && me.fault != address(ex, page) && !is_due(ex, page))
		fail("fault at %p, expected %p", me.fault, address(ex, page));
	if (!got && alloc && (!is_due(ex, page) || look(ex, page, 1)[0] & 1))
		model_map(ex, page, NULL);
	check_mapped(ex, page, 1);
	if (is_mapped(ex, page))
		check_content(ex, page);
}

/*
 * A page that is not mapped: a touch maps it where there are pages left, or is a signal; or,
 * as long as a flush is due, it finds what was there.
 */
static void check_absent(struct exmap *ex, unsigned int page)
{
	struct content content, *want = &ex->content[page];
	uint64_t between;
	int got;

	if (is_due(ex, page) && one_in(2))
		flush(ex, ex->due[page].from);
	note(ex, 0, "touch page %ld, which is not mapped", page);
	got = load(ex, page, &content, &between);
	absent_touched(ex, page, got);
	if (got || is_mapped(ex, page))
		return;
	check_own(ex, page, content, between);
	if (ex->due[page].known && (content.first != want->first || content.last != want->last))
		fail("page %u held %#lx and %#lx when it was freed, and before the flush %#lx and %#lx",
		     page, want->first, want->last, content.first, content.last);
}

/* The same with a write to it. */
static void write_to_absent(struct exmap *ex, unsigned int page)
{
	uint64_t tag = new_tag(ex, page);
	int got;

	note(ex, 0, "write to page %ld, which is not mapped", page);
	got = store(ex, page, tag);
	absent_touched(ex, page, got);
	if (is_mapped(ex, page))
		return;
	/* Where the second word was a signal the first may have been written. */
	ex->content[page] = (struct content){ tag, tag };
	ex->due[page].known = !got;
}

/* After calls for which mapping pages is right: learn which those were. */
static void learn_mapped(struct exmap *ex, unsigned int page, unsigned int nr)
{
	const unsigned char *seen = look(ex, page, nr);

	if (!(ex->flags & EXMAP_PAGEFAULT_ALLOC))
		return;
	for (unsigned int i = 0; i < nr; i++)
		if (seen[i] & 1 && ex->state[page + i] == ABSENT)
			model_map(ex, page + i, NULL);
	if (ex->mapped > ex->pool)
		fail("%u pages are mapped, of a pool of %u", ex->mapped, ex->pool);
}

/* Everything. */
static void check_all(struct exmap *ex)
{
	static const char zeros[PAGE];

	check_stats(ex);
	model_check_books(ex);
	check_mapped(ex, 0, ex->pages);
	for (unsigned int page = 0; page < ex->pages; page++) {
		if (ex->state[page] == ABSENT)
			continue;
		check_content(ex, page);
		if (one_in(4) && memcmp(address(ex, page) + 8, zeros, PAGE - 16))
			fail("page %u is not zero between its first word and its last", page);
	}
}

/* A range that is on the surface, mostly where others were before. */
static void pick(struct exmap *ex, unsigned int most, unsigned int *page, unsigned int *len)
{
	unsigned int kind = below(1024);

	/* Long runs take long: there are few of them. */
	*page = one_in(2) ? (ex->hot + below(128)) % ex->pages : below(ex->pages);
	*len = kind < 900 ? 1 + below(4) : kind < 1000 ? 1 + below(32) :
		kind < 1020 ? below(2) : kind < 1023 ? 1 + below(600) : 1 + below(4095);
	if (*len > most)
		*len = 1 + *len % most;
	if (*len > ex->pages - *page)
		*len = ex->pages - *page;
}

static struct exmap_iov pick_entry(struct exmap *ex, unsigned int most)
{
	unsigned int page, len;

	pick(ex, most, &page, &len);
	if (!one_in(64))
		return (struct exmap_iov){ .page = page, .len = len };
	/* It leaves the surface, or might. */
	if (one_in(2))
		return (struct exmap_iov){ .value = rnd() >> below(64) };
	return (struct exmap_iov){ .page = ex->pages - below(3) + below(3), .len = below(5) };
}

/* ACTION, or a part of what a range stands for. */
struct call {
	unsigned int opcode, interface;
	uint64_t flags;
};

/* What became of an entry. */
struct outcome {
	int res;
	unsigned int pages;
	unsigned int good;	/* the first page that was not done */
};

static int model_fill(struct exmap *ex, unsigned int opcode, unsigned int page, unsigned int len,
		      struct outcome *out)
{
	unsigned int missing = 0;

	for (unsigned int i = 0; i < len; i++)
		missing += !is_mapped(ex, page + i);
	if (missing > ex->pool - ex->mapped)
		return -ENOMEM;
	for (unsigned int p = page; p < page + len; p++) {
		if (is_mapped(ex, p))
			continue;
		if (opcode == EXMAP_OP_READ && p * PAGE >= ex->file_size) {
			out->good = out->res ? out->good : p;
			out->res = -ENODATA;
			continue;
		}
		model_map(ex, p, opcode == EXMAP_OP_READ ? &ex->in_file[p] : NULL);
		out->pages++;
	}
	if (page * PAGE < ex->file_size)
		out->res = 0;
	return 0;
}

static void model_free(struct exmap *ex, const struct call *call, unsigned int page,
		       unsigned int len, struct outcome *out)
{
	for (; len; len--, page++) {
		if (!is_mapped(ex, page))
			continue;
		out->pages++;
		if (call->flags & EXMAP_FREE_DEFER)
			ex->due[page] = (struct due){ call->interface, ex->state[page] == KNOWN };
		model_unmap(ex, page);
	}
}

static void model_write(struct exmap *ex, unsigned int page, unsigned int len, struct outcome *out)
{
	for (unsigned int p = page; p < page + len; p++) {
		if (!is_mapped(ex, p) || ex->read_only)
			out->good = out->good < p ? out->good : p;
		if (!is_mapped(ex, p))
			continue;
		if (ex->read_only) {
			out->res = -EBADF;
			continue;
		}
		check_content(ex, p);
		ex->in_file[p] = ex->content[p];
		if (ex->file_size < (p + 1) * PAGE)
			ex->file_size = (p + 1) * PAGE;
		out->pages++;
	}
}

/* Do with the model what an entry asks for. Returns 0, or -ENOMEM: that ends the call. */
static int model_entry(struct exmap *ex, const struct call *call, uint64_t page, unsigned int len,
		       struct outcome *out)
{
	const unsigned int opcode = call->opcode;

	*out = (struct outcome){ .good = page + len };
	if (page > ex->pages || len > ex->pages - page) {
		out->res = -EFAULT;
		return 0;
	}
	if (opcode == EXMAP_OP_FREE)
		model_free(ex, call, page, len, out);
	else if (opcode == EXMAP_OP_WRITE)
		model_write(ex, page, len, out);
	else if (!(call->flags & EXMAP_ALLOC_PROBE) || !len || !is_mapped(ex, page))
		return model_fill(ex, opcode, page, len, out);
	return 0;
}

static bool needs_file(unsigned int opcode)
{
	return opcode == EXMAP_OP_READ || opcode == EXMAP_OP_WRITE;
}

/* What ACTION has returned, and has put in place of the entries, is right. */
static void check_answers(struct exmap *ex, const struct call *call, unsigned int nr, long got,
			  const struct exmap_iov *iov)
{
	int err = needs_file(call->opcode) && ex->file < 0 ? -EOPNOTSUPP : 0;
	struct outcome out;
	uint64_t want;
	long failed = 0;

	for (unsigned int i = 0; i < nr; i++) {
		struct exmap_iov request = me.request[i];

		out = (struct outcome){ };
		if (!err)
			err = model_entry(ex, call, request.page, request.len, &out);
		if (err && !i)
			break;
		if (err)
			out = (struct outcome){ .res = err };
		failed += out.res < 0;
		want = (uint64_t)out.pages << 32 | (uint32_t)out.res;
		if (iov[i].value != want)
			fail("entry %u: res %d, pages %d (%#lx), expected %d, %u", i, iov[i].res,
			     iov[i].pages, iov[i].value, out.res, out.pages);
	}
	if (err && !failed)
		failed = err;
	if (got != failed)
		fail("returned %ld, expected %ld", got, failed);
	if (got < 0 && memcmp(iov, me.request, nr * sizeof(*iov)))
		fail("returned %ld, but entries are overwritten", got);
	if (nr < ENTRIES && iov[nr].value != me.request[nr].value)
		fail("entry %u, after the last, is overwritten", nr);
}

static unsigned int batch(void)
{
	unsigned int kind = below(1024);

	return kind < 900 ? 1 + below(4) : kind < 1020 ? 1 + below(24) : 1 + below(ENTRIES);
}

/* Afterwards, now and then look at a page that the call was about. */
static void check_some(struct exmap *ex, unsigned int nr)
{
	struct exmap_iov entry = me.request[below(nr)];
	uint64_t page = entry.page;

	if (entry.len)
		page += below(entry.len);
	if (page >= ex->pages)
		return;
	if (!is_mapped(ex, page) && one_in(is_due(ex, page) ? 4 : 16))
		check_absent(ex, page);
	else if (is_mapped(ex, page) && one_in(16))
		check_table(ex, page);
	else if (is_mapped(ex, page) && one_in(2))
		model_tag(ex, page);
	else if (is_mapped(ex, page))
		check_content(ex, page);
}

/* Carry out what is in me.request. */
static void do_call(struct exmap *ex, const struct call *call, unsigned int nr)
{
	struct exmap_iov *iov = interface_of(ex, call->interface)->iov;
	long got;

	me.request[nr].value = rnd();
	memcpy(iov, me.request, (nr < ENTRIES ? nr + 1 : nr) * sizeof(*iov));
	got = action(ex, any_fd(ex), call->interface, call->opcode, nr, call->flags);
	check_answers(ex, call, nr, got, iov);
}

static void do_action(struct exmap *ex)
{
	static const uint8_t opcodes[] = {
		EXMAP_OP_ALLOC, EXMAP_OP_FREE, EXMAP_OP_ALLOC, EXMAP_OP_FREE, EXMAP_OP_ALLOC,
		EXMAP_OP_FREE, EXMAP_OP_READ, EXMAP_OP_FREE, EXMAP_OP_READ, EXMAP_OP_WRITE,
	};
	struct call call = { opcodes[below(sizeof(opcodes))], below(ex->interfaces), 0 };
	unsigned int nr = batch();

	if (one_in(8))
		call.flags |= EXMAP_ALLOC_PROBE;
	if (call.opcode == EXMAP_OP_FREE && one_in(2))
		call.flags |= EXMAP_FREE_DEFER;
	/* Of overlapping entries a READ may see, or not, what it has read for the one before. */
	if (call.opcode == EXMAP_OP_READ && call.flags)
		nr = 1;
	for (unsigned int i = 0; i < nr; i++)
		me.request[i] = pick_entry(ex, nr > 32 ? 2 : 4095);
	do_call(ex, &call, nr);
	for (int i = 0; i < 2; i++)
		check_some(ex, nr);
}

static void do_flush(struct exmap *ex)
{
	flush(ex, below(ex->interfaces));
	if (one_in(4))
		model_check_books(ex);
}

/* A page is in the TLB, is freed with its flush put off, and then flushed in one of several ways. */
static void do_defer(struct exmap *ex)
{
	struct call call = { EXMAP_OP_FREE, below(ex->interfaces), EXMAP_FREE_DEFER };
	unsigned int page, len;

	pick(ex, 1, &page, &len);
	if (!is_mapped(ex, page))
		return;
	model_tag(ex, page);
	me.request[0] = (struct exmap_iov){ .page = page, .len = 1 };
	do_call(ex, &call, 1);
	if (one_in(4))
		write_to_absent(ex, page);
	else if (one_in(2))
		check_absent(ex, page);
	if (is_mapped(ex, page))
		return;
	switch (below(4)) {
	case 0:
		flush(ex, call.interface);
		check_absent(ex, page);
		break;
	case 1:
		/* Not where it was, but all are flushed. */
		expect(ex, madvise(address(ex, ex->pages - 1), PAGE, MADV_DONTNEED), 0);
		model_unmap(ex, ex->pages - 1);
		model_flush(ex, NOBODY);
		check_absent(ex, page);
		break;
	case 2:
		call = (struct call){ EXMAP_OP_ALLOC, below(ex->interfaces), 0 };
		me.request[0] = (struct exmap_iov){ .page = page, .len = 1 };
		do_call(ex, &call, 1);
		if (is_mapped(ex, page))
			check_table(ex, page);
		break;
	}
}

static void do_bad_action(struct exmap *ex)
{
	const unsigned int last = ex->interfaces - 1, opcode = below(4), nr = below(3);
	const unsigned int no_free = opcode == EXMAP_OP_FREE ? EXMAP_OP_FLUSH : opcode;
	const unsigned int no_proxy = one_in(2) ? EXMAP_OP_FREE : EXMAP_OP_FLUSH;
	void *wild = (void *)(rnd() >> below(64) | 1UL << 63);
	int fd = any_fd(ex);
	one_of(12);

	or_expect(ex, -EINVAL, action_at(fd, ex->interfaces + below(3000), opcode, nr, 0));
	or_expect(ex, -EINVAL, action_at(fd, last, 5 + below(65531), nr, 0));
	or_expect(ex, -EINVAL, action_at(fd, last, opcode, 513 + below(65023), 0));
	or_expect(ex, -EINVAL, action_at(fd, last, opcode, nr, one_in(8) ? 2 : 8UL << below(61)));
	or_expect(ex, -EINVAL, action_at(fd, last, no_free, nr, EXMAP_FREE_DEFER | below(2)));
	or_expect(ex, -EINVAL, action_at(fd, last, EXMAP_OP_FLUSH, 1 + below(600), 0));
	or_expect(ex, -EINVAL, action_at(fd, last, EXMAP_OP_FLUSH, 0, 1UL << below(64)));
	or_expect(ex, -EINVAL, pread(fd, ex->surface, PAGE, no_proxy << 8 | last));
	or_expect(ex, 0, action_at(fd, last, opcode, 0, below(2)));
	or_expect(ex, -EFAULT, ioctl(fd, EXMAP_IOCTL_ACTION, wild));
	or_expect(ex, -EFAULT, ioctl(fd, EXMAP_IOCTL_STATS, wild));
	or_expect(ex, -EFAULT, ioctl(fd, EXMAP_IOCTL_SETUP, wild));
}

/* What pread and the like return; does it with the model. */
static long model_proxy(struct exmap *ex, unsigned int opcode, const struct iovec *iov,
			unsigned int nr)
{
	const struct call call = { .opcode = opcode };
	struct outcome out;
	long done = 0;
	int err = 0;

	for (unsigned int i = 0; i < nr; i++) {
		unsigned int page = ((char *)iov[i].iov_base - ex->surface) / PAGE;
		unsigned int left = iov[i].iov_len / PAGE, len;

		for (; left; page += len, left -= len) {
			len = left < 4096 ? left : 4096;
			if (model_entry(ex, &call, page, len, &out))
				return done || err == -ENODATA ? done : err ?: -ENOMEM;
			if (err)
				continue;
			done += (out.good - page) * PAGE;
			if (out.good < page + len)
				err = out.res ?: opcode == EXMAP_OP_WRITE ? -EFAULT : -ENODATA;
		}
	}
	return done || err == -ENODATA ? done : err;
}

/* Ranges for the proxy, some wrong ones. Returns the error that the first of those is, or 0. */
static int pick_ranges(struct exmap *ex, struct iovec *iov, unsigned int nr)
{
	unsigned int page, len;
	int err = 0, this;

	for (unsigned int i = 0; i < nr; i++) {
		pick(ex, 4095, &page, &len);
		len += !len;
		iov[i] = (struct iovec){ address(ex, page), len * PAGE };
		this = 0;
		switch (below(100)) {
		case 0:
			iov[i].iov_base = (char *)iov[i].iov_base + 8;
			this = -EINVAL;
			break;
		case 1:
			iov[i].iov_len -= 512;
			this = -EINVAL;
			break;
		case 2:
			iov[i].iov_len = (ex->pages - page + 1) * PAGE;
			this = -EFAULT;
			break;
		case 3:
			iov[i].iov_base = interface_of(ex, 0);
			this = -EFAULT;
			break;
		}
		err = err ?: this;
	}
	return err;
}

static void do_proxy(struct exmap *ex)
{
	static const uint8_t opcodes[] = { EXMAP_OP_READ, EXMAP_OP_READ, EXMAP_OP_ALLOC, EXMAP_OP_WRITE };
	unsigned int opcode = opcodes[below(4)], nr = one_in(4) ? 1 + below(8) : 1;
	uint64_t offset = opcode << 8 | below(ex->interfaces);
	int fd = any_fd(ex);
	struct iovec iov[8];
	long got, want = pick_ranges(ex, iov, nr);

	if (one_in(50)) {
		offset = one_in(2) ? (rnd() >> 1) | 0x10000 : opcode << 8 | (ex->interfaces + below(10));
		want = -EINVAL;
	}
	if (needs_file(opcode) && ex->file < 0 && !(offset >> 16))
		want = -EOPNOTSUPP;
	note(ex, 0, "opcode %ld by preadv or pwritev: fd %ld, at %#lx, %ld ranges: %ld bytes at %ld",
	     opcode, fd, offset, nr, iov[0].iov_len, (char *)iov[0].iov_base - ex->surface);
	if (opcode == EXMAP_OP_WRITE)
		got = nr == 1 ? pwrite(fd, iov[0].iov_base, iov[0].iov_len, offset) :
			pwritev(fd, iov, nr, offset);
	else
		got = nr == 1 ? pread(fd, iov[0].iov_base, iov[0].iov_len, offset) :
			preadv(fd, iov, nr, offset);
	got = counted(got);
	want = want ?: model_proxy(ex, opcode, iov, nr);
	if (got != want)
		fail("returned %ld, expected %ld", got, want);
}

static void do_touch(struct exmap *ex)
{
	unsigned int page, len;

	pick(ex, 8, &page, &len);
	note(ex, 0, "touch %ld+%ld", page, len);
	for (; len; len--, page++) {
		if (!is_mapped(ex, page) && one_in(is_due(ex, page) ? 8 : 32))
			check_absent(ex, page);
		else if (is_mapped(ex, page) && one_in(2))
			model_tag(ex, page);
		else if (is_mapped(ex, page))
			check_content(ex, page);
	}
}

static void do_dontneed(struct exmap *ex)
{
	unsigned int page, len;
	int advice = one_in(2) ? MADV_DONTNEED : MADV_DONTNEED_LOCKED;

	pick(ex, one_in(16) ? 4095 : 16, &page, &len);
	note(ex, 0, "madvise(%ld): %ld+%ld", advice, page, len);
	if (counted(madvise(address(ex, page), len * PAGE, advice)))
		fail("%s", strerror(errno));
	if (len)
		model_flush(ex, NOBODY);
	for (; len; len--)
		model_unmap(ex, page++);
	model_check_books(ex);
}

/* Whatever they return, they change nothing but what a touch might. */
static void do_madvise(struct exmap *ex)
{
	static const uint8_t advices[] = {
		MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, 5, 7, MADV_FREE, MADV_REMOVE,
		MADV_DONTFORK, MADV_DOFORK, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE,
		MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK,
		MADV_COLD, MADV_PAGEOUT, 22 /* MADV_POPULATE_READ */, 23 /* _WRITE */,
		25 /* MADV_COLLAPSE */, 26, 102 /* MADV_GUARD_INSTALL */, 103 /* _REMOVE */,
	};
	int advice = advices[below(sizeof(advices))];
	unsigned int page = 0, len = ex->pages;

	if (one_in(2))
		pick(ex, 64, &page, &len);
	note(ex, 0, "madvise(%ld): %ld+%ld", advice, page, len);
	counted(madvise(address(ex, page), len * PAGE, advice));
	learn_mapped(ex, page, len);
	check_mapped(ex, page, len);
}

/* Soft-dirty: write protection behind the back of all that is mapped. */
static void clear_refs(void)
{
	char what = '1' + below(4);
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);

	note(NULL, 0, "clear_refs: %ld", what - '0');
	if (fd < 0)
		return;
	counted(write(fd, &what, 1));
	close(fd);
}

static void read_file(const char *path)
{
	static __thread char buffer[65536];
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0)
		while (read(fd, buffer, sizeof(buffer)) > 0)
			;
	close(fd);
}

/* What must fail: the surface is one piece, stays where it is and keeps its protection. */
static void cannot_be_split(const struct exmap *ex, unsigned int page, unsigned int len)
{
	const size_t size = ex->pages * PAGE;
	one_of(5);

	if (len == ex->pages)
		return;
	or_expect(ex, -EINVAL, munmap(address(ex, page), len * PAGE));
	or_expect(ex, true, mprotect(address(ex, page), len * PAGE, PROT_READ) == -1 &&
		  (errno == EINVAL || errno == EACCES));
	or_expect(ex, -EACCES, mprotect(ex->surface, size, below(4)));
	or_expect(ex, -EFAULT, mremap(ex->surface, size, size + PAGE, below(2) * MREMAP_MAYMOVE));
	or_expect(ex, -EINVAL, mremap(ex->surface, size, len * PAGE, 0));
}

/* The rest of what can be done to a mapping. Returns true where it may have mapped pages. */
static bool use_mapping(const struct exmap *ex, unsigned int page, unsigned int len)
{
	char *start = address(ex, page);
	const size_t size = len * PAGE;
	static __thread char buffer[PAGE];
	struct iovec here = { buffer, PAGE }, there = { start, PAGE };

	note(ex, 0, "mlock, msync, ...: %ld+%ld", page, len);
	switch (below(8)) {
	case 0:
		counted(mlock(start, size));
		return true;
	case 1:
		counted(munlock(start, size));
		break;
	case 2:
		counted(msync(start, size, one_in(2) ? MS_SYNC | MS_INVALIDATE : MS_ASYNC));
		break;
	case 3:
	case 4:
		counted(process_vm_readv(getpid(), &here, 1, &there, 1, 0));
		return true;
	case 5:
		counted(readahead(any_fd(ex), 0, size));
		break;
	case 6:
		clear_refs();
		break;
	default:
		read_file(one_in(2) ? "/proc/self/smaps" : "/proc/self/numa_maps");
	}
	return false;
}

static void do_mapping(struct exmap *ex)
{
	unsigned int page, len;

	pick(ex, 64, &page, &len);
	if (!len)
		return;
	if (one_in(2))
		cannot_be_split(ex, page, len);
	else if (use_mapping(ex, page, len))
		learn_mapped(ex, page, len);
	check_mapped(ex, page, len);
}

/*
 * What is in a page that is pinned stays there, whatever becomes of its place. A fresh one takes
 * its place in the pool, for which there is room in RLIMIT_MEMLOCK.
 */
static void do_pin(struct exmap *ex)
{
	struct call call = { EXMAP_OP_FREE, below(ex->interfaces), one_in(2) ? EXMAP_FREE_DEFER : 0 };
	unsigned int page = below(ex->pages);
	uint64_t was, got;
	struct iovec range = { address(ex, page), PAGE };
	int ends[2];

	if (!is_mapped(ex, page))
		return;
	model_tag(ex, page);
	was = ex->content[page].first;
	die_if(pipe2(ends, O_CLOEXEC));
	if (counted(vmsplice(ends[1], &range, 1, 0)) == PAGE) {
		me.request[0] = (struct exmap_iov){ .page = page, .len = 1 };
		do_call(ex, &call, 1);
		for (int i = 0; i < 4; i++) {
			do_action(ex);
			do_touch(ex);
		}
		die_if(read(ends[0], &got, sizeof(got)) != sizeof(got));
		if (got != was)
			fail("page %u was pinned and holds %#lx, expected %#lx", page, got, was);
	}
	close(ends[0]);
	close(ends[1]);
}

/* A new descriptor for an exmap, with that number. */
static void make_clone(struct exmap *ex, int from, unsigned int nr)
{
	int fd = open("/dev/exmap", O_RDWR | O_CLOEXEC);

	die_if(fd < 0);
	expect(ex, ioctl(fd, EXMAP_IOCTL_CLONE, from), 0);
	die_if(dup3(fd, fd_of(ex, nr), O_CLOEXEC) < 0);
	close(fd);
}

static void do_clone(struct exmap *ex)
{
	int fd = any_fd(ex);
	one_of(8);

	or_expect(ex, -EINVAL, ioctl(fd, EXMAP_IOCTL_CLONE, fd));
	or_expect(ex, -EINVAL, ioctl(fd, EXMAP_IOCTL_CLONE, 1));
	or_expect(ex, -EBADF, ioctl(fd, EXMAP_IOCTL_CLONE, one_in(2) ? -1 : 99));
	or_expect(ex, ex == exmaps ? -EINVAL : -EBUSY, ioctl(fd, EXMAP_IOCTL_CLONE, fd_of(exmaps, 0)));
	if (n_ < 2 && ex->fds < FDS) {
		make_clone(ex, fd, ex->fds++);
	} else if (n_ < 4 && ex->fds > 1) {
		/* Any of them will do. */
		ex->fds--;
		die_if(dup3(fd_of(ex, ex->fds), fd_of(ex, below(ex->fds)), O_CLOEXEC) < 0);
		close(fd_of(ex, ex->fds));
	}
}

static void do_file(struct exmap *ex)
{
	int fd = any_fd(ex);
	unsigned int page;

	if (ex->file < 0 || one_in(4)) {
		expect(ex, one_in(2) ? fsync(fd) : fdatasync(fd), ex->file < 0 ? -EOPNOTSUPP : 0);
		return;
	}
	/* A new end, not in the words that matter. */
	page = one_in(2) ? below(ex->pages) : ex->file_size / PAGE;
	ex->file_size = page * PAGE + (one_in(2) ? 0 : 8 + below(PAGE - 16));
	note(ex, 0, "ftruncate to %ld", ex->file_size);
	die_if(ftruncate(ex->file, ex->file_size));
	if (page >= ex->pages)
		return;
	if (ex->file_size % PAGE)
		ex->in_file[page++].last = 0;
	memset(&ex->in_file[page], 0, (ex->pages - page) * sizeof(ex->in_file[0]));
}

/* Everything else that has to be refused. */
static void do_odd(struct exmap *ex)
{
	const uint64_t interface = EXMAP_OFF_INTERFACE(0), none = EXMAP_OFF_INTERFACE(ex->interfaces);
	const size_t size = ex->pages * PAGE;
	const int fd = any_fd(ex), all = PROT_READ | PROT_WRITE;
	void *extra;
	one_of(8);

	or_expect(ex, -ENOTTY, ioctl(fd, rnd(), 0));
	or_expect(ex, -EBUSY, setup(fd, -1, 1, 1, 0));
	or_expect(ex, -EBUSY, mmap(NULL, size, all, MAP_SHARED, fd, EXMAP_OFF_EXMAP));
	or_expect(ex, -ENXIO, mmap(NULL, PAGE, all, MAP_SHARED, fd, none + below(2000) * PAGE));
	or_expect(ex, -EINVAL, mmap(NULL, 2 * PAGE, all, MAP_SHARED, fd, interface));
	or_expect(ex, -EINVAL, mmap(NULL, PAGE, all, MAP_PRIVATE, fd, interface));
	or_expect(ex, -EINVAL, mmap(NULL, PAGE, all, MAP_SHARED, fd, EXMAP_OFF_PTEXPORT));
	if (n_)
		return;
	note(ex, 0, "mmap of interface 0 once more");
	extra = mmap(NULL, PAGE, all, MAP_SHARED, fd, interface);
	if (extra == MAP_FAILED || memcmp(extra, interface_of(ex, 0), PAGE))
		fail("not the same page");
	counted(munmap(extra, PAGE));
}

/* A child can do nothing with it. Returns which check failed, or 0. */
static int check_child(const struct exmap *ex, unsigned int page)
{
	struct content content;
	uint64_t between;
	struct exmap_ioctl_stats stats;
	int fd = fd_of(ex, 0);

	if (action_at(fd, 0, EXMAP_OP_FREE, 1, 0) != -1 || errno != EPERM)
		return 1;
	if (ioctl(fd, EXMAP_IOCTL_STATS, &stats) != -1 || errno != EPERM)
		return 2;
	if (pread(fd, ex->surface, PAGE, EXMAP_OP_ALLOC << 8) != -1 || errno != EPERM)
		return 3;
	if (mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, EXMAP_OFF_INTERFACE(0)) != MAP_FAILED)
		return 4;
	if (load(ex, page, &content, &between) != SIGSEGV)
		return 5;
	if (action_at(fd, 0, EXMAP_OP_FLUSH, 0, 0) != -1 || errno != EPERM)
		return 6;
	return 0;
}

static void do_fork(struct exmap *ex)
{
	unsigned int page = below(ex->pages);
	int status;
	pid_t pid;

	note(ex, 0, "fork, page %ld", page);
	pid = fork();
	if (!pid)
		_exit(check_child(ex, page));
	die_if(pid < 0 || waitpid(pid, &status, 0) != pid);
	if (status)
		fail("the child's status is %#x", status);
}

/* A file that ends somewhere, with tags here and there. */
static int make_file(struct exmap *ex)
{
	char path[] = "/tmp/test-fuzz-XXXXXX";
	bool in_memory = one_in(2);
	int backing;

	ex->file = in_memory ? memfd_create("test-fuzz", MFD_CLOEXEC) : mkostemp(path, O_CLOEXEC);
	die_if(ex->file < 0);
	ex->read_only = !in_memory && one_in(4);
	backing = ex->read_only ? open(path, O_RDONLY | O_CLOEXEC) : ex->file;
	die_if(backing < 0);
	if (!in_memory)
		unlink(path);
	ex->file_size = 8 * below(ex->pages * PAGE / 8);
	if (ex->file_size % PAGE == 0 || ex->file_size % PAGE == PAGE - 8)
		ex->file_size += 16;
	for (unsigned int i = 0; i < 64; i++) {
		unsigned int page = below(ex->pages);
		uint64_t words[WORDS] = { new_tag(ex, page), [WORDS - 1] = new_tag(ex, page) };

		ex->in_file[page] = (struct content){ words[0], words[WORDS - 1] };
		die_if(pwrite(ex->file, words, PAGE, page * PAGE) != PAGE);
	}
	die_if(ftruncate(ex->file, ex->file_size));
	for (unsigned int page = ex->file_size / PAGE; page < ex->pages; page++) {
		ex->in_file[page].last = 0;
		if (page * PAGE >= ex->file_size)
			ex->in_file[page].first = 0;
	}
	return backing;
}

static void choose(struct exmap *ex)
{
	static const unsigned int pages[] = {
		1, 5, 511, 512, 513, 1000, 2000, 4096, 4099, 9000, MAX_PAGES,
	};
	static const unsigned int pools[] = {
		1, 2, 3, 10, 64, 100, 500, 512, 513, 600, 1100, 2000, MAX_POOL,
	};
	static unsigned int number;

	ex->number = number++ % 1024;
	ex->pages = pages[below(sizeof(pages) / sizeof(pages[0]))];
	ex->pool = pools[below(sizeof(pools) / sizeof(pools[0]))];
	ex->interfaces = one_in(2) ? 1 : 1 + below(MAX_INTERFACES);
	ex->flags = one_in(4) ? EXMAP_PAGEFAULT_ALLOC : 0;
	ex->surface = window_of(ex) + below(512) * PAGE;
	ex->file = -1;
	ex->read_only = false;
	ex->mapped = 0;
	ex->hot = below(ex->pages);
	ex->file_size = 0;
	memset(ex->state, 0, sizeof(ex->state));
	memset(ex->due, NOBODY, sizeof(ex->due));
	memset(ex->in_file, 0, sizeof(ex->in_file));
}

static void bad_setup(struct exmap *ex, int fd)
{
	one_of(8);

	or_expect(ex, -EINVAL, setup(fd, -1, one_in(2) ? 0 : 1025, 10, 0));
	or_expect(ex, -EINVAL, setup(fd, -1, 1, one_in(2) ? 0 : 1UL << 60, 0));
	or_expect(ex, -EBADF, setup(fd, 99, 1, 10, 0));
	or_expect(ex, -EBADF, action_at(fd, 0, EXMAP_OP_ALLOC, 1, 0));
	or_expect(ex, -EBADF, action_at(fd, 0, EXMAP_OP_FLUSH, 0, 0));
	or_expect(ex, -EBADF, pread(fd, ex->surface, PAGE, 0));
	or_expect(ex, -ENXIO, mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, EXMAP_OFF_INTERFACE(0)));
	or_expect(ex, -EBADF, ioctl(fd, EXMAP_IOCTL_STATS, interface_of(ex, 0)));
}

/* A word for SETUP with which these flags hold: one with an unknown bit counts as 0. */
static uint64_t flags_word(uint64_t flags)
{
	return flags || one_in(2) ? flags :
		1UL << (2 + below(62)) | (one_in(2) ? EXMAP_PAGEFAULT_ALLOC : 0);
}

/* Make an exmap as chosen, with all interfaces and one descriptor. */
static void make(struct exmap *ex, int backing)
{
	bool surface_first = one_in(2);
	int fd = open("/dev/exmap", O_RDWR | O_CLOEXEC);

	die_if(fd < 0);
	if (one_in(4))
		bad_setup(ex, fd);
	if (surface_first)
		expect(ex, map(ex->surface, ex->pages * PAGE, fd, EXMAP_OFF_EXMAP), (long)ex->surface);
	if (one_in(4))
		bad_setup(ex, fd);
	expect(ex, setup(fd, backing, ex->interfaces, ex->pool, flags_word(ex->flags)), 0);
	for (unsigned int i = 0; i < ex->interfaces; i++)
		expect(ex, map(interface_of(ex, i), PAGE, fd, EXMAP_OFF_INTERFACE(i)),
		       (long)interface_of(ex, i));
	if (!surface_first) {
		expect(ex, action_at(fd, 0, EXMAP_OP_ALLOC, 1, 0), -EPROTO);
		expect(ex, action_at(fd, 0, EXMAP_OP_FREE, 1, EXMAP_FREE_DEFER), -EPROTO);
		expect(ex, action_at(fd, 0, EXMAP_OP_FLUSH, 0, 0), -EPROTO);
		expect(ex, map(ex->surface, ex->pages * PAGE, fd, EXMAP_OFF_EXMAP), (long)ex->surface);
	}
	die_if(dup3(fd, fd_of(ex, 0), O_CLOEXEC) < 0);
	close(fd);
	ex->fds = 1;
}

static void model_make(struct exmap *ex)
{
	int backing = -1;

	choose(ex);
	if (one_in(2))
		backing = make_file(ex);
	make(ex, backing);
	if (backing != ex->file)
		close(backing);
}

static void close_fds(struct exmap *ex)
{
	for (unsigned int i = 0; i < ex->fds; i++)
		expect(ex, close(fd_of(ex, i)), 0);
	ex->fds = 0;
	if (ex->file >= 0)
		close(ex->file);
	ex->file = -1;
}

static void unmap_interfaces(struct exmap *ex)
{
	note(ex, 0, "unmap the interfaces");
	die_if(mmap(interface_of(ex, 0), MAX_INTERFACES * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED);
}

/* Take the surface away, in one of several ways. */
static void unmap_surface(struct exmap *ex)
{
	const size_t size = ex->pages * PAGE;

	if (one_in(4)) {
		expect(ex, mremap(ex->surface, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere),
		       -EINVAL);
		reserve(elsewhere, MAX_PAGES * PAGE);
	}
	if (one_in(2))
		expect(ex, munmap(ex->surface, size), 0);
	expect(ex, reserve(ex->surface, size), (long)ex->surface);
}

static void check_dead(struct exmap *ex)
{
	int fd = any_fd(ex);

	ex->mapped = 0;
	check_stats(ex);
	for (unsigned int opcode = 0; opcode < 4; opcode++)
		if (!needs_file(opcode) || ex->file >= 0)
			expect(ex, action_at(fd, 0, opcode, 1, 0), -EPROTO);
	expect(ex, action_at(fd, 0, EXMAP_OP_FREE, 1, EXMAP_FREE_DEFER), -EPROTO);
	expect(ex, action_at(fd, 0, EXMAP_OP_FLUSH, 0, 0), -EPROTO);
	check_books(ex, 0, 0);
	if (ex->file >= 0)
		expect(ex, pread(fd, ex->surface, PAGE, 0), -EPROTO);
}

static void do_replace(struct exmap *ex)
{
	bool fds_first = one_in(2);

	if (one_in(4))
		check_all(ex);
	if (one_in(2))
		unmap_interfaces(ex);
	if (fds_first) {
		close_fds(ex);
		for (unsigned int page = 0; page < ex->pages; page += 1 + below(100))
			if (is_mapped(ex, page))
				check_content(ex, page);
	}
	unmap_surface(ex);
	if (!fds_first) {
		check_dead(ex);
		close_fds(ex);
	}
	unmap_interfaces(ex);
	model_make(ex);
}

struct step {
	unsigned int weight;
	void (*run)(struct exmap *ex);
};

static void run_step(const struct step *step, struct exmap *ex)
{
	unsigned int choice = below(10000);

	for (; choice >= step->weight; step++)
		choice -= step->weight;
	step->run(ex);
}

static void run_model(unsigned long calls)
{
	static const struct step steps[] = {
		{ 350, do_bad_action }, { 1000, do_proxy }, { 1500, do_touch }, { 60, do_dontneed },
		{ 40, do_madvise }, { 40, do_mapping }, { 40, do_clone }, { 60, do_file },
		{ 50, do_odd }, { 30, do_pin }, { 2, do_fork }, { 5, do_replace },
		{ 300, do_defer }, { 60, do_flush }, { 10000, do_action },
	};

	for (struct exmap *ex = exmaps; ex < exmaps + SLOTS; ex++)
		model_make(ex);
	while (atomic_load(me.calls) < calls) {
		struct exmap *ex = &exmaps[below(SLOTS)];

		run_step(steps, ex);
		if (one_in(256))
			ex->hot = below(ex->pages);
		if (one_in(3))
			check_stats(ex);
		if (one_in(64))
			model_check_books(ex);
		if (one_in(6)) {
			unsigned int page = below(ex->pages), nr = 1 + below(64);

			check_mapped(ex, page, nr < ex->pages - page ? nr : ex->pages - page);
		}
		if (one_in(1500))
			check_all(ex);
	}
	for (struct exmap *ex = exmaps; ex < exmaps + SLOTS; ex++)
		check_all(ex);
}

/*
 * Several threads
 */
static pthread_barrier_t pause_begins, pause_ends;
static atomic_bool enough;

/* What everybody maps and unmaps: all that is after the stripes. */
static unsigned int first_shared(void)
{
	return options.threads * STRIPE;
}

static void pick_shared(const struct exmap *ex, unsigned int *page, unsigned int *len)
{
	unsigned int first = first_shared(), pages = ex->pages - first;

	*page = first + (pages ? one_in(2) ? below(HOT) : below(pages) : 0);
	*len = one_in(64) ? below(4096) : 1 + below(16);
	if (*len > ex->pages - *page)
		*len = ex->pages - *page;
}

static unsigned int shared_interface(void)
{
	return options.threads + below(SHARED);
}

/* A generation of an exmap in which this thread knows its stripe; false where there is none. */
static bool enter_stripe(struct exmap *ex, unsigned int *generation)
{
	const unsigned int slot = ex - exmaps;
	struct exmap_iov *iov = interface_of(ex, me.number)->iov;

	*generation = atomic_load(&ex->generation);
	if (*generation % 2)
		return false;
	if (*generation == me.generation[slot])
		return true;
	/* What came too late for the last one may be there. */
	me.request[0] = iov[0] = (struct exmap_iov){ .page = me.number * STRIPE, .len = STRIPE };
	if (action(ex, fd_of(ex, 0), me.number, EXMAP_OP_FREE, 1, 0))
		return false;
	if (atomic_load(&ex->generation) != *generation)
		return false;
	me.generation[slot] = *generation;
	me.owned[slot] = 0;
	me.due[slot] = ~0UL;
	return true;
}

/* Whether it is right that there were no pages left. */
static bool may_be_empty(const struct exmap *ex, long ret)
{
	return ret == -ENOMEM && !ex->quota;
}

/* Whether a thread may map these pages of its stripe, too. */
static bool within_quota(const struct exmap *ex, uint64_t mask)
{
	return !ex->quota || __builtin_popcountl(me.owned[ex - exmaps] | mask) <= (int)ex->quota;
}

/* Whether nothing has happened to it since. If so, what is wrong is a failure. */
static bool still(struct exmap *ex, unsigned int generation)
{
	return atomic_load(&ex->generation) == generation;
}

/* A page of the stripe holds a tag of its own place, whoever wrote that last. */
static void check_owned(struct exmap *ex, unsigned int generation, unsigned int page, bool is_new)
{
	struct content got;
	uint64_t between;
	int number = load(ex, page, &got, &between);

	if (!still(ex, generation))
		return;
	if (number)
		fail("page %u is mapped, and a touch is signal %d", page, number);
	check_own(ex, page, got, between);
	if ((!is_new && (!got.first || !got.last)) ||
	    (got.first && (got.first >> 20 & 0xffff) != page) ||
	    (got.last && (got.last >> 20 & 0xffff) != page))
		fail("page %u holds %#lx and %#lx, of another page", page, got.first, got.last);
}

/* A page of the stripe is not there. What waits for its flush is at least nobody else's. */
static void check_not_owned(struct exmap *ex, unsigned int generation, unsigned int page)
{
	bool due = me.due[ex - exmaps] >> page % STRIPE & 1;
	struct content got;
	uint64_t between;

	/* Any other thread's touch may map it. */
	if (ex->flags & EXMAP_PAGEFAULT_ALLOC)
		return;
	if (load(ex, page, &got, &between) || !still(ex, generation))
		return;
	if (!due)
		fail("page %u is not mapped, and a touch finds %#lx", page, got.first);
	check_own(ex, page, got, between);
	if ((got.first >> 20 & 0xffff) != page || (got.last >> 20 & 0xffff) != page)
		fail("page %u was freed, and before the flush holds %#lx and %#lx, of another page",
		     page, got.first, got.last);
}

/* What is mapped is what touches find. */
static void check_owned_table(struct exmap *ex, unsigned int generation, unsigned int page)
{
	uint64_t word;

	if (!load_by_table(ex, page, &word) || !still(ex, generation))
		return;
	if (!is_own(ex, word) || (word >> 20 & 0xffff) != page)
		fail("page %u holds %#lx, and what touches find is another one", page, word);
}

static void tag_owned(struct exmap *ex, unsigned int generation, unsigned int page)
{
	int number = store(ex, page, new_tag(ex, page));

	if (number && still(ex, generation))
		fail("page %u is mapped, and a touch is signal %d", page, number);
	if (one_in(4))
		check_owned_table(ex, generation, page);
}

/* An entry that went well. */
static void own_entry(struct exmap *ex, unsigned int generation, unsigned int opcode, bool defer,
		      unsigned int page, unsigned int len, struct exmap_iov answer)
{
	uint64_t mask = (len < 64 ? (1UL << len) - 1 : ~0UL) << page;
	uint64_t *owned = &me.owned[ex - exmaps], *due = &me.due[ex - exmaps];
	bool fills = opcode == EXMAP_OP_ALLOC || opcode == EXMAP_OP_READ;
	uint64_t done = fills ? mask & ~*owned : mask & *owned;
	unsigned int first = me.number * STRIPE;

	/* Where a touch maps a page, another thread may have been first. */
	if (answer.pages != __builtin_popcountl(done) && !(ex->flags & EXMAP_PAGEFAULT_ALLOC))
		fail("%u+%u: pages %d, expected %d", first + page, len, answer.pages,
		     __builtin_popcountl(done));
	if (opcode == EXMAP_OP_FREE)
		*owned &= ~mask;
	else if (fills)
		*owned |= mask;
	if (defer)
		*due |= done;
	else if (fills)
		*due &= ~mask;
	for (; fills && done; done &= done - 1) {
		page = first + __builtin_ctzl(done);
		if (opcode == EXMAP_OP_READ && !(ex->flags & EXMAP_PAGEFAULT_ALLOC))
			check_owned(ex, generation, page, true);
		tag_owned(ex, generation, page);
	}
}

/* Carry out what is in me.request, on the thread's own stripe: it is known what comes of it. */
static void own_call(struct exmap *ex, unsigned int generation, unsigned int opcode, bool defer,
		     unsigned int nr)
{
	struct exmap_iov *entries = interface_of(ex, me.number)->iov, iov[4];
	long got, failed = 0;

	memcpy(entries, me.request, nr * sizeof(*iov));
	got = action(ex, fd_of(ex, below(FDS)), me.number, opcode, nr, defer ? EXMAP_FREE_DEFER : 0);
	/* Before the interface may be unmapped. */
	memcpy(iov, entries, nr * sizeof(*iov));
	if (!still(ex, generation))
		return;
	if (got < 0) {
		if ((needs_file(opcode) && ex->file < 0 ? got != -EOPNOTSUPP : !may_be_empty(ex, got)) &&
		    still(ex, generation))
			fail("returned %ld", got);
		return;
	}
	for (unsigned int i = 0; i < nr; i++) {
		if (iov[i].res && (!may_be_empty(ex, iov[i].res) || iov[i].pages))
			fail("entry %u: res %d, pages %d", i, iov[i].res, iov[i].pages);
		failed += iov[i].res != 0;
		if (!iov[i].res)
			own_entry(ex, generation, opcode, defer, me.request[i].page % STRIPE,
				  me.request[i].len, iov[i]);
	}
	if (got != failed && still(ex, generation))
		fail("returned %ld, expected %ld", got, failed);
}

static void own_action(struct exmap *ex)
{
	static const uint8_t opcodes[] = {
		EXMAP_OP_ALLOC, EXMAP_OP_FREE, EXMAP_OP_ALLOC, EXMAP_OP_FREE, EXMAP_OP_READ, EXMAP_OP_WRITE,
	};
	unsigned int opcode = opcodes[below(sizeof(opcodes))], generation, page;
	unsigned int nr = ex->quota ? 1 : 1 + below(4), most = ex->quota ? 1 + below(2) : 8;

	if (!enter_stripe(ex, &generation))
		return;
	for (unsigned int i = 0; i < nr; i++) {
		page = below(STRIPE);
		me.request[i] = (struct exmap_iov){
			.page = me.number * STRIPE + page, .len = 1 + below(STRIPE - page) % most,
		};
		if (!within_quota(ex, ((1UL << me.request[i].len) - 1) << page))
			opcode = EXMAP_OP_FREE;
	}
	own_call(ex, generation, opcode, opcode == EXMAP_OP_FREE && one_in(2), nr);
}

/* The same at an interface that others free pages at, which ranges need no entries for. */
static void own_proxy(struct exmap *ex)
{
	unsigned int opcode = ex->file >= 0 && one_in(4) ? EXMAP_OP_READ : EXMAP_OP_ALLOC, generation;
	unsigned int first = below(STRIPE), len = 1 + below(STRIPE - first) % (ex->quota ? 2 : 8);
	unsigned int page = me.number * STRIPE + first;
	uint64_t mask = ((1UL << len) - 1) << first, done;
	long got;

	if (!enter_stripe(ex, &generation) || !within_quota(ex, mask))
		return;
	note(ex, 0, "opcode %ld by pread, own stripe: %ld+%ld", opcode, page, len);
	got = counted(pread(fd_of(ex, below(FDS)), address(ex, page), len * PAGE,
			    opcode << 8 | shared_interface()));
	if (!still(ex, generation) || may_be_empty(ex, got))
		return;
	if (got != (long)(len * PAGE))
		fail("returned %ld, expected %lu", got, len * PAGE);
	done = mask & ~me.owned[ex - exmaps];
	me.owned[ex - exmaps] |= mask;
	me.due[ex - exmaps] &= ~mask;
	for (uint64_t left = done; left; left &= left - 1)
		tag_owned(ex, generation, me.number * STRIPE + __builtin_ctzl(left));
	/* Whoever can still write to them by a stale TLB entry, does. */
	for (int i = 0; i < 16; i++)
		for (uint64_t left = done; left; left &= left - 1)
			check_owned(ex, generation, me.number * STRIPE + __builtin_ctzl(left), false);
}

static void own_touch(struct exmap *ex)
{
	unsigned int page, generation;

	note(ex, 0, "look at the stripe");
	if (!enter_stripe(ex, &generation))
		return;
	for (int i = 0; i < 4; i++) {
		page = below(STRIPE);
		if (me.owned[ex - exmaps] >> page & 1)
			check_owned(ex, generation, me.number * STRIPE + page, false);
		else
			check_not_owned(ex, generation, me.number * STRIPE + page);
	}
}

/* All that waits for it is flushed; then no touch finds what was there. */
static void own_flush(struct exmap *ex)
{
	uint64_t was;
	unsigned int generation;
	long got;

	if (!enter_stripe(ex, &generation))
		return;
	got = action(ex, fd_of(ex, below(FDS)), me.number, EXMAP_OP_FLUSH, 0, 0);
	if (!still(ex, generation))
		return;
	if (got)
		fail("returned %ld", got);
	was = me.due[ex - exmaps];
	me.due[ex - exmaps] = 0;
	for (; was; was &= was - 1)
		check_not_owned(ex, generation, me.number * STRIPE + __builtin_ctzl(was));
}

/* A page is in the TLB, is freed with its flush put off, and mapped again. */
static void own_defer(struct exmap *ex)
{
	unsigned int page = below(STRIPE), generation;

	if (!enter_stripe(ex, &generation) || !(me.owned[ex - exmaps] >> page & 1))
		return;
	page += me.number * STRIPE;
	tag_owned(ex, generation, page);
	me.request[0] = (struct exmap_iov){ .page = page, .len = 1 };
	own_call(ex, generation, EXMAP_OP_FREE, true, 1);
	check_not_owned(ex, generation, page);
	if (still(ex, generation))
		own_call(ex, generation, EXMAP_OP_ALLOC, false, 1);
}

/* Any page, of others' stripes, too. */
static void any_touch(struct exmap *ex)
{
	struct content got;
	unsigned int page;
	uint64_t between;

	note(ex, 0, "touch any page");
	for (int i = 0; i < 4; i++) {
		page = one_in(2) ? below(first_shared() + 64) : below(ex->pages);
		if (one_in(2))
			store(ex, page, new_tag(ex, page));
		else if (!load(ex, page, &got, &between))
			check_own(ex, page, got, between);
	}
}

/* Write to a page until it is freed, or somewhat longer where that has not reached this CPU. */
static void any_hammer(struct exmap *ex)
{
	unsigned int page = first_shared() + below(HOT);
	uint64_t tag = new_tag(ex, page);

	note(ex, 0, "write to page %ld, over and over", page);
	for (int i = 0; i < 1000; i++)
		if (store(ex, page, tag))
			break;
}

/* Entries for others, or for nobody. */
static void any_entries(struct exmap *ex)
{
	struct exmap_iov *iov = interface_of(ex, shared_interface())->iov;
	unsigned int page, len;

	for (unsigned int i = 1 + below(16); i; i--) {
		pick_shared(ex, &page, &len);
		if (one_in(16))
			page = ex->pages + below(100);
		iov[one_in(4) ? below(ENTRIES) : below(16)] = (struct exmap_iov){ .page = page, .len = len };
	}
}

static bool may_fail_with(long ret)
{
	return ret == -ENOMEM || ret == -EPROTO || ret == -EBADF || ret == -EOPNOTSUPP || ret == -EFAULT;
}

static void any_action(struct exmap *ex)
{
	unsigned int nr = one_in(16) ? below(ENTRIES + 1) : 1 + below(8), interface = shared_interface();
	unsigned int opcode = one_in(3) ? EXMAP_OP_FREE : below(4);
	uint64_t flags = below(2);
	long got;

	if (opcode == EXMAP_OP_FREE && one_in(2))
		flags |= EXMAP_FREE_DEFER;
	any_entries(ex);
	note(ex, 0, "ACTION at shared interface %ld", interface);
	got = counted(action_at(fd_of(ex, below(FDS)), interface, opcode, nr, flags));
	if (got > nr || (got < 0 && !may_fail_with(got)))
		fail("returned %ld", got);
}

/* At any interface, which may be another thread's own. */
static void any_flush(struct exmap *ex)
{
	unsigned int interface = below(options.threads + SHARED);
	long got;

	note(ex, 0, "FLUSH at interface %ld", interface);
	got = counted(action_at(fd_of(ex, below(FDS)), interface, EXMAP_OP_FLUSH, 0, 0));
	if (got && !may_fail_with(got))
		fail("returned %ld", got);
}

static void any_proxy(struct exmap *ex)
{
	static const uint8_t opcodes[] = { EXMAP_OP_READ, EXMAP_OP_ALLOC, EXMAP_OP_WRITE };
	unsigned int opcode = opcodes[below(3)], page, len;
	uint64_t offset = opcode << 8 | shared_interface();
	long got;

	pick_shared(ex, &page, &len);
	note(ex, 0, "opcode %ld by pread or pwrite: %ld+%ld", opcode, page, len);
	if (opcode == EXMAP_OP_WRITE)
		got = pwrite(fd_of(ex, below(FDS)), address(ex, page), len * PAGE, offset);
	else
		got = pread(fd_of(ex, below(FDS)), address(ex, page), len * PAGE, offset);
	got = counted(got);
	/* Other threads may map and free a page each time that it is read. */
	if (opcode == EXMAP_OP_READ && got == -EBUSY)
		return;
	if (got > (long)(len * PAGE) || (got > 0 && got % PAGE) || (got < 0 && !may_fail_with(got)))
		fail("returned %ld", got);
}

static void any_stats(struct exmap *ex)
{
	struct exmap_ioctl_stats stats;
	unsigned int generation = atomic_load(&ex->generation), pool = ex->pool;
	long got = counted(ioctl(fd_of(ex, 0), EXMAP_IOCTL_STATS, &stats));

	note(ex, 0, "STATS");
	/* The sum is not exact while others are at work: in each that may be one call off. */
	if (generation % 2 == 0 && still(ex, generation) && (got || stats.buffer_size != pool))
		fail("returned %ld, buffer_size %lu", got, stats.buffer_size);
}

static void any_madvise(struct exmap *ex)
{
	static const uint8_t advices[] = {
		MADV_DONTNEED, MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_NORMAL, MADV_RANDOM, MADV_COLD,
		MADV_PAGEOUT, MADV_FREE, MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK, 22, 23, 25,
	};
	unsigned int page, len;
	int advice = advices[below(sizeof(advices))];

	pick_shared(ex, &page, &len);
	note(ex, 0, "madvise(%ld): %ld+%ld", advice, page, len);
	counted(madvise(address(ex, page), len * PAGE, advice));
}

/* What would make a hole where the surface is not must not come while it is replaced. */
static void any_mapping(struct exmap *ex)
{
	unsigned int page, len;

	if (pthread_rwlock_tryrdlock(&ex->lock))
		return;
	pick_shared(ex, &page, &len);
	if (len && one_in(2))
		cannot_be_split(ex, page, len);
	else if (len)
		use_mapping(ex, page, len);
	pthread_rwlock_unlock(&ex->lock);
}

static void any_clone(struct exmap *ex)
{
	if (pthread_rwlock_tryrdlock(&ex->lock))
		return;
	make_clone(ex, fd_of(ex, 0), 1 + below(FDS - 1));
	pthread_rwlock_unlock(&ex->lock);
}

static void any_fork(struct exmap *ex)
{
	if (pthread_rwlock_tryrdlock(&ex->lock))
		return;
	do_fork(ex);
	pthread_rwlock_unlock(&ex->lock);
}

/*
 * The last of them has stripes only, and just the pages that all may have: one that is free,
 * wherever it is, is always for somebody.
 */
static void shared_make(struct exmap *ex)
{
	unsigned int slot = ex - exmaps, first = first_shared();

	ex->number = slot;
	ex->quota = slot == SLOTS - 1 ? 1 + below(4) : 0;
	ex->pages = ex->quota ? first : 2 * MAX_THREADS * STRIPE + below(4096);
	ex->pool = ex->quota ? ex->quota * options.threads :
		one_in(2) ? first / 2 + below(first) : 1 + below(3000);
	ex->interfaces = options.threads + SHARED;
	ex->flags = slot == 0 ? EXMAP_PAGEFAULT_ALLOC : 0;
	ex->surface = window_of(ex) + (slot * 100 + 1) * PAGE;
	ex->file = -1;
	ex->read_only = false;
	if (slot % 2 == 0) {
		ex->file = memfd_create("test-fuzz", MFD_CLOEXEC);
		die_if(ex->file < 0 || ftruncate(ex->file, (first + below(ex->pages - first)) * PAGE + 100));
	}
	make(ex, ex->file);
	for (; ex->fds < FDS; ex->fds++)
		make_clone(ex, fd_of(ex, 0), ex->fds);
}

static void replace(struct exmap *ex)
{
	bool surface_first = one_in(2);

	if (pthread_rwlock_trywrlock(&ex->lock))
		return;
	atomic_fetch_add(&ex->generation, 1);
	if (one_in(2))
		unmap_interfaces(ex);
	if (surface_first)
		reserve(ex->surface, ex->pages * PAGE);
	close_fds(ex);
	if (!surface_first)
		reserve(ex->surface, ex->pages * PAGE);
	unmap_interfaces(ex);
	shared_make(ex);
	atomic_fetch_add(&ex->generation, 1);
	pthread_rwlock_unlock(&ex->lock);
}

/* A call that comes too late would have pages beyond its thread's quota. */
static void any_replace(struct exmap *ex)
{
	if (!ex->quota)
		replace(ex);
}

/* All have paused: it must add up, and all that is there be its own. */
static void check_sum(struct exmap *ex)
{
	const unsigned char *seen = look(ex, 0, ex->pages);
	unsigned long count = stats_count(ex, fd_of(ex, 0)), mapped = 0;
	bool flushed = one_in(2);
	struct content got;
	uint64_t between;

	for (unsigned int page = 0; page < ex->pages; page++) {
		if (!(seen[page] & 1))
			continue;
		mapped++;
		if (load(ex, page, &got, &between))
			fail("page %u is mapped, and cannot be read", page);
		check_own(ex, page, got, between);
	}
	if (count != mapped || mapped > ex->pool)
		fail("alloc_count is %lu, and %lu pages are mapped", count, mapped);
	check_books(ex, mapped, ex->pool);
	for (unsigned int i = 0; i < ex->interfaces; i++)
		if (flushed)
			expect(ex, action_at(fd_of(ex, 0), i, EXMAP_OP_FLUSH, 0, 0), 0);
	if (flushed)
		check_books(ex, mapped, 0);
}

static unsigned long total_calls(const struct progress *p)
{
	unsigned long sum = 0;

	for (unsigned int i = 0; i < MAX_THREADS; i++)
		sum += atomic_load(&p->calls[i]);
	return sum;
}

static void begin_task(unsigned int process, unsigned int incarnation, unsigned int number)
{
	me.process = process;
	me.number = number;
	me.calls = &progress[process].calls[number];
	me.random = mix(mix(options.seed) + ((uint64_t)incarnation << 32 | process << 16 | number));
}

struct thread {
	unsigned int process, incarnation, number;
	unsigned long calls;
	pthread_t id;
};

static void *run_thread(void *argument)
{
	static const struct step steps[] = {
		{ 1500, own_touch }, { 800, any_touch }, { 1500, any_action }, { 1500, own_proxy },
		{ 200, any_hammer }, { 500, any_entries }, { 500, any_proxy }, { 200, any_stats },
		{ 60, any_madvise }, { 40, any_mapping }, { 20, any_clone }, { 2, any_fork },
		{ 8, any_replace }, { 300, own_flush }, { 300, own_defer }, { 100, any_flush },
		{ 10000, own_action },
	};
	const struct thread *thread = argument;

	begin_task(thread->process, thread->incarnation, thread->number);
	while (!atomic_load(&enough)) {
		for (int i = 0; i < ROUND; i++)
			run_step(steps, &exmaps[below(SLOTS)]);
		pthread_barrier_wait(&pause_begins);
		if (!me.number) {
			for (struct exmap *ex = exmaps; ex < exmaps + SLOTS; ex++)
				check_sum(ex);
			if (one_in(4))
				replace(&exmaps[SLOTS - 1]);
			atomic_store(&enough, total_calls(&progress[me.process]) >= thread->calls);
		}
		pthread_barrier_wait(&pause_ends);
	}
	return NULL;
}

static void run_threads(unsigned int process, unsigned int incarnation, unsigned long calls)
{
	struct thread threads[MAX_THREADS];

	pthread_barrier_init(&pause_begins, NULL, options.threads);
	pthread_barrier_init(&pause_ends, NULL, options.threads);
	for (struct exmap *ex = exmaps; ex < exmaps + SLOTS; ex++) {
		pthread_rwlock_init(&ex->lock, NULL);
		shared_make(ex);
		atomic_store(&ex->generation, 2);
	}
	for (unsigned int i = 0; i < options.threads; i++) {
		threads[i] = (struct thread){ process, incarnation, i, calls, 0 };
		die_if(pthread_create(&threads[i].id, NULL, run_thread, &threads[i]));
	}
	for (unsigned int i = 0; i < options.threads; i++)
		pthread_join(threads[i].id, NULL);
}

/*
 * Processes
 */
static _Noreturn void run_process(unsigned int process, unsigned int incarnation)
{
	const size_t size = (2 * SLOTS + 1) * MAX_PAGES * PAGE;
	unsigned long calls = options.calls / options.processes;
	struct sigaction act = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	begin_task(process, incarnation, 0);
	sigaction(SIGSEGV, &act, NULL);
	sigaction(SIGBUS, &act, NULL);
	surfaces = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	elsewhere = surfaces + 2 * SLOTS * MAX_PAGES * PAGE;
	interfaces = mmap(NULL, SLOTS * MAX_INTERFACES * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	die_if(surfaces == MAP_FAILED || interfaces == MAP_FAILED);
	if (options.threads > 1)
		run_threads(process, incarnation, calls);
	else
		run_model(calls);
	/* Its exmaps go in the order that exit has for it. */
	_exit(0);
}

struct process {
	pid_t pid;
	unsigned int incarnation;
	unsigned long kill_at;		/* after so many calls */
	unsigned long calls;
	time_t since;			/* when the last one was seen */
};

static void start(struct process *p, unsigned int nr)
{
	unsigned long calls = options.calls / options.processes;

	me.random = mix(options.seed + nr) + p->incarnation;
	p->kill_at = ~0UL;
	if (options.threads > 1 && p->incarnation < 3)
		p->kill_at = p->calls + calls / 16 + below(calls / 4 + 1);
	p->since = time(NULL);
	p->pid = fork();
	if (!p->pid)
		run_process(nr, p->incarnation);
	if (p->pid < 0) {
		perror("tests/fuzz: fork");
		exit(1);
	}
}

/* See to a process. Returns false where it has failed. */
static bool attend(struct process *p, unsigned int nr)
{
	int status;

	if (waitpid(p->pid, &status, WNOHANG) == p->pid) {
		p->pid = 0;
		if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && p->kill_at != ~0UL) {
			p->incarnation++;
			start(p, nr);
			return true;
		}
		if (WIFSIGNALED(status))
			printf("tests/fuzz: seed %lu, process %u: died of signal %d\n",
			       options.seed, nr, WTERMSIG(status));
		return !status;
	}
	if (total_calls(&progress[nr]) != p->calls)
		p->since = time(NULL);
	p->calls = total_calls(&progress[nr]);
	if (p->calls >= p->kill_at)
		kill(p->pid, SIGKILL);
	if (time(NULL) - p->since < PATIENCE)
		return true;
	printf("tests/fuzz: seed %lu, process %u: no call has ended for %d s\n", options.seed, nr,
	       PATIENCE);
	return false;
}

/* Returns how many calls there were, or 0 where one went wrong. */
static unsigned long run_seed(void)
{
	struct process processes[MAX_PROCESSES] = { };
	unsigned int left = options.processes;
	unsigned long calls = 0;
	bool good = true;

	memset(progress, 0, MAX_PROCESSES * sizeof(*progress));
	fflush(NULL);
	for (unsigned int i = 0; i < options.processes; i++)
		start(&processes[i], i);
	while (left && good) {
		usleep(5000);
		left = calls = 0;
		for (unsigned int i = 0; i < options.processes; i++) {
			if (processes[i].pid)
				good = attend(&processes[i], i) && good;
			left += processes[i].pid != 0;
			calls += total_calls(&progress[i]);
		}
		if (isatty(STDERR_FILENO))
			fprintf(stderr, "\rseed %lu: %lu calls ", options.seed, calls);
	}
	for (unsigned int i = 0; i < options.processes; i++)
		if (processes[i].pid)
			kill(processes[i].pid, SIGKILL);
	if (isatty(STDERR_FILENO))
		fprintf(stderr, "\n");
	return good ? calls : 0;
}

static void usage(FILE *to)
{
	fprintf(to, "usage: tests/fuzz [OPTION...]\n\n"
		"  --seed N       where to start (default: random; it is printed)\n"
		"  --seeds N      how many seeds, from that one on (default 1)\n"
		"  --calls N      calls for each seed, all processes together (default 100000)\n"
		"  --threads N    of each process; up to one (the default): know what each call\n"
		"                 must do; more: let them disturb each other, up to %u\n"
		"  --processes N  each with exmaps of its own; where they have several threads they are\n"
		"                 killed now and then, and started again (default 1, up to %u)\n"
		"  --verbose      print each call before it is made\n"
		"  --help         this\n\n"
		"Calls are system calls on an exmap's files and mappings. The exit status is 1 where one\n"
		"did what it should not, 77 where there is no /dev/exmap.\n", MAX_THREADS, MAX_PROCESSES);
}

static unsigned long number(const char *name, unsigned long least, unsigned long most)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(optarg, &end, 0);
	if (*optarg < '0' || *optarg > '9' || *end || errno || value < least || value > most) {
		fprintf(stderr, "tests/fuzz: --%s: '%s' is not a number from %lu to %lu\n", name, optarg,
			least, most);
		exit(1);
	}
	return value;
}

static void parse(int argc, char **argv)
{
	static const struct option names[] = {
		{ "seed", required_argument, NULL, 's' }, { "seeds", required_argument, NULL, 'n' },
		{ "calls", required_argument, NULL, 'c' }, { "threads", required_argument, NULL, 't' },
		{ "processes", required_argument, NULL, 'p' }, { "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' }, { },
	};
	int option;

	if (getrandom(&options.seed, sizeof(options.seed), 0) != sizeof(options.seed))
		options.seed = time(NULL);
	options.seed >>= 32;
	while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
		switch (option) {
		case 's':
			options.seed = number("seed", 0, ~0UL);
			break;
		case 'n':
			options.seeds = number("seeds", 1, ~0UL);
			break;
		case 'c':
			options.calls = number("calls", 1, ~0UL);
			break;
		case 't':
			options.threads = number("threads", 0, MAX_THREADS);
			break;
		case 'p':
			options.processes = number("processes", 1, MAX_PROCESSES);
			break;
		case 'v':
			options.verbose = true;
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			exit(1);
		}
	}
	if (optind < argc) {
		fprintf(stderr, "tests/fuzz: '%s': there is nothing but options; see --help\n", argv[optind]);
		exit(1);
	}
}

/* Room for the pools; and then no privilege that could hide a missing check. */
static void become_nobody(void)
{
	const struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	struct rlimit limit;
	/* Of each exmap: its pool, of each interface four pages and two for its quarantine, the rest. */
	size_t need = options.processes * SLOTS * (MAX_POOL + 6 * MAX_INTERFACES + 11) * PAGE;

	if (!geteuid() && (setrlimit(RLIMIT_MEMLOCK, &all) || setgroups(0, NULL) ||
			   setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) ||
			   prctl(PR_SET_DUMPABLE, 1))) {
		perror("tests/fuzz: dropping privileges");
		exit(1);
	}
	getrlimit(RLIMIT_MEMLOCK, &limit);
	if (limit.rlim_cur < need) {
		fprintf(stderr, "tests/fuzz: RLIMIT_MEMLOCK is too low: it takes ulimit -l %lu\n",
			(unsigned long)(need / 1024));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	unsigned long all = 0, calls;
	struct timespec begin, end;
	double seconds;

	parse(argc, argv);
	printf("seed %lu\n", options.seed);
	if (access("/dev/exmap", R_OK | W_OK)) {
		fprintf(stderr, "tests/fuzz: /dev/exmap: %s\n", strerror(errno));
		return 77;
	}
	become_nobody();
	progress = mmap(NULL, MAX_PROCESSES * sizeof(*progress), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (progress == MAP_FAILED) {
		perror("tests/fuzz: mmap");
		return 1;
	}
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (; options.seeds; options.seeds--, options.seed++) {
		calls = run_seed();
		if (!calls)
			return 1;
		all += calls;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	seconds = end.tv_sec - begin.tv_sec + (end.tv_nsec - begin.tv_nsec) / 1e9;
	printf("%lu calls in %.0f s, %.0f per second\n", all, seconds, all / seconds);
	return 0;
}
