/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the benchmarks share: options, clock, shootdown counter, an exmap with its
 * interfaces, threads, the result.
 *
 * A program calls bench_options(), for an exmap bench_setup(), then bench_run()
 * with what each thread does: get its interfaces, bench_start(), and work until
 * bench_stopped(), telling bench_count() what it has done.
 *
 * To be included first.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "exmap_user.h"

#define BENCH_SKIP 77		/* exit status: cannot be measured here */
#define BENCH_PAGE_SIZE EXMAP_PAGE_SIZE
#define BENCH_TABLE_PAGES 512	/* pages that one page table maps */

/*
 * A batch is every other page: no two of its pages are neighbours, as in a
 * buffer pool, and nothing can treat a batch as one range.
 */
#define BENCH_STRIDE 2

/**
 * struct bench - what is measured, and how
 * @threads: how many threads
 * @batch: pages per batch
 * @run: pages per entry: a batch is @batch / @run entries
 * @stride: from the first page of an entry to that of the next
 * @seconds: for how long
 * @pages: the exmap's buffer_size
 * @backing: the exmap's backing file; -1 where there is none
 * @header: print what the columns are, too
 * @threads_given: @threads is from the command line
 * @exmap: the exmap; its fd is -1 where there is none
 * @base: where the parts of the threads start
 * @first: page number of @base on the surface
 * @part: pages in the part of one thread
 * @start: all threads and bench_run() meet here before the clock runs
 * @stop: time is up
 */
struct bench {
	unsigned int threads;
	unsigned int batch;
	unsigned int run;
	unsigned int stride;
	unsigned int seconds;
	unsigned long pages;
	int backing;
	int header;
	bool threads_given;

	struct exmap exmap;
	char *base;
	uint64_t first;
	uint64_t part;

	pthread_barrier_t start;
	atomic_bool stop;
};

static struct bench bench = {
	.batch = EXMAP_USER_INTERFACE_PAGES,
	.run = 1,
	.stride = BENCH_STRIDE,
	.seconds = 5,
	.pages = (1UL << 30) / BENCH_PAGE_SIZE,
	.backing = -1,
	.exmap.fd = -1,
};

/**
 * struct bench_program - what a program has besides the common options
 * @about: what it measures; the beginning of --help
 * @result: what it prints and what that means, where it is not alloc+free
 * @options: its own options for getopt_long(), their values above 255
 * @option: called with such a value and the option's argument
 * @own_help: the lines about its own options and environment variables
 * @min_threads: fewer make no sense
 * @max_threads: more do not fit into EXMAP_MAX_INTERFACES
 */
struct bench_program {
	const char *about;
	const char *result;
	const struct option *options;
	void (*option)(int value, const char *argument);
	const char *own_help;
	unsigned int min_threads;
	unsigned int max_threads;
};

/* A thread; in a cache line of its own, since it counts there. */
struct bench_thread {
	pthread_t pthread;
	unsigned int id;
	void (*work)(struct bench_thread *thread);
	atomic_ulong pages;	/* done so far, written by the thread alone */
} __attribute__((aligned(64)));

/* Print one line and end the program, whichever thread notices first. */
static inline void __attribute__((noreturn, format(printf, 2, 3)))
bench_exit(int status, const char *format, ...)
{
	static atomic_flag failed = ATOMIC_FLAG_INIT;
	va_list arguments;

	while (atomic_flag_test_and_set(&failed))
		pause();
	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	_exit(status);
}

#define bench_fail(...) bench_exit(1, __VA_ARGS__)

/* The options */

