/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What all files of the fuzzer share.
 *
 * A random tester: calls of all kinds, right ones and wrong ones, from a seed.
 *
 * With one thread a model knows what each call has to return, which pages are there after it
 * and what is in them. With several threads, in processes that are killed at random moments,
 * there is no telling; but each thread has a stripe of every surface in which nobody else maps
 * or unmaps anything: what it finds there must be right. So must the sum when all have paused.
 *
 * A page that is written to gets a tag in its first word and its last one, and is zero in
 * between: whatever turns up in a page tells whose it is and where it belongs.
 *
 * main.c         options, privileges, a round for each seed
 * processes.c    the processes of a round
 * model_steps.c  with one thread: the loop, and most steps
 * model_calls.c  with one thread: ACTION, pread and pwrite, and their answers
 * model.c        with one thread: what each call does, and whether it has
 * threads.c      with several threads: all steps, and what can be checked
 * calls.c        calls that are made with one thread and with several
 * touch.c        loads and stores; tags
 * task.c         what a thread is calling; reports
 */
#ifndef FUZZER_H
#define FUZZER_H

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

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

extern struct options {
	uint64_t seed;
	unsigned long seeds, calls;
	unsigned int threads, processes;
	bool verbose;
} options;

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

extern struct exmap exmaps[SLOTS];
extern char *surfaces, *elsewhere;
extern struct exmap_user_interface *interfaces;

/* What a thread is doing. */
struct task {
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
};

extern __thread struct task me;

/* What the parent sees of a process, in memory that they share. */
struct progress {
	atomic_ulong calls[MAX_THREADS];
};

extern struct progress *progress;

/* Random numbers (splitmix64) */
static inline uint64_t mix(uint64_t z)
{
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static inline uint64_t rnd(void)
{
	return mix(me.random += 0x9e3779b97f4a7c15);
}

static inline unsigned int below(unsigned int n)
{
	return (rnd() >> 32) * n >> 32;
}

static inline bool one_in(unsigned int n)
{
	return !below(n);
}

struct step {
	unsigned int weight;
	void (*run)(struct exmap *ex);
};

/* task.c */
_Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...);
void note_call(const struct exmap *ex, unsigned int nr, const char *format, const long *argument);
long counted(long ret);
unsigned long total_calls(const struct progress *p);
void begin_task(unsigned int process, unsigned int incarnation, unsigned int number);
void run_step(const struct step *step, struct exmap *ex);

#define note(ex, nr, format, ...) note_call(ex, nr, format, (long[8]){ __VA_ARGS__ })

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

/* touch.c */
void on_fault(int number, siginfo_t *info, void *context);
char *address(const struct exmap *ex, uint64_t page);
int load(const struct exmap *ex, unsigned int page, struct content *content, uint64_t *between);
int store(const struct exmap *ex, unsigned int page, uint64_t tag);
bool load_by_table(const struct exmap *ex, unsigned int page, uint64_t *word);
uint64_t new_tag(const struct exmap *ex, unsigned int page);
bool is_own(const struct exmap *ex, uint64_t word);
void check_own(const struct exmap *ex, unsigned int page, struct content content, uint64_t between);

/* calls.c */
int fd_of(const struct exmap *ex, unsigned int nr);
int any_fd(const struct exmap *ex);
struct exmap_user_interface *interface_of(const struct exmap *ex, unsigned int nr);
char *window_of(const struct exmap *ex);
long setup(int fd, int file, int nr, size_t pages, uint64_t flags);
void *map(void *where, size_t size, int fd, uint64_t offset);
long reserve(void *where, size_t size);
long action_at(int fd, unsigned int interface, unsigned int opcode, unsigned int nr,
	       uint64_t flags);
long action(const struct exmap *ex, int fd, unsigned int interface, unsigned int opcode,
	    unsigned int nr, uint64_t flags);
bool needs_file(unsigned int opcode);
unsigned long stats_count(const struct exmap *ex, int fd);
void check_books(const struct exmap *ex, unsigned long mapped, unsigned long most);
const unsigned char *look(struct exmap *ex, unsigned int page, unsigned int nr);
void make_clone(struct exmap *ex, int from, unsigned int nr);
void make(struct exmap *ex, int backing);
void close_fds(struct exmap *ex);
void unmap_interfaces(struct exmap *ex);
void cannot_be_split(const struct exmap *ex, unsigned int page, unsigned int len);
bool use_mapping(const struct exmap *ex, unsigned int page, unsigned int len);
void do_fork(struct exmap *ex);

/* model_steps.c */
void run_model(unsigned long calls);

/* threads.c */
void run_threads(unsigned int process, unsigned int incarnation, unsigned long calls);

/* processes.c */
unsigned long run_seed(void);

#endif /* FUZZER_H */
