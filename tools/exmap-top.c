// SPDX-License-Identifier: GPL-2.0
/*
 * Show all exmaps of the machine, as top shows processes. It only reads
 * /proc/PID/fdinfo/FD, so it sees the exmaps of processes that its user may look into.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* What fdinfo says, by the name that it has there. */
enum value {
	ID, INTERFACES, CEILING, TAKEN, MAPPED, FREE, DEFERRED, IN_FLIGHT,
	ALLOCS, FREES, READS, WRITES, STEALS, FLUSHES, VALUES,
};

static const char *const name_of[VALUES] = {
	[ID] = "exmap-id", [INTERFACES] = "exmap-interfaces",
	[CEILING] = "exmap-pages-ceiling", [TAKEN] = "exmap-pages-system",
	[MAPPED] = "exmap-pages-mapped", [FREE] = "exmap-pages-free",
	[DEFERRED] = "exmap-pages-deferred", [IN_FLIGHT] = "exmap-pages-in-flight",
	[ALLOCS] = "exmap-allocs", [FREES] = "exmap-frees", [READS] = "exmap-reads",
	[WRITES] = "exmap-writes", [STEALS] = "exmap-steals", [FLUSHES] = "exmap-flushes",
};

/* An exmap, at one look. */
struct look {
	int pid;
	char command[16];
	uint64_t value[VALUES];
};

/* All of them, and when that was. */
struct looks {
	struct timespec time;
	size_t nr;
	size_t room;
	struct look *look;
};

static struct {
	double delay;
	long rounds;
	bool batch;
	bool csv;
} option = { .delay = 1.0, .rounds = -1 };

static struct termios terminal;
static volatile sig_atomic_t stopped;
static sigset_t unblocked;	/* the signals as they were */

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "exmap-top: ");
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

/* A file of /proc; NULL where it has gone, or is none of our business. */
static FILE *open_of(int pid, const char *format, const char *name)
{
	char path[64 + NAME_MAX];
	int len = snprintf(path, sizeof(path), "/proc/%d/", pid);

	snprintf(path + len, sizeof(path) - len, format, name);
	return fopen(path, "re");
}

/* Not a socket or the like. What it is called is no sign: it can be mounted anywhere. */
static bool is_on_a_path(int pid, const char *fd)
{
	char path[64 + NAME_MAX], first;

	snprintf(path, sizeof(path), "/proc/%d/fd/%s", pid, fd);
	return readlink(path, &first, 1) == 1 && first == '/';
}

static void read_values(FILE *file, struct look *look)
{
	char line[256], name[64];
	uint64_t number;
	int i;

	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%63[^:]: %" SCNu64, name, &number) != 2)
			continue;
		for (i = 0; i < VALUES; i++)
			if (!strcmp(name, name_of[i]))
				look->value[i] = number;
	}
}

static void read_command(struct look *look)
{
	FILE *file = open_of(look->pid, "%s", "comm");
	char *c;

	strcpy(look->command, "?");
	if (!file)
		return;
	if (fgets(look->command, sizeof(look->command), file))
		look->command[strcspn(look->command, "\n")] = '\0';
	fclose(file);
	/* A process can call itself what it likes, but not draw on our screen or in a CSV. */
	for (c = look->command; *c; c++)
		if (!isprint((unsigned char)*c) || strchr(",\"'", *c) ||
		    (c == look->command && strchr("=+-@", *c)))
			*c = '?';
}

static struct look *find(const struct looks *looks, uint64_t id)
{
	size_t i;

	for (i = 0; i < looks->nr; i++)
		if (looks->look[i].value[ID] == id)
			return &looks->look[i];
	return NULL;
}

/* Take an exmap in, unless it is there: CLONE and fork make more files of one. */
static void look_at_file(struct looks *looks, int pid, const char *fd)
{
	struct look look = { .pid = pid };
	FILE *file = open_of(pid, "fdinfo/%s", fd);

	if (!file)
		return;
	read_values(file, &look);
	fclose(file);
	if (!look.value[INTERFACES] || find(looks, look.value[ID]))
		return;
	read_command(&look);
	if (looks->nr == looks->room) {
		looks->room = looks->room ? 2 * looks->room : 64;
		looks->look = realloc(looks->look, looks->room * sizeof(look));
		if (!looks->look)
			fail("out of memory");
	}
	looks->look[looks->nr++] = look;
}