static inline unsigned long bench_number(const char *what, const char *text,
					 unsigned long min, unsigned long max)
{
	unsigned long number;
	char *end;

	errno = 0;
	number = strtoul(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9' || number < min || number > max)
		bench_fail("%s is '%s' and should be a number from %lu to %lu",
			   what, text, min, max);
	return number;
}

/* The number in an environment variable, or what it is by default. */
static inline unsigned long bench_environment(const char *name, unsigned long otherwise,
					      unsigned long min, unsigned long max)
{
	const char *text = getenv(name);

	return text && *text ? bench_number(name, text, min, max) : otherwise;
}

/* The CPUs that this process may use. */
static inline cpu_set_t bench_cpus(void)
{
	cpu_set_t cpus;

	if (sched_getaffinity(0, sizeof(cpus), &cpus))
		bench_fail("sched_getaffinity: %s", strerror(errno));
	return cpus;
}

#define BENCH_ALLOC_FREE "scenario,threads,batch,alloc_free_per_second,shootdowns_per_page"

static inline void bench_help(const struct bench_program *program)
{
	printf("usage: %s [OPTION...]\n\n%s\n", program_invocation_short_name, program->about);
	printf("The last line of output is\n"
	       "%sOn a terminal there is a line per second.\n\n"
	       "  -t, --time SECONDS     for how long (default 5)\n"
	       "  -T, --threads THREADS  %u to %u (default one per CPU); each is pinned to a CPU\n"
	       "  -b, --batch PAGES      pages per batch, 1 to %d (default 512)\n"
	       "  -p, --pages PAGES      size of the exmap's pool (default 262144: 1 GiB)\n"
	       "      --header           print a first line that names the columns\n"
	       "  -h, --help             print this\n%s\n"
	       "The environment is used where the command line says nothing:\n"
	       "  THREADS     as --threads\n"
	       "  BATCH_SIZE  as --batch\n",
	       program->result ?
	       program->result :
	       "  " BENCH_ALLOC_FREE "\n"
	       "where one alloc and one free of a page count 1, and shootdowns are what all\n"
	       "CPUs received (/proc/interrupts). ",
	       program->min_threads, program->max_threads, EXMAP_USER_INTERFACE_PAGES,
	       program->own_help);
}

/* Read environment and command line into bench; the latter wins. */
static inline void bench_options(int argc, char **argv, const struct bench_program *program)
{
	static const struct option common[] = {
		{ "time", required_argument, NULL, 't' },
		{ "threads", required_argument, NULL, 'T' },
		{ "batch", required_argument, NULL, 'b' },
		{ "pages", required_argument, NULL, 'p' },
		{ "header", no_argument, &bench.header, 1 },
		{ "help", no_argument, NULL, 'h' },
	};
	const unsigned int nr = sizeof(common) / sizeof(*common);
	struct option all[16] = { };
	const char *threads = NULL, *batch = NULL;
	cpu_set_t cpus = bench_cpus();
	unsigned int i;
	int value;

	memcpy(all, common, sizeof(common));
	for (i = 0; program->options && program->options[i].name; i++)
		all[nr + i] = program->options[i];

	while ((value = getopt_long(argc, argv, "t:T:b:p:h", all, NULL)) != -1) {
		switch (value) {
		case 0:
			break;
		case 't':
			bench.seconds = bench_number("--time", optarg, 1, 1000000);
			break;
		case 'T':
			threads = optarg;
			break;
		case 'b':
			batch = optarg;
			break;
		case 'p':
			bench.pages = bench_number("--pages", optarg, 1, 1UL << 35);
			break;
		case 'h':
			bench_help(program);
			exit(0);
		case '?':
			exit(1);	/* getopt_long() has said why */
		default:
			program->option(value, optarg);
		}
	}
	if (optind < argc)
		bench_fail("'%s' is no option: see --help", argv[optind]);

	bench.threads_given = threads;
	if (threads) {
		bench.threads = bench_number("--threads", threads, program->min_threads,
					     program->max_threads);
	} else {
		unsigned int otherwise = CPU_COUNT(&cpus);

		if (otherwise < program->min_threads)
			otherwise = program->min_threads;
		if (otherwise > program->max_threads)
			otherwise = program->max_threads;
		bench.threads = bench_environment("THREADS", otherwise, program->min_threads,
						  program->max_threads);
	}
	if (batch)
		bench.batch = bench_number("--batch", batch, 1, EXMAP_USER_INTERFACE_PAGES);
	else
		bench.batch = bench_environment("BATCH_SIZE", bench.batch, 1,
						EXMAP_USER_INTERFACE_PAGES);
}

/* The exmap */

static inline unsigned int bench_entries(void)
{
	return bench.batch / bench.run;
}

/*
 * How many pages a part for each thread takes, with room for so many batches. Each
 * starts with a page table of its own: neighbours share none.
 */
static inline uint64_t bench_pages(unsigned int batches)
{
	bench.part = (uint64_t)batches * bench_entries() * bench.stride;
	bench.part = (bench.part + BENCH_TABLE_PAGES - 1) / BENCH_TABLE_PAGES * BENCH_TABLE_PAGES;
	return bench.threads * bench.part + BENCH_TABLE_PAGES;
}

/* That is where they are. */
static inline void bench_place(char *start)
{
	uint64_t address = (uintptr_t)start / BENCH_PAGE_SIZE;

	bench.first = -address % BENCH_TABLE_PAGES;
	bench.base = start + bench.first * BENCH_PAGE_SIZE;
}

/* Without an exmap, to be compared with one: anonymous memory, page by page, too. */
static inline void bench_map_anonymous(unsigned int batches)
{
	const size_t size = bench_pages(batches) * BENCH_PAGE_SIZE;
	char *start = mmap(NULL, size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (start == MAP_FAILED)
		bench_fail("mmap of %lu bytes for %u threads: %s", size, bench.threads,
			   strerror(errno));
	if (madvise(start, size, MADV_NOHUGEPAGE) &&
	    errno != EINVAL)	/* which is a kernel without huge pages */
		bench_fail("madvise(MADV_NOHUGEPAGE): %s", strerror(errno));
	bench_place(start);
}

/* Open an exmap with room for that. */
static inline void bench_setup(unsigned int interfaces, unsigned int batches)
{
	int err = exmap_open(&bench.exmap, bench_pages(batches), bench.pages, interfaces,
			     bench.backing, 0);

	if (err)
		bench_fail("an exmap with %u interfaces and %lu pages: %s", interfaces,
			   bench.pages, exmap_strerror(err));
	bench_place(bench.exmap.surface);
}

/* An interface whose calls go to the one fd that all threads share. */
static inline void bench_attach_shared(struct exmap_interface *interface, unsigned int nr)
{
	int err = exmap_attach_to(&bench.exmap, interface, nr);

	if (err)
		bench_fail("interface %u: %s", nr, exmap_strerror(err));
}

/* One with an fd of its own, so that threads do not share a struct file. */
static inline void bench_attach(struct exmap_interface *interface, unsigned int nr)
{
	int err;

	bench_attach_shared(interface, nr);
	err = exmap_own_fd(interface);
	if (err)
		bench_fail("an fd for interface %u: %s", nr, exmap_strerror(err));
}

/* Page number on the surface of a thread's batch. */
static inline uint64_t bench_batch_page(unsigned int thread, unsigned int batch)
{
	return bench.first + thread * bench.part +
	       (uint64_t)batch * bench_entries() * bench.stride;
}

/* Its address. */
static inline char *bench_batch_address(unsigned int thread, unsigned int batch)
{
	return bench.base + (bench_batch_page(thread, batch) - bench.first) * BENCH_PAGE_SIZE;
}

/*
 * Request the first nr entries of the batch that starts there. By hand: the checks of
 * exmap_batch_add() are 4 % of an ALLOC and FREE.
 */
static inline void bench_fill(struct exmap_interface *interface, uint64_t page, unsigned int nr)
{
	unsigned int i;

	exmap_batch_clear(interface);
	interface->nr = nr;
	for (i = 0; i < nr; i++) {
		struct exmap_iov request = { .page = page + i * bench.stride, .len = bench.run };

		interface->user->iov[i].value = request.value;
	}
}

/*
 * Carry out the batch. Returns how many of its entries came off; -1 where not even the
 * first did, for lack of memory: then all are as they were. Anything else that goes
 * wrong ends the program.
 */
static inline int bench_action(struct exmap_interface *interface, unsigned int opcode)
{
	const char *name = opcode == EXMAP_OP_ALLOC ? "ALLOC" :
			   opcode == EXMAP_OP_READ ? "READ" : "FREE";
	const struct exmap_iov *iov = interface->user->iov;
	unsigned int nr = interface->nr, done = 0, i;
	int failed;

	failed = exmap_batch_run(interface, opcode, exmap_call_flags(interface, opcode));
	if (failed == -ENOMEM && opcode != EXMAP_OP_FREE)
		return -1;
	if (failed < 0)
		bench_fail("%s at interface %u: %s", name, interface->number, strerror(-failed));

	/* From where on a call fails for lack of memory, it fails to the end. */
	while (done < nr && iov[done].res == 0 && iov[done].pages == (int)bench.run)
		done++;
	for (i = done; i < nr && iov[i].res == -ENOMEM && iov[i].pages == 0; i++)
		;
	if (i == nr && done + failed == nr && (done == nr || (done && opcode != EXMAP_OP_FREE)))
		return done;
	i = i < nr ? i : nr - 1;
	bench_fail("%s at interface %u returned %d for %u entries of which entry %u says res %d, "
		   "pages %d: that is a bug in the module%s", name, interface->number, failed, nr,
		   i, iov[i].res, iov[i].pages,
		   opcode == EXMAP_OP_READ ? ", or an error of the device" : "");
}

/* The counters */

static inline uint64_t bench_nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000UL + now.tv_nsec;
}

/* A call that failed, and what exmap_strerror() says about it. */
static inline void __attribute__((noreturn)) bench_fail_with(const char *what, int err)
{
	bench_fail("%s: %s", what, exmap_strerror(err));
}

/*
 * Carry out a batch of single pages, all of which have to come off. Returns how many
 * nanoseconds the call itself took.
 */
static inline uint64_t bench_timed_action(struct exmap_interface *interface, unsigned int opcode)
{
	struct exmap_action_params params = {
		.interface = (uint16_t)interface->number,
		.iov_len = (uint16_t)interface->nr,
		.opcode = (uint16_t)opcode,
		.flags = exmap_call_flags(interface, opcode),
	};
	uint64_t start, spent;
	unsigned int i;
	int failed;

	start = bench_nanoseconds();
	failed = ioctl(interface->fd, EXMAP_IOCTL_ACTION, &params);
	spent = bench_nanoseconds() - start;
	if (failed)
		bench_fail_with("an ACTION", -errno);
	for (i = 0; i < interface->nr; i++)
		if (exmap_batch_answer(interface, i) != 1)
			bench_fail_with("a page", exmap_batch_answer(interface, i));
	return spent;
}

static inline double bench_now(void)
{
	return bench_nanoseconds() / 1e9;
}

/* TLB shootdowns since boot, each CPU that received one counting 1. */
static inline unsigned long bench_shootdowns(void)
{
	FILE *file = fopen("/proc/interrupts", "re");
	unsigned long sum = 0, here;
	char *line = NULL;
	bool found = false;
	size_t size = 0;

	while (file && !found && getline(&line, &size, file) > 0) {
		char *at = line + strspn(line, " "), *end;

		if (strncmp(at, "TLB:", 4))
			continue;
		found = true;
		for (at += 4; here = strtoul(at, &end, 10), end != at; at = end)
			sum += here;
	}
	if (!found)
		bench_fail("/proc/interrupts has no line TLB: is /proc mounted?");
	free(line);
	fclose(file);
	return sum;
}

/* The threads */

/* A thread is ready: wait for the others. */
static inline void bench_start(void)
{
	pthread_barrier_wait(&bench.start);
}

static inline bool bench_stopped(void)
{
	/* Nothing is handed over with it. */
	return atomic_load_explicit(&bench.stop, memory_order_relaxed);
}

/* A thread is through with so many pages. */
static inline void bench_count(struct bench_thread *thread, unsigned int pages)
{
	/* Nobody else writes, so it takes no atomic addition. */
	unsigned long old = atomic_load_explicit(&thread->pages, memory_order_relaxed);

	atomic_store_explicit(&thread->pages, old + pages, memory_order_relaxed);
}

static inline unsigned long bench_counted(struct bench_thread *threads)
{
	unsigned long pages = 0;
	unsigned int i;

	for (i = 0; i < bench.threads; i++)
		pages += atomic_load_explicit(&threads[i].pages, memory_order_relaxed);
	return pages;
}

/* Thread i goes to CPU i, counted round among those that may be used. */
static inline void bench_pin(unsigned int id)
{
	cpu_set_t cpus = bench_cpus(), only;
	unsigned int left = id % CPU_COUNT(&cpus);
	int cpu;

	for (cpu = 0; !CPU_ISSET(cpu, &cpus) || left--; cpu++)
		;
	CPU_ZERO(&only);
	CPU_SET(cpu, &only);
	if (sched_setaffinity(0, sizeof(only), &only))
		bench_fail("sched_setaffinity to CPU %d: %s", cpu, strerror(errno));
}

static inline void *bench_thread(void *arg)
{
	struct bench_thread *thread = arg;

	bench_pin(thread->id);
	thread->work(thread);
	return NULL;
}

/*
 * 1 IF and 2 IF: allocate a batch at one interface and free it at another, or at
 * the same, until time is up. The thread's @batches take turns.
 */
static inline void bench_alloc_free(struct bench_thread *thread,
				    struct exmap_interface *alloc, struct exmap_interface *free,
				    unsigned int batches)
{
	int nr = bench.batch;
	unsigned int i = 0;
	uint64_t page;

	bench_start();
	while (!bench_stopped()) {
		page = bench_batch_page(thread->id, i);
		i = i + 1 < batches ? i + 1 : 0;
		bench_fill(alloc, page, nr);
		if (bench_action(alloc, EXMAP_OP_ALLOC) != nr)
			bench_fail("ALLOC at interface %u found no memory, with %u threads and "
				   "batches of %u: the machine has too little", alloc->number,
				   bench.threads, bench.batch);
		bench_fill(free, page, nr);
		bench_action(free, EXMAP_OP_FREE);
		bench_count(thread, nr);
	}
}

/* Where each thread holds at most one batch, the pool must do for all of them. */
static inline void bench_need_pages(void)
{
	unsigned long pages = (unsigned long)bench.threads * bench.batch;

	if (bench.pages < pages)
		bench_fail("%u threads with batches of %u need a pool of --pages %lu or more",
			   bench.threads, bench.batch, pages);
}

/* After the last FREE nothing may be left on the surface. */
static inline void bench_check_stats(void)
{
	struct exmap_ioctl_stats stats;

	if (ioctl(bench.exmap.fd, EXMAP_IOCTL_STATS, &stats))
		bench_fail("EXMAP_IOCTL_STATS: %s", strerror(errno));
	if (stats.alloc_count || stats.buffer_size != bench.pages)
		bench_fail("EXMAP_IOCTL_STATS says alloc_count %lu and buffer_size %lu where 0 "
			   "and %lu are right: that is a bug in the module",
			   stats.alloc_count, stats.buffer_size, bench.pages);
}

/* Print the result below what its columns are. */
static inline void __attribute__((format(printf, 2, 3)))
bench_print(const char *columns, const char *format, ...)
{
	va_list arguments;

	if (bench.header)
		puts(columns);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	if (fflush(stdout))
		bench_fail("standard output: %s", strerror(errno));
}

/* Pages and shootdowns of all threads, and the time that it took. */
struct bench_result {
	unsigned long pages;
	unsigned long shootdowns;
	double seconds;
};

/* Run the threads for bench.seconds. */
static inline struct bench_result bench_measure(const char *scenario,
						void (*work)(struct bench_thread *thread))
{
	unsigned long pages, last_pages = 0, shootdowns;
	struct bench_thread *threads;
	double start, last, now;
	unsigned int i;

	pthread_barrier_init(&bench.start, NULL, bench.threads + 1);
	threads = aligned_alloc(_Alignof(struct bench_thread), bench.threads * sizeof(*threads));
	if (!threads)
		bench_fail("no memory for %u threads", bench.threads);
	for (i = 0; i < bench.threads; i++) {
		int err;

		threads[i] = (struct bench_thread){ .id = i, .work = work };
		err = pthread_create(&threads[i].pthread, NULL, bench_thread, &threads[i]);
		if (err)
			bench_fail("thread %u cannot be created: %s", i, strerror(err));
	}

	/* Before they start: afterwards they leave us little of a CPU. */
	shootdowns = bench_shootdowns();
	bench_start();
	start = last = bench_now();
	for (i = 1; i <= bench.seconds; i++) {
		double left = start + i - bench_now();

		if (left > 0)
			nanosleep(&(struct timespec){
				.tv_sec = left,
				.tv_nsec = (left - (time_t)left) * 1e9,
			}, NULL);
		pages = bench_counted(threads);
		now = bench_now();
		if (isatty(STDERR_FILENO))
			fprintf(stderr, "%s: %u of %u s: %.3f million pages/s\n", scenario, i,
				bench.seconds, (pages - last_pages) / (now - last) / 1e6);
		last_pages = pages;
		last = now;
	}
	shootdowns = bench_shootdowns() - shootdowns;
	pages = bench_counted(threads);
	now = bench_now();
	atomic_store_explicit(&bench.stop, true, memory_order_relaxed);

	for (i = 0; i < bench.threads; i++)
		pthread_join(threads[i].pthread, NULL);
	free(threads);
	if (bench.exmap.fd >= 0)
		bench_check_stats();

	if (!pages)
		bench_fail("not one batch was done in %u s: try a longer --time", bench.seconds);
	return (struct bench_result){
		.pages = pages, .shootdowns = shootdowns, .seconds = now - start,
	};
}

/* Measure alloc+free and print the result. */
static inline void bench_run(const char *scenario, void (*work)(struct bench_thread *thread))
{
	struct bench_result result = bench_measure(scenario, work);

	bench_print(BENCH_ALLOC_FREE, "%s,%u,%u,%.0f,%.6f", scenario, bench.threads, bench.batch,
		    result.pages / result.seconds, (double)result.shootdowns / result.pages);
}

#endif /* BENCH_COMMON_H */
