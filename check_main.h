/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the test programs share: they run a table of tests with the check
 * library, each in a process of its own, and after each look for complaints in
 * the kernel log, since what a test broke may only show when its process is gone.
 */
#ifndef CHECK_MAIN_H
#define CHECK_MAIN_H

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <regex.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct test {
	const char *name;
	const TTest *const *test;	/* what START_TEST defines is a variable */
	int signal;	/* the test must end by it; 0: must return */
	const char *needs;	/* a file it is skipped without, or NULL */
	const char *needs_env;	/* the same: a variable that names such a file */
	const char *needs_cpu;	/* the same: a flag in /proc/cpuinfo */
	const char *expects;	/* a complaint with this in it is no failure, or NULL */
};

/* The entry of a test in the table. */
#define TEST(fn)		{ .name = #fn, .test = &fn }
#define TEST_SIGNAL(fn, sig)	{ .name = #fn, .test = &fn, .signal = sig }
#define TEST_NEEDS(fn, path)	{ .name = #fn, .test = &fn, .needs = path }
#define TEST_NEEDS_CPU(fn, flag) { .name = #fn, .test = &fn, .needs_cpu = flag }
#define TEST_NEEDS_ENV(fn, var)	{ .name = #fn, .test = &fn, .needs_env = var }

struct results {
	int all;
	int failed;
	int skipped;
};

/*
 * The first line of the kernel log since the last call that is a complaint, and not
 * one that was expected, nor in the stack below it, or NULL. The caller frees it. Only
 * root may read the log.
 */
static char *kernel_complaint(const char *expected)
{
	static int kmsg = -1;
	static regex_t complaint;
	char line[8192], *found = NULL;
	ssize_t len;

	if (kmsg < 0) {
		kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (kmsg < 0)
			return NULL;
		lseek(kmsg, 0, SEEK_END);
		if (regcomp(&complaint, KERNEL_COMPLAINTS, REG_EXTENDED | REG_NOSUB))
			abort();
	}
	for (;;) {
		len = read(kmsg, line, sizeof(line) - 1);
		if (len < 0 && errno == EPIPE)	/* overwritten before it was read */
			continue;
		if (len < 0)
			break;
		line[len] = 0;
		if (!found && !regexec(&complaint, line, 0, NULL, 0) &&
		    !(expected && (strstr(line, expected) || strstr(line, "+0x")))) {
			char *text = strchr(line, ';');

			found = strdup(text ? text + 1 : line);
			found[strcspn(found, "\n")] = 0;
		}
	}
	return found;
}

/* Whether the processor has a feature, and the kernel makes use of it. */
static bool cpu_has(const char *flag)
{
	char line[16384], *word = NULL, *rest;
	FILE *f = fopen("/proc/cpuinfo", "r");

	while (f && !word && fgets(line, sizeof(line), f))
		if (!strncmp(line, "flags", 5))
			for (word = strtok_r(line, "\n ", &rest); word && strcmp(word, flag);)
				word = strtok_r(NULL, "\n ", &rest);
	if (f)
		fclose(f);
	return word;
}

/* What a test needs and does not find, or NULL. */
static const char *missing_for(const struct test *test)
{
	const char *file = test->needs_env ? getenv(test->needs_env) : NULL;

	if (test->needs_cpu && !cpu_has(test->needs_cpu))
		return test->needs_cpu;
	if (test->needs_env && !file)
		return test->needs_env;
	if (file && access(file, R_OK | W_OK))
		return file;
	return test->needs && access(test->needs, R_OK | W_OK) ? test->needs : NULL;
}

/* Run one test and print its result; count what passed, failed and was skipped. */
static void run_test(const struct test *test, struct results *count)
{
	int nr = ++count->all;

	SRunner *runner;
	Suite *suite;
	TCase *tcase;
	char *complaint, *message = NULL;
	const char *missing;
	TestResult **results;
	bool ok;

	missing = missing_for(test);
	if (missing) {
		printf("ok %d - %s # SKIP no %s\n", nr, test->name, missing);
		count->skipped++;
		return;
	}
	tcase = tcase_create(test->name);
	suite = suite_create(test->name);
	runner = srunner_create(suite);
	/* It hangs. None takes a tenth of that on a machine that has little else to do. */
	tcase_set_timeout(tcase, 300);
	tcase_add_test_raise_signal(tcase, *test->test, test->signal);
	suite_add_tcase(suite, tcase);
	srunner_run_all(runner, CK_SILENT);
	ok = !srunner_ntests_failed(runner);
	if (!ok) {
		results = srunner_failures(runner);
		if (asprintf(&message, "%s:%d: %s", tr_lfile(results[0]), tr_lno(results[0]),
			     tr_msg(results[0])) < 0)
			abort();
		free(results);
	}
	srunner_free(runner);
	complaint = kernel_complaint(test->expects);
	ok = ok && !complaint;

	printf("%s %d - %s\n", ok ? "ok" : "not ok", nr, test->name);
	if (message)
		printf("# %s\n", message);
	if (complaint)
		printf("# kernel log: %s\n", complaint);
	fflush(stdout);
	free(message);
	free(complaint);
	count->failed += !ok;
}

static void usage(FILE *out, const char *program, const char *about)
{
	fprintf(out,
		"usage: %s [--tap] [--list] [TEST...]\n"
		"\n"
		"%s\n"
		"Runs the tests named, or all of them, each in a process of its own.\n"
		"\n"
		"  --tap   print TAP (Test Anything Protocol)\n"
		"  --list  print the tests' names\n"
		"  --help  print this\n"
		"\n"
		"Exits with 0 if all passed, 1 if one failed, 77 if there is no /dev/exmap.\n",
		program, about);
}

static const struct test *find_test(const struct test *tests, const char *name)
{
	for (; tests->name; tests++)
		if (!strcmp(tests->name, name))
			return tests;
	return NULL;
}

/* The main function of a test program. The table ends with an empty entry. */
static int check_main(int argc, char **argv, const char *about, const struct test *tests)
{
	static const struct option options[] = {
		{ "tap", no_argument, NULL, 't' },
		{ "list", no_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	struct results count = { };
	int option, all = 0;
	const struct test *test;
	bool tap = false;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (option) {
		case 't':
			tap = true;
			break;
		case 'l':
			for (test = tests; test->name; test++)
				puts(test->name);
			return 0;
		case 'h':
			usage(stdout, argv[0], about);
			return 0;
		default:
			usage(stderr, argv[0], about);
			return 1;
		}
	}
	for (int i = optind; i < argc; i++) {
		if (!find_test(tests, argv[i])) {
			fprintf(stderr, "%s: no test is called %s; --list shows what there is\n",
				argv[0], argv[i]);
			return 1;
		}
	}
	if (access("/dev/exmap", F_OK)) {
		fprintf(stderr, "%s: there is no /dev/exmap; load the module first (./load.sh)\n",
			argv[0]);
		return 77;
	}
	kernel_complaint(NULL);

	for (test = tests; test->name; test++)
		all++;
	if (optind < argc)
		all = argc - optind;
	if (tap)
		printf("1..%d\n", all);
	if (optind < argc)
		for (int i = optind; i < argc; i++)
			run_test(find_test(tests, argv[i]), &count);
	else
		for (test = tests; test->name; test++)
			run_test(test, &count);
	if (!tap)
		printf("%d passed, %d failed, %d skipped\n",
		       count.all - count.failed - count.skipped, count.failed, count.skipped);
	return count.failed ? 1 : 0;
}

#endif /* CHECK_MAIN_H */
