/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The options of the benchmarks, from the command line and the environment.
 */
#ifndef BENCH_OPTIONS_H
#define BENCH_OPTIONS_H

#include "bench_common.h"

/**
 * struct bench_program - what a program adds to the common options
 * @about: what the program measures; the beginning of --help
 * @result: the columns and their meaning; NULL if it prints alloc_free_per_second
 * @options: the program's own options for getopt_long(), with values above 255
 * @option: called with the value of such an option and its argument
 * @own_help: help for the program's own options and environment variables
 * @min_threads: the smallest number of threads that makes sense
 * @max_threads: the largest number of threads for EXMAP_MAX_INTERFACES
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

static inline unsigned long bench_number(const char *what, const char *text,
					 unsigned long min, unsigned long max)
{
	unsigned long number;
	char *end;

	errno = 0;
	number = strtoul(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9' || number < min || number > max)
		bench_fail("%s is '%s', but must be a number from %lu to %lu",
			   what, text, min, max);
	return number;
}

/* The number in an environment variable, or @otherwise if it is not set. */
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
	       "%sOn a terminal the program also prints a line per second.\n\n"
	       "  -t, --time SECONDS     how long to measure (default 5)\n"
	       "  -T, --threads THREADS  %u to %u (default one per CPU); each is pinned to a CPU\n"
	       "  -b, --batch PAGES      pages per batch, 1 to %d (default 512)\n"
	       "  -p, --pages PAGES      size of the exmap's pool (default 262144: 1 GiB)\n"
	       "      --header           print a first line that names the columns\n"
	       "  -h, --help             print this help\n%s\n"
	       "The environment gives what the command line does not:\n"
	       "  THREADS     as --threads\n"
	       "  BATCH_SIZE  as --batch\n",
	       program->result ?
	       program->result :
	       "  " BENCH_ALLOC_FREE "\n"
	       "One alloc and one free of a page count 1. Shootdowns are those that all CPUs\n"
	       "received (/proc/interrupts). ",
	       program->min_threads, program->max_threads, EXMAP_USER_INTERFACE_PAGES,
	       program->own_help);
}

/* Read the environment and the command line into bench. The command line has precedence. */
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
			exit(1);	/* getopt_long() has printed the reason */
		default:
			program->option(value, optarg);
		}
	}
	if (optind < argc)
		bench_fail("'%s' is not an option: see --help", argv[optind]);

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

#endif /* BENCH_OPTIONS_H */
