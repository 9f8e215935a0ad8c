// SPDX-License-Identifier: GPL-2.0
/*
 * A thread of the fuzzer: its current call, the report if that went wrong, and its next step.
 */
#include <stdarg.h>
#include <unistd.h>

#include "fuzzer.h"

__thread struct task me;
struct progress *progress;

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

_Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...)
{
	va_list arguments;

	/* Never unlocked: another thread that fails now may do so only because of this. */
	flockfile(stdout);
	printf("\ntests/fuzz: seed %lu, process %u, thread %u, call %lu: ", options.seed,
	       me.process, me.number, atomic_load(me.calls));
	print_call();
	printf("tests/fuzz: ");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\ntests/fuzz: to replay it: ./tests/fuzz --seed %lu --calls %lu --threads %u "
	       "--processes %u\n", options.seed, options.calls, options.threads, options.processes);
	fflush(stdout);
	_exit(1);
}

/* The function of note(). */
void note_call(const struct exmap *ex, unsigned int nr, const char *format, const long *argument)
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

/* Count a system call on an exmap. Returns its result, or the negative errno. */
long counted(long ret)
{
	/* Only this thread writes the counter, so it needs no atomic addition. */
	atomic_store_explicit(me.calls, atomic_load_explicit(me.calls, memory_order_relaxed) + 1,
			      memory_order_relaxed);
	return ret == -1 ? -errno : ret;
}

unsigned long total_calls(const struct progress *p)
{
	unsigned long sum = 0;

	for (unsigned int i = 0; i < MAX_THREADS; i++)
		sum += atomic_load(&p->calls[i]);
	return sum;
}

/* Begin a thread with random numbers of its own, which are the same for the same seed. */
void begin_task(unsigned int process, unsigned int incarnation, unsigned int number)
{
	me.process = process;
	me.number = number;
	me.calls = &progress[process].calls[number];
	me.random = mix(mix(options.seed) + ((uint64_t)incarnation << 32 | process << 16 | number));
}

/* Make a random step. The last one has weight 10000, so it gets what the others leave. */
void run_step(const struct step *step, struct exmap *ex)
{
	unsigned int choice = below(10000);

	for (; choice >= step->weight; step++)
		choice -= step->weight;
	step->run(ex);
}
