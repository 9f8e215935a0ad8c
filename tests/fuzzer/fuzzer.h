/* SPDX-License-Identifier: GPL-2.0 */
/*
 * tests/fuzz: random calls of all kinds, valid and invalid, from a seed.
 *
 * With one thread, a model knows what each call must return, which pages must be mapped after it
 * and what must be in them.
 *
 * With several threads, and processes that are killed at random moments, no model can know that.
 * But each thread has a stripe of every surface, in which no other thread maps or unmaps a page.
 * What the thread finds there must be right. While all threads pause, the counters of every exmap
 * must add up.
 *
 * A store writes a tag to the first and the last word of a page; all other words stay zero. A tag
 * tells to which exmap and to which page it belongs.
 *
 * Files:
 *   main.c         options; privileges; one round for each seed
 *   processes.c    the processes of a round: started, watched, killed
 *   model_steps.c  one thread: the loop, and all steps but those of model_calls.c
 *   model_calls.c  one thread: ACTION, pread and pwrite, and whether their answers are right
 *   model.c        one thread: what each call does to an exmap, and whether it has done that
 *   threads.c      several threads: all steps, and what each thread can check
 *   calls.c        system calls that are made with one thread and with several
 *   touch.c        loads from and stores to the surface; tags
 *   task.c         a thread's current call, and the report if that went wrong
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
#define SLOTS 4			/* exmaps of a process at any time */
#define MAX_PAGES 16384U	/* pages of the largest surface */
#define MAX_POOL 8192U		/* pages of the largest pool */
#define FDS 3			/* descriptors of an exmap: the first one, and clones */
#define MAX_THREADS 16U
#define MAX_PROCESSES 63U
#define SHARED 2		/* interfaces that all threads use */
#define MAX_INTERFACES (MAX_THREADS + SHARED)
#define STRIPE 64U		/* pages of a thread: one bit each in a uint64_t */
#define HOT 32U			/* pages after the stripes that get half of the shared calls */

extern struct options {
	uint64_t seed;
	unsigned long seeds, calls;
	unsigned int threads, processes;
	bool verbose;
} options;

/* What a page holds: its first word and its last. */
struct content {
	uint64_t first, last;
};

/*
 * ABSENT: not mapped. STALE: mapped, and may hold anything that was in a page of this exmap.
 * KNOWN: mapped, and holds what is in content[].
 */
enum state { ABSENT, STALE, KNOWN };

#define NOBODY 0xff

/* A page that was freed with EXMAP_FREE_DEFER. Until its flush, a touch may still reach it. */
struct due {
	uint8_t from;		/* the interface that freed it, or NOBODY: it is flushed */
	bool known;		/* content[] is what it held */
};

/*
 * An exmap. No other memory or file gets the addresses of its surface and interfaces, or the
 * numbers of its descriptors. So a late call, after the exmap was replaced, does no harm.
 */
struct exmap {
	unsigned int number;	/* part of its tags */
	unsigned int pages, pool, interfaces;
	uint64_t flags;
	char *surface;
	unsigned int quota;	/* most pages that a thread may map; 0: no limit */
	int file;		/* the backing file, or -1 */
	bool read_only;

	/* The fields of the model: */
	unsigned int mapped;
	unsigned int fds;
	unsigned int hot;	/* first of the pages to which most calls go */
	uint64_t file_size;
	uint8_t state[MAX_PAGES];
	struct content content[MAX_PAGES];
	struct due due[MAX_PAGES];
	struct content in_file[MAX_PAGES];

	/* @generation is odd while the exmap is replaced. Its writer holds @lock for writing. */
	atomic_uint generation;
	pthread_rwlock_t lock;
};

extern struct exmap exmaps[SLOTS];
extern char *surfaces, *elsewhere;
extern struct exmap_user_interface *interfaces;

/* What a thread is doing: its current call, its touch, and with several threads its stripes. */
struct task {
	uint64_t random;
	unsigned int process, number;
	atomic_ulong *calls;
	const struct exmap *exmap;
	const char *format;
	long argument[8];
	unsigned int nr;	/* entries of @request, for the report */
	struct exmap_iov request[ENTRIES + 1];
	sigjmp_buf jump;
	volatile sig_atomic_t touching;
	void *volatile fault;
	uint64_t owned[SLOTS];	/* mapped pages of its stripe, a bit each */
	uint64_t due[SLOTS];	/* unmapped pages of its stripe whose flush may be due */
	unsigned int generation[SLOTS];
};

extern __thread struct task me;

/* How far a process is, in memory that it shares with the parent. */
struct progress {
	atomic_ulong calls[MAX_THREADS];
};

extern struct progress *progress;

/* Random numbers: splitmix64. */
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

/* A random number from 0 to @n - 1. */
static inline unsigned int below(unsigned int n)
{
	return (rnd() >> 32) * n >> 32;
}

static inline bool one_in(unsigned int n)
{
	return !below(n);
}

/* What run_step() chooses from, with this weight in 10000. */
struct step {
	unsigned int weight;
	void (*run)(struct exmap *ex);
};

/*
 * The arguments of an ACTION without its entries. fadvise64, pread and pwrite do the same for a
 * range.
 */
struct call {
	unsigned int opcode, interface;
	uint64_t flags;
};

/* task.c */
_Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...);
void note_call(const struct exmap *ex, unsigned int nr, const char *format, const long *argument);
long counted(long ret);
unsigned long total_calls(const struct progress *p);
void begin_task(unsigned int process, unsigned int incarnation, unsigned int number);
void run_step(const struct step *step, struct exmap *ex);

/* Note the call that is about to be made, for the report and for --verbose. */
#define note(ex, nr, format, ...) note_call(ex, nr, format, (long[8]){ __VA_ARGS__ })

/* Make a call that must return @want: its result, or the negative errno. */
#define expect(ex, call, want) do {						\
	long want_ = (want), got_;						\
	note(ex, 0, #call);							\
	got_ = counted((long)(call));						\
	if (got_ != want_)							\
		fail("returned %ld, expected %ld", got_, want_);		\
} while (0)

/* one_of(n) and n times or_expect() make one of n calls, which must return @want. */
#define one_of(n) unsigned int n_ = below(n)
#define or_expect(ex, want, call) do {						\
	if (!n_--)								\
		expect(ex, call, want);						\
} while (0)

/* The fuzzer cannot go on if @condition holds; errno says why. */
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
long advise_at(int fd, uint64_t offset, uint64_t length, int advice);
long advise(const struct exmap *ex, int fd, const struct call *call, struct exmap_iov request);
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
