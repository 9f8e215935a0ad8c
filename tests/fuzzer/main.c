// SPDX-License-Identifier: GPL-2.0
/*
 * tests/fuzz: the options, the privileges, and one round for each seed.
 */
#include <getopt.h>
#include <grp.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>

#include "fuzzer.h"

struct options options = { .seeds = 1, .calls = 100000, .threads = 1, .processes = 1 };

static void usage(FILE *to)
{
	fprintf(to,
		"usage: tests/fuzz [OPTION...]\n\n"
		"  --seed N       the first seed (default: a random one; it is printed)\n"
		"  --seeds N      how many seeds, counted up from the first (default 1)\n"
		"  --calls N      calls for each seed, of all processes together (default 100000)\n"
		"  --threads N    threads of each process, at most %u. With one (the default), a\n"
		"                 model checks each call. Several threads disturb each other.\n"
		"  --processes N  processes with exmaps of their own, at most %u (default 1).\n"
		"                 Those with several threads are killed at random moments, and\n"
		"                 started again.\n"
		"  --verbose      print each call before it is made\n"
		"  --help         print this\n\n"
		"A call is a system call on a file or mapping of an exmap. The exit status is 1\n"
		"if a call did not do what it must, and 77 if there is no /dev/exmap.\n",
		MAX_THREADS, MAX_PROCESSES);
}

static unsigned long number(const char *name, unsigned long least, unsigned long most)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(optarg, &end, 0);
	if (*optarg < '0' || *optarg > '9' || *end || errno || value < least || value > most) {
		fprintf(stderr, "tests/fuzz: --%s: '%s' is not a number from %lu to %lu\n", name,
			optarg, least, most);
		exit(1);
	}
	return value;
}

static void parse(int argc, char **argv)
{
	static const struct option names[] = {
		{ "seed", required_argument, NULL, 's' }, { "seeds", required_argument, NULL, 'n' },
		{ "calls", required_argument, NULL, 'c' },
		{ "threads", required_argument, NULL, 't' },
		{ "processes", required_argument, NULL, 'p' },
		{ "verbose", no_argument, NULL, 'v' },
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
		fprintf(stderr, "tests/fuzz: '%s' is not an option; see --help\n", argv[optind]);
		exit(1);
	}
}

/*
 * Drop all privileges, because they could hide that a check is missing. Root raises RLIMIT_MEMLOCK
 * before. The limit must have room for all pools.
 */
static void become_nobody(void)
{
	const struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	struct rlimit limit;
	/*
	 * Each exmap is charged for its pool, for each interface four pages and up to 81 of its
	 * quarantine, and for eleven more.
	 */
	size_t need = options.processes * SLOTS * (MAX_POOL + 85 * MAX_INTERFACES + 11) * PAGE;

	if (!geteuid() && (setrlimit(RLIMIT_MEMLOCK, &all) || setgroups(0, NULL) ||
			   setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) ||
			   prctl(PR_SET_DUMPABLE, 1))) {
		perror("tests/fuzz: dropping privileges");
		exit(1);
	}
	getrlimit(RLIMIT_MEMLOCK, &limit);
	if (limit.rlim_cur < need) {
		fprintf(stderr, "tests/fuzz: RLIMIT_MEMLOCK is too low: this needs ulimit -l %lu\n",
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
