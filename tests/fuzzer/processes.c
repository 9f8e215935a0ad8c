// SPDX-License-Identifier: GPL-2.0
/*
 * The processes of a round: each runs the model or several threads. The parent watches them, kills
 * those with several threads at random moments, and starts them again.
 */
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "fuzzer.h"

#define PATIENCE 180		/* seconds without a call after which a process hangs */

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
	/* The kernel removes the exmaps of a process that exits, in an order of its own. */
	_exit(0);
}

struct process {
	pid_t pid;
	unsigned int incarnation;
	unsigned long kill_at;		/* kill it after so many calls */
	unsigned long calls;		/* that it had made when last seen */
	time_t since;			/* when @calls last changed */
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

/* Watch a process. Returns false if it has failed or hangs. */
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
			printf("tests/fuzz: seed %lu, process %u: was killed by signal %d\n",
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

/* Run one round. Returns how many calls it made, or 0 if one went wrong. */
unsigned long run_seed(void)
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