static void look_at_process(struct looks *looks, int pid)
{
	char path[32];
	struct dirent *entry;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir)))
		if (isdigit((unsigned char)entry->d_name[0]) && is_on_a_path(pid, entry->d_name))
			look_at_file(looks, pid, entry->d_name);
	if (dir)
		closedir(dir);
}

static void look_around(struct looks *looks)
{
	struct dirent *entry;
	DIR *dir = opendir("/proc");

	if (!dir)
		fail("/proc cannot be read (%s): is it mounted?", strerror(errno));
	looks->nr = 0;
	clock_gettime(CLOCK_MONOTONIC, &looks->time);
	while ((entry = readdir(dir)))
		if (isdigit((unsigned char)entry->d_name[0]))
			look_at_process(looks, atoi(entry->d_name));
	closedir(dir);
}

static double rate(const struct looks *now, const struct looks *before, const struct look *look,
		   enum value value)
{
	const struct look *old = find(before, look->value[ID]);
	double seconds = (double)(now->time.tv_sec - before->time.tv_sec) +
			 (double)(now->time.tv_nsec - before->time.tv_nsec) / 1e9;

	if (!old || seconds <= 0 || look->value[value] < old->value[value])
		return 0;
	return (double)(look->value[value] - old->value[value]) / seconds;
}

/* Who has most pages comes first. */
static int compare(const void *a, const void *b)
{
	const struct look *x = a, *y = b;

	if (x->value[TAKEN] != y->value[TAKEN])
		return x->value[TAKEN] < y->value[TAKEN] ? 1 : -1;
	return x->value[ID] < y->value[ID] ? -1 : x->value[ID] > y->value[ID];
}

/* A number in five columns. */
static const char *scaled(double number, char *buffer)
{
	static const char unit[] = " kMGT";
	int i = 0;

	for (; number >= 9999.5 && i < 4; i++)
		number /= 1000;
	sprintf(buffer, "%4.0f%c", number, unit[i]);
	return buffer;
}

static const char *mebibytes(uint64_t pages, char *buffer)
{
	sprintf(buffer, "%" PRIu64, pages / 256);
	return buffer;
}

static void print_csv(const struct looks *now, const struct looks *before)
{
	size_t i;
	int v;

	for (i = 0; i < now->nr; i++) {
		printf("%lld.%03ld,%d,%s", (long long)now->time.tv_sec,
		       now->time.tv_nsec / 1000000, now->look[i].pid, now->look[i].command);
		for (v = ID; v < ALLOCS; v++)
			printf(",%" PRIu64, now->look[i].value[v]);
		for (; v < VALUES; v++)
			printf(",%.0f", rate(now, before, &now->look[i], v));
		putchar('\n');
	}
}

/* What fits on 80 columns comes first. */
static void print_table(const struct looks *now, const struct looks *before, int lines)
{
	uint64_t taken = 0;
	char buffer[32];
	size_t i;
	int v;

	for (i = 0; i < now->nr; i++)
		taken += now->look[i].value[TAKEN];
	printf("exmap-top: %zu exmaps, %s MiB. Pages in MiB; rates in pages, shootdowns per second\n\n",
	       now->nr, mebibytes(taken, buffer));
	printf("%7s %-12s %6s %6s %6s %5s %5s %5s %5s %5s %5s %5s %6s %4s %8s\n", "PID", "COMMAND",
	       "SYSTEM", "MAPPED", "FREE", "ALLOC", "FREES", "READ", "WRITE", "STEAL", "SHOOT",
	       "DEFER", "FLIGHT", "IF", "CEILING");
	for (i = 0; i < now->nr && (lines < 0 || i + 4 < (size_t)lines); i++) {
		const uint64_t *value = now->look[i].value;

		printf("%7d %-12.12s", now->look[i].pid, now->look[i].command);
		printf(" %6s", mebibytes(value[TAKEN], buffer));
		printf(" %6s", mebibytes(value[MAPPED], buffer));
		printf(" %6s", mebibytes(value[FREE], buffer));
		for (v = ALLOCS; v < VALUES; v++)
			printf(" %5s", scaled(rate(now, before, &now->look[i], v), buffer));
		printf(" %5s", mebibytes(value[DEFERRED], buffer));
		printf(" %6s", mebibytes(value[IN_FLIGHT], buffer));
		printf(" %4" PRIu64, value[INTERFACES]);
		printf(" %8s\n", mebibytes(value[CEILING], buffer));
	}
}

