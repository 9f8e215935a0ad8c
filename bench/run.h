/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The threads of a benchmark, how their work is counted, and the result.
 *
 * A program calls bench_options(), for an exmap bench_setup(), then bench_run() with the function
 * of a thread. That function attaches to its interfaces, calls bench_start(), works until
 * bench_stopped(), and tells bench_count() what it has done.
 */
#ifndef BENCH_RUN_H
#define BENCH_RUN_H

#include "tests/arch.h"
#include "batch.h"
#include "options.h"

/*
 * TLB shootdowns since boot. Each CPU that received one counts 1. 0 if the processor invalidates
 * the TLBs of others without an interrupt.
 */
static inline unsigned long bench_shootdowns(void)
{
	unsigned long sum = 0, here;
	char *line = NULL;
	bool found = false;
	size_t size = 0;
	FILE *file;

	if (!ARCH_FLUSH_INTERRUPTS)
		return 0;
	file = fopen("/proc/interrupts", "re");
	while (file && !found && getline(&line, &size, file) > 0) {
		char *at = line + strspn(line, " "), *end;

		if (strncmp(at, "TLB:", 4))
			continue;
		found = true;
		for (at += 4; here = strtoul(at, &end, 10), end != at; at = end)
			sum += here;
	}
	if (!found)
		bench_fail("/proc/interrupts has no line \"TLB:\": is /proc mounted?");
	free(line);
	fclose(file);
	return sum;
}

/* A thread. It has a cache line of its own, because it counts its pages there. */
struct bench_thread {
	pthread_t pthread;
	unsigned int id;
	void (*work)(struct bench_thread *thread);
	atomic_ulong pages;	/* done so far; only the thread writes this */
} __attribute__((aligned(64)));

/* A thread is ready. Wait for the others. */
static inline void bench_start(void)
{
	pthread_barrier_wait(&bench.start);
}

static inline bool bench_stopped(void)
{
	/* Relaxed, because this flag publishes no other data. */
	return atomic_load_explicit(&bench.stop, memory_order_relaxed);
}

/* Count pages that a thread has done. */
static inline void bench_count(struct bench_thread *thread, unsigned int pages)
{
	/* Only this thread writes the counter, so the addition need not be atomic. */
	unsigned long old = atomic_load_explicit(&thread->pages, memory_order_relaxed);

	atomic_store_explicit(&thread->pages, old + pages, memory_order_relaxed);
}

/* The pages that all threads have done so far. */
static inline unsigned long bench_counted(struct bench_thread *threads)
{
	unsigned long pages = 0;
	unsigned int i;

	for (i = 0; i < bench.threads; i++)
		pages += atomic_load_explicit(&threads[i].pages, memory_order_relaxed);
	return pages;
}

/* Pin thread @id to a CPU. The threads take the CPUs that this process may use in turn. */
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
 * 1 IF and 2 IF: allocate a batch at interface @alloc and free it at @free, which may be the same,
 * until the time is up. The thread uses its @batches batches in turn.
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
				   "batches of %u: this machine has too little", alloc->number,
				   bench.threads, bench.batch);
		bench_fill(free, page, nr);
		bench_action(free, EXMAP_OP_FREE);
		bench_count(thread, nr);
	}
}

/* Print the result, after a line with the names of its columns if --header asks for that. */
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

/* Pages and shootdowns of all threads, and how long they ran. */
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

	/* Before the threads start, because they leave this thread little time on a CPU. */
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
		bench_fail("no batch was done in %u s: try a longer --time", bench.seconds);
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

#endif /* BENCH_RUN_H */