static void print(const struct looks *now, const struct looks *before)
{
	struct winsize size = { .ws_row = 24 };

	if (option.csv) {
		print_csv(now, before);
	} else if (option.batch) {
		print_table(now, before, -1);
		putchar('\n');
	} else {
		if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_row)
			size.ws_row = 24;
		/* From the upper left corner on an empty screen, no line of it wrapped. */
		printf("\033[H\033[2J\033[?7l");
		print_table(now, before, size.ws_row);
	}
	if (fflush(stdout) || ferror(stdout))
		fail("cannot write its output: %s", strerror(errno));
}

/* Wait for the next round. False where there is to be none. */
static bool wait_for_key(void)
{
	struct pollfd key = { .fd = option.batch ? -1 : STDIN_FILENO, .events = POLLIN };
	struct timespec delay = { .tv_sec = (time_t)option.delay };
	char c = 0;

	delay.tv_nsec = (long)((option.delay - (double)delay.tv_sec) * 1e9);
	/* Signals come in here only, so that none is slept over. */
	if (ppoll(&key, 1, &delay, &unblocked) > 0 &&
	    (read(STDIN_FILENO, &c, 1) <= 0 || c == 'q'))
		return false;
	return !stopped;
}

static void on_signal(int signal)
{
	stopped = 1;
}

/* What ends the program has it put the terminal right first. */
static void catch_signals(void)
{
	static const int ends[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction action = { .sa_handler = on_signal };
	sigset_t set;
	size_t i;

	sigemptyset(&set);
	for (i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		sigaddset(&set, ends[i]);
		sigaction(ends[i], &action, NULL);
	}
	sigprocmask(SIG_BLOCK, &set, &unblocked);
}

static void restore_terminal(void)
{
	printf("\033[?7h\033[?25h\n");
	fflush(stdout);
	tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
}

static void use_terminal(void)
{
	struct termios raw;

	if (!isatty(STDOUT_FILENO) || tcgetattr(STDIN_FILENO, &terminal))
		fail("no terminal: use --batch or --csv");
	atexit(restore_terminal);
	raw = terminal;
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	/* No core and no stop, which would leave it like this. */
	raw.c_cc[VQUIT] = _POSIX_VDISABLE;
	raw.c_cc[VSUSP] = _POSIX_VDISABLE;
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	printf("\033[?25l");
}

static void usage(void)
{
	puts("usage: exmap-top [OPTION...]\n"
	     "Show all exmaps of the machine, once a second; q ends it. Without privileges it sees\n"
	     "those of its user.\n"
	     "\n"
	     "  -b, --batch      write table after table, not on a terminal\n"
	     "  -c, --csv        write lines of numbers: all in pages, then pages per second\n"
	     "  -d, --delay=S    so many seconds from one to the next (default 1)\n"
	     "  -n, --rounds=N   end after so many\n"
	     "  -h, --help       this");
}

static double number(const char *argument, double least)
{
	char *end;
	double value = strtod(argument, &end);

	if (*end || end == argument || !(value >= least && value <= 1e6))
		fail("%s is no number from %g to 1000000: see --help", argument, least);
	return value;
}

static void options(int argc, char **argv)
{
	static const struct option known[] = {
		{ "batch", no_argument, NULL, 'b' },
		{ "csv", no_argument, NULL, 'c' },
		{ "delay", required_argument, NULL, 'd' },
		{ "rounds", required_argument, NULL, 'n' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "bcd:n:h", known, NULL)) >= 0) {
		switch (c) {
		case 'b':
			option.batch = true;
			break;
		case 'c':
			option.batch = true;
			option.csv = true;
			break;
		case 'd':
			option.delay = number(optarg, 0.1);
			break;
		case 'n':
			option.rounds = (long)number(optarg, 1);
			break;
		case 'h':
			usage();
			exit(0);
		default:
			exit(1);
		}
	}
	if (optind < argc)
		fail("it takes no argument like %s: see --help", argv[optind]);
}

int main(int argc, char **argv)
{
	struct looks looks[2] = { };
	int now = 0;

	options(argc, argv);
	catch_signals();
	if (!option.batch)
		use_terminal();
	if (option.csv)
		puts("time,pid,command,id,interfaces,ceiling,system,mapped,free,deferred,in_flight,allocs,frees,reads,writes,steals,flushes");
	look_around(&looks[now]);
	/* Rates take two looks. */
	while (option.rounds-- && wait_for_key()) {
		now = !now;
		look_around(&looks[now]);
		if (looks[now].nr)
			qsort(looks[now].look, looks[now].nr, sizeof(looks[now].look[0]), compare);
		print(&looks[now], &looks[!now]);
	}
	free(looks[0].look);
	free(looks[1].look);
	return 0;
}
