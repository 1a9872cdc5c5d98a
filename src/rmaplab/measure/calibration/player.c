// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Plays histories on the kernel of this machine and times them.
 *
 * usage: player play CPU SCRIPT        prints the nanoseconds that the script's timed parts took
 *        player race CPUS SECONDS SCRIPT...   plays all scripts side by side, each on a CPU of its own as far as
 *                                      they go round, again and again; prints turns and nanoseconds of each
 *        player PRIMITIVE CPU OTHER    prints nanoseconds a unit of something that a kernel does all the time
 *        player wake-ups CPU OTHER     the same of waking a task on the other CPU, many times
 *
 * A script is an array of `struct op`, mapped as shared memory, so that no fork copies it.  All memory that it works
 * on is at addresses which it names itself.  The program is linked statically and allocates nothing, which keeps its
 * own part of the address space small and always the same.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MAX_CHILDREN = 512 };

/* Kinds of operations; programs.py has the same numbers. */
enum {
	MMAP = 1, MUNMAP, MPROTECT, MREMAP, MADVISE, MLOCK, MUNLOCK, WRITE, READ,
	FORK,		/* a: operations of the child, which follow; b: it stays when it is done */
	WAIT,		/* for the children that do not stay, to their end */
	START, STOP,	/* of the time that is measured */
	ROUND,		/* begins what a race plays again and again, to the script's end */
	RECLAIM,	/* all that the kernel would take from a group of processes that is short of memory */
};

struct op {
	long kind, a, b, c, d, e, f;
};

static int file;	/* mapped where an operation asks for a file */

static void fail(const char *what)
{
	perror(what);
	_exit(2);
}

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

/* Processor time of this process and of its children that were waited for: what else runs here does not count. */
static long worked(void)
{
	struct timespec t;
	struct rusage children;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	getrusage(RUSAGE_CHILDREN, &children);
	return t.tv_sec * 1000000000L + t.tv_nsec +
	       (children.ru_utime.tv_sec + children.ru_stime.tv_sec) * 1000000000L +
	       (children.ru_utime.tv_usec + children.ru_stime.tv_usec) * 1000L;
}

static long clock_overhead;	/* what worked() itself adds to a timed part */

static long overhead(void)
{
	long least = 1L << 60;

	for (int i = 0; i < 50; i++) {
		long begun = worked(), took = worked() - begun;

		least = took < least ? took : least;
	}
	return least;
}

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity");
}

/*
 * Ask for as much of the CPUs as there is, and for a short slice, which lets who was woken go on at once: of a group of
 * one's own, too, where the scheduler shares them out by session (autogroup).  None of it changes what the kernel does on a
 * machine that is quiet (a real-time policy would: rwsems treat its tasks differently), and who may not ask goes without.
 */
static void prefer(void)
{
	struct {
		unsigned size, policy;
		unsigned long flags;
		int nice;
		unsigned priority;
		unsigned long runtime, deadline, period;
	} slice = { .size = 48, .policy = SCHED_OTHER, .nice = -20, .runtime = 100000 };
	int fd;

	setsid();
	if (syscall(SYS_sched_setattr, 0, &slice, 0))
		setpriority(PRIO_PROCESS, 0, -20);
	fd = open("/proc/self/autogroup", O_WRONLY);
	if (fd >= 0) {
		if (write(fd, "-20", 3) < 0)
			errno = 0;
		close(fd);
	}
}

/*
 * Keep all CPUs from going idle, by tasks that give way to any other.  How long a CPU takes to wake up is a matter of the
 * processor and the hypervisor, and of how long it has slept; and while these are there, nobody else's task comes in
 * between when one of ours sleeps for a moment.  They end with the player.
 */
static void stay_awake(void)
{
	const pid_t player = getpid();
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		fail("sched_getaffinity");
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &set) || syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) != 0)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != player)
			_exit(0);	/* it ended before it could have told us */
		stay_on(cpu);
		if (sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){ 0 }))
			fail("sched_setscheduler");
		for (;;)
			__builtin_ia32_pause();
	}
}

static void touch(volatile char *p, long pages, int write)
{
	for (long i = 0; i < pages; i++) {
		if (write)
			p[i * PAGE] = 1;
		else
			(void)p[i * PAGE];
	}
}

static const char *group;	/* the directory of a memory cgroup of our own, if a script needs one */

static void tell_group(const char *name, const char *what)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", group, name);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		fail(path);
	if (write(fd, what, strlen(what)) < 0 && errno != EAGAIN)	/* which says that less was there */
		fail(path);
	close(fd);
}

/*
 * Reclaims, by the same code as kswapd, and sees that the pages are gone.  Returns what of the time has nothing to do with
 * them: twice the time of a call that finds nothing any more, since the first took that, too, and that of having a look.
 */
static long reclaim(char *at, long length)
{
	static unsigned char there[8192];
	const char *name = getenv("RMAPLAB_RECLAIM");
	const char *what;
	long begun, pages = length / PAGE, left = 0, in_vain;

	if (!name) {
		fprintf(stderr, "there is no cgroup to reclaim from\n");
		_exit(2);
	}
	what = strcmp(name, "memory.reclaim") ? "1" : "1G";
	tell_group(name, what);
	begun = worked();
	tell_group(name, what);
	in_vain = worked() - begun;
	if (pages > (long)sizeof(there) || mincore(at, length, there))
		fail("mincore");
	for (long i = 0; i < pages; i++)
		left += there[i] & 1;
	if (left > pages / 16) {
		fprintf(stderr, "%ld of %ld pages were not reclaimed\n", left, pages);
		_exit(2);
	}
	return worked() - begun + in_vain;
}

static void play(const struct op *op, const struct op *end);

/* A child that plays [op, end).  `ready` is -1, or it stays and closes that when it is done. */
static pid_t start_child(const struct op *op, const struct op *end, int stays)
{
	int ready[2];
	char byte;

	if (stays && pipe(ready))
		fail("pipe");
	/* Not fork(): the C library's would write to pages of its own on both sides. */
	pid_t child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	if (child < 0)
		fail("clone");
	if (child == 0) {
		if (stays)
			prctl(PR_SET_PDEATHSIG, SIGKILL);
		play(op, end);
		if (stays) {
			close(ready[0]);
			close(ready[1]);
			for (;;)
				pause();
		}
		_exit(0);
	}
	if (stays) {
		close(ready[1]);
		if (read(ready[0], &byte, 1))
			fail("a child that was to stay");
		close(ready[0]);
	}
	return child;
}

static void reap(pid_t child)
{
	int status;

	while (waitpid(child, &status, 0) != child)
		if (errno != EINTR)
			fail("waitpid");
	if (status)
		_exit(2);
}

static void do_memory(const struct op *op)
{
	void *at = (void *)op->a;
	long failed = 0;

	switch (op->kind) {
	case MMAP:
		failed = mmap(at, op->b, op->c, op->d, op->e < 0 ? -1 : file, op->f) != at;
		break;
	case MUNMAP:
		failed = munmap(at, op->b);
		break;
	case MPROTECT:
		failed = mprotect(at, op->b, op->c);
		break;
	case MREMAP:
		failed = mremap(at, op->b, op->c, op->d, op->e) != (void *)op->f;
		break;
	case MADVISE:
		failed = madvise(at, op->b, op->c);
		break;
	case MLOCK:
		failed = mlock2(at, op->b, op->c);
		break;
	case MUNLOCK:
		failed = munlock(at, op->b);
		break;
	default:
		errno = EINVAL;
		failed = 1;
	}
	if (failed) {
		fprintf(stderr, "operation %ld at %#lx: %s\n", op->kind, op->a, strerror(errno));
		_exit(2);
	}
}

static void play(const struct op *op, const struct op *end)
{
	pid_t leaving[MAX_CHILDREN], staying[MAX_CHILDREN];
	int nr_leaving = 0, nr_staying = 0, timed = 0;
	long begun = 0, took = 0;

	for (; op < end; op++) {
		switch (op->kind) {
		case WRITE:
		case READ:
			touch((char *)op->a, op->b, op->kind == WRITE);
			break;
		case FORK:
			if (nr_leaving == MAX_CHILDREN || nr_staying == MAX_CHILDREN) {
				fprintf(stderr, "too many children\n");
				_exit(2);
			}
			if (op->b)
				staying[nr_staying++] = start_child(op + 1, op + 1 + op->a, 1);
			else
				leaving[nr_leaving++] = start_child(op + 1, op + 1 + op->a, 0);
			op += op->a;
			break;
		case WAIT:
			while (nr_leaving)
				reap(leaving[--nr_leaving]);
			break;
		case START:
			timed = 1;
			begun = worked();
			break;
		case STOP:
			took += worked() - begun - clock_overhead;
			break;
		case ROUND:
			break;
		case RECLAIM:
			took -= reclaim((char *)op->a, op->b);
			break;
		default:
			do_memory(op);
		}
	}
	while (nr_leaving)
		reap(leaving[--nr_leaving]);
	while (nr_staying) {
		kill(staying[--nr_staying], SIGKILL);
		waitpid(staying[nr_staying], NULL, 0);
	}
	if (timed) {
		char line[32];
		int length = snprintf(line, sizeof(line), "%ld\n", took);

		if (write(1, line, length) != length)
			fail("write");
	}
}

static const struct op *load(const char *path, const struct op **end)
{
	int fd = open(path, O_RDONLY);
	struct stat info;
	const struct op *ops;

	if (fd < 0 || fstat(fd, &info))
		fail(path);
	ops = mmap(NULL, info.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (ops == MAP_FAILED)
		fail("mmap");
	close(fd);
	*end = ops + info.st_size / sizeof(*ops);
	return ops;
}

/*
 * Race.  The process plays what stands before the first ROUND and forks one racer for each ROUND, which plays what
 * follows it up to the next ROUND again and again.
 */
struct racer {
	_Atomic long turns, ns;
	char apart[112];
};

static void run_racer(const struct op *op, const struct op *end, struct racer *racer, _Atomic int *phase)
{
	long turns = 0, begun;

	while (atomic_load(phase) == 0)
		sched_yield();
	while (atomic_load(phase) == 1)		/* warm up */
		play(op, end);
	begun = now();
	do {				/* one turn, however busy the machine is */
		play(op, end);
		turns++;
	} while (atomic_load(phase) == 2);
	atomic_store(&racer->ns, now() - begun);
	atomic_store(&racer->turns, turns);
	while (atomic_load(phase) == 3)		/* nobody leaves while others are measured */
		play(op, end);
	_exit(0);
}

static void sleep_for(double seconds)
{
	struct timespec t = { (long)seconds, (seconds - (long)seconds) * 1e9 };

	nanosleep(&t, NULL);
}

static int race(int cpus, double seconds, int nr_scripts, char **scripts)
{
	enum { MAX_RACERS = 64 };
	struct {
		_Atomic int phase;
		char apart[124];
		struct racer racers[MAX_RACERS];
	} *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int nr_racers = 0;
	pid_t pids[MAX_RACERS];

	if (shared == MAP_FAILED)
		fail("mmap");
	for (int i = 0; i < nr_scripts; i++) {
		/* Each script is a family of its own, forked from this process, which has faulted nothing for it. */
		const struct op *end, *ops = load(scripts[i], &end), *op = ops;
		int first = nr_racers, count = 0;

		for (const struct op *o = ops; o < end; o++)
			count += o->kind == ROUND;
		if (first + count > MAX_RACERS) {
			fprintf(stderr, "too many racers\n");
			return 2;
		}
		nr_racers += count;
		pids[i] = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		if (pids[i] < 0)
			fail("clone");
		if (pids[i])
			continue;
		while (op < end && op->kind != ROUND)
			op++;
		play(ops, op);
		for (int r = first; r < nr_racers; r++) {
			const struct op *next = op + 1;

			while (next < end && next->kind != ROUND)
				next++;
			pid_t child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

			if (child == 0) {
				if (cpus)
					stay_on(r % cpus);
				run_racer(op + 1, next, &shared->racers[r], &shared->phase);
			}
			op = next;
		}
		for (int r = first, status; r < nr_racers; r++)
			if (wait(&status) < 0 || status)
				fail("a racer");
		_exit(0);
	}
	sleep_for(0.05);
	atomic_store(&shared->phase, 1);
	sleep_for(0.1);
	atomic_store(&shared->phase, 2);
	sleep_for(seconds);
	atomic_store(&shared->phase, 3);
	for (int tries = 0; tries < 1000; tries++) {
		int done = 0;

		for (int r = 0; r < nr_racers; r++)
			done += atomic_load(&shared->racers[r].turns) > 0;
		if (done == nr_racers)
			break;
		sleep_for(0.01);
	}
	atomic_store(&shared->phase, 4);
	for (int i = 0; i < nr_scripts; i++)
		reap(pids[i]);
	for (int r = 0; r < nr_racers; r++)
		printf("%ld %ld\n", (long)shared->racers[r].turns, (long)shared->racers[r].ns);
	return 0;
}

/* Primitives: what no history makes a kernel do by itself. */

static struct {
	_Atomic int word;
	char apart[124];
	_Atomic long time;
	_Atomic int go;
} *pair;

enum { TURNS = 2000, WINDOWS = 200 };

/* An acquisition and a release of a lock that is in this CPU's cache: an atomic operation each. */
static double lock(int cpu, int other)
{
	long least = 1L << 60;

	for (int window = 0; window < WINDOWS; window++) {
		int free = 0;
		long begun = now();

		for (int i = 0; i < TURNS; i++) {
			while (!atomic_compare_exchange_weak_explicit(&pair->word, &free, 1, memory_order_acquire,
								      memory_order_relaxed))
				free = 0;
			atomic_fetch_sub_explicit(&pair->word, 1, memory_order_release);
		}
		begun = now() - begun;
		least = begun < least ? begun : least;
	}
	return (double)least / TURNS;
}

/* A count goes up and down again, as rcu_read_lock() and rcu_read_unlock() have it. */
static double section(int cpu, int other)
{
	volatile int nesting = 0;
	long least = 1L << 60;

	for (int window = 0; window < WINDOWS; window++) {
		long begun = now();

		for (int i = 0; i < TURNS; i++) {
			nesting = nesting + 1;
			nesting = nesting - 1;
		}
		begun = now() - begun;
		least = begun < least ? begun : least;
	}
	return (double)least / TURNS;
}

/* The least time of an madvise() that changes nothing, of a page of any one of so many VMAs. */
static double advise_one_of(int vmas)
{
	const long apart = 2 * PAGE;
	char *area = mmap(NULL, vmas * apart, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long least = 1L << 60;
	unsigned int random = 1;

	if (area == MAP_FAILED)
		fail("mmap");
	for (int i = 0; i < vmas; i++)
		if (mprotect(area + i * apart, PAGE, PROT_READ))
			fail("mprotect");
	for (int window = 0; window < WINDOWS / 10; window++) {
		long begun = now();

		for (int i = 0; i < TURNS / 10; i++) {
			random = random * 1103515245 + 12345;
			if (madvise(area + (random >> 8) % vmas * apart, PAGE, MADV_NORMAL))
				fail("madvise");
		}
		begun = now() - begun;
		least = begun < least ? begun : least;
	}
	munmap(area, vmas * apart);
	return (double)least / (TURNS / 10);
}

static int smaller_double(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/*
 * A node of the tree of VMAs, by trees of 8 and of 512 VMAs in turn: what the greater one takes longer, by the levels that
 * it has more (LEVELS; mm/vma_tree.py counts them so).  More VMAs would not fit the second-level cache.  The median of
 * several turns, since another program may have had the CPU for one of them.
 */
static double look_up(int cpu, int other)
{
	enum { LEVELS = 2, ROUNDS = 15 };
	double longer[ROUNDS];

	for (int round = 0; round < ROUNDS; round++) {
		const double few = advise_one_of(8);

		longer[round] = advise_one_of(512) - few;
	}
	qsort(longer, ROUNDS, sizeof(*longer), smaller_double);
	return longer[ROUNDS / 2] > 0 ? longer[ROUNDS / 2] / LEVELS : 0;
}

/*
 * Objects that each name the next, in no order: two lines each, both of which are read.  The least of many windows: what
 * one takes when all of them are in the cache (`bytes` says in which), or in none.
 */
static double chase(char *area, long bytes, int windows)
{
	struct object {
		struct object *next;
		char first_line[56];
		long value;
		char second_line[56];
	} *objects = (struct object *)area, *at;
	long count = bytes / sizeof(*objects), sum = 0, least = 1L << 60;
	unsigned long random = 1;
	int *order = malloc(count * sizeof(*order));

	if (!order)
		fail("malloc");
	for (long i = 0; i < count; i++)
		order[i] = i;
	for (long i = count - 1; i > 0; i--) {
		random = random * 6364136223846793005UL + 1442695040888963407UL;
		long j = (random >> 33) % (i + 1);
		int kept = order[i];

		order[i] = order[j];
		order[j] = kept;
	}
	for (long i = 0; i < count; i++) {
		objects[order[i]].next = &objects[order[(i + 1) % count]];
		objects[order[i]].value = i & 1;
	}
	free(order);
	at = objects;
	for (int window = 0; window < windows; window++) {
		long begun = now();

		for (int i = 0; i < TURNS; i++) {
			sum += at->value;
			at = at->next;
		}
		begun = now() - begun;
		least = begun < least ? begun : least;
	}
	if (sum < 0)
		fail("a sum");
	return (double)least / TURNS;
}

/* An object in the second-level cache, where what one walk used is still there for the next. */
static double object(int cpu, int other)
{
	static char area[128 << 10] __attribute__((aligned(128)));

	return chase(area, sizeof(area), WINDOWS);
}

/* A line that is in no cache.  By huge pages, as the kernel maps its own memory, where they can be had. */
static double cold_line(int cpu, int other)
{
	const long bytes = 512L << 20, huge = 2L << 20;
	char *area = mmap(NULL, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		fail("mmap");
	area = (char *)(((long)area + huge - 1) & -huge);
	prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
	madvise(area, bytes, MADV_HUGEPAGE);
	return chase(area, bytes, WINDOWS);
}

static long futex(int operation, int value)
{
	return syscall(SYS_futex, &pair->word, operation, value, NULL, NULL, 0);
}

static void call(void)
{
	syscall(SYS_getppid);
}

static void wake_nobody(void)
{
	futex(FUTEX_WAKE, 1);
}

static void wait_in_vain(void)
{
	futex(FUTEX_WAIT, pair->word + 1);	/* it has another value, so nobody sleeps */
}

static double least(void (*once)(void))
{
	long least = 1L << 60;

	for (int window = 0; window < WINDOWS; window++) {
		long begun = now(), took;

		for (int i = 0; i < TURNS / 10; i++)
			once();
		took = now() - begun;
		least = took < least ? took : least;
	}
	return (double)least / (TURNS / 10);
}

static void spin_until(int value)
{
	while (atomic_load_explicit(&pair->word, memory_order_acquire) != value)
		__builtin_ia32_pause();
}

static void sleep_until(int value)
{
	int seen;

	while ((seen = atomic_load(&pair->word)) != value)
		futex(FUTEX_WAIT, seen);
}

static int smaller(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;

	return (x > y) - (x < y);
}

static double quartile(long *windows)
{
	qsort(windows, WINDOWS, sizeof(*windows), smaller);
	return windows[WINDOWS / 4];
}

/*
 * Two tasks give each other the word in turn: from one's store to the other's answer, one way.  The lower quartile of
 * many windows, since another program may have had one of the CPUs meanwhile.
 */
static double give_in_turn(int cpu, int other, int turns, void (*until)(int), int wakes)
{
	static long windows[WINDOWS];
	pid_t child = fork();

	if (child < 0)
		fail("fork");
	if (child == 0) {
		stay_on(other);
		for (int i = 0; i < WINDOWS * turns; i++) {
			until(2 * i + 1);
			atomic_store(&pair->word, 2 * i + 2);
			if (wakes)
				futex(FUTEX_WAKE, 1);
		}
		_exit(0);
	}
	stay_on(cpu);
	for (int i = 0, window = 0; window < WINDOWS; window++) {
		long begun = now();

		for (int turn = 0; turn < turns; turn++, i++) {
			atomic_store(&pair->word, 2 * i + 1);
			if (wakes)
				futex(FUTEX_WAKE, 1);
			until(2 * i + 2);
		}
		windows[window] = now() - begun;
	}
	reap(child);
	return quartile(windows) / (2 * turns);
}

static double handover(int cpu, int other)
{
	return give_in_turn(cpu, other, 500, spin_until, 0);
}

/* In the kernel: the calls are taken off. */
static double context_switch(int cpu, int other)
{
	return give_in_turn(cpu, cpu, 20, sleep_until, 1) - least(wake_nobody) - least(wait_in_vain);
}

/*
 * A task wakes another, which has slept for a moment on another CPU, as one does who waits for a lock.  Sets how long it is
 * until that one runs, and how long the waker is busy with it, in order.  In races no CPU goes idle, so none does here.
 */
static void wake(int cpu, int other, long *waits, long *calls)
{
	enum { FIRST = 20 };	/* that one has yet to get to its CPU */
	pid_t child = fork();

	if (child < 0)
		fail("fork");
	if (child == 0) {
		stay_on(other);
		for (int i = 0; i < FIRST + WINDOWS; i++) {
			sleep_until(2 * i + 1);
			atomic_store(&pair->time, now());
			atomic_store(&pair->word, 2 * i + 2);
		}
		_exit(0);
	}
	stay_on(cpu);
	for (int i = 0; i < FIRST + WINDOWS; i++) {
		long begun = now(), done;
		const int window = i < FIRST ? 0 : i - FIRST;

		while (now() - begun < 20000)
			;
		begun = now();
		atomic_store(&pair->word, 2 * i + 1);
		futex(FUTEX_WAKE, 1);
		done = now();
		spin_until(2 * i + 2);
		waits[window] = atomic_load(&pair->time) - begun;
		calls[window] = done - begun;
	}
	reap(child);
	qsort(waits, WINDOWS, sizeof(*waits), smaller);
	qsort(calls, WINDOWS, sizeof(*calls), smaller);
}

/*
 * How long it takes until who was woken runs, in the kernel, many times: the waker's way there and the other's way back are
 * taken off, which are what the two calls take that find nothing to do, but for a way back and a way there.
 */
static void wake_ups(int cpu, int other)
{
	static long waits[WINDOWS], calls[WINDOWS];
	double ways;

	wake(cpu, other, waits, calls);
	ways = least(wake_nobody) + least(wait_in_vain) - least(call);
	for (int i = 0; i < WINDOWS; i++)
		printf("%.2f\n", waits[i] - ways);
}

static double waking(int cpu, int other)
{
	static long waits[WINDOWS], calls[WINDOWS];

	wake(cpu, other, waits, calls);
	return calls[WINDOWS / 2] - least(wake_nobody);
}

static void *spin(void *cpu)
{
	stay_on((int)(long)cpu);
	while (!atomic_load(&pair->go))
		__builtin_ia32_pause();
	return NULL;
}

/* What taking a right to write back costs; the median, as the other CPU may have run something else for a while. */
static double flushes(void)
{
	static long windows[WINDOWS];
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		fail("mmap");
	page[0] = 1;
	for (int window = 0; window < WINDOWS; window++) {
		long begun = now();

		for (int i = 0; i < 20; i++) {
			mprotect(page, PAGE, PROT_READ);
			mprotect(page, PAGE, PROT_READ | PROT_WRITE);
			page[0] = 1;
		}
		windows[window] = now() - begun;
	}
	qsort(windows, WINDOWS, sizeof(*windows), smaller);
	return windows[WINDOWS / 2] / 20.0;
}

static double shootdown(int cpu, int other)
{
	pthread_t thread;
	double alone, both;

	stay_on(cpu);
	alone = flushes();
	if (pthread_create(&thread, NULL, spin, (void *)(long)other))
		fail("pthread_create");
	sleep_for(0.02);
	both = flushes();
	atomic_store(&pair->go, 1);
	pthread_join(thread, NULL);
	return both > alone ? both - alone : 0;	/* only taking rights away interrupts the other */
}

static atomic_long turned;

static void *turn(void *cpu)
{
	stay_on((int)(long)cpu);
	while (!atomic_load(&pair->go))
		atomic_store_explicit(&turned, atomic_load_explicit(&turned, memory_order_relaxed) + 1, memory_order_relaxed);
	return NULL;
}

/* What a CPU loses that is interrupted for a flush: turns of a loop that it did not get round to. */
static double interrupted(int cpu, int other)
{
	static double lost[WINDOWS];
	pthread_t thread;
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	enum { FLUSHES = 50 };

	if (page == MAP_FAILED)
		fail("mmap");
	page[0] = 1;
	stay_on(cpu);
	if (pthread_create(&thread, NULL, turn, (void *)(long)other))
		fail("pthread_create");
	sleep_for(0.02);
	for (int window = 0; window < WINDOWS; window++) {
		long begun = now(), turns = atomic_load(&turned), time, alone, disturbed;
		double rate;

		while ((time = now() - begun) < 500000)
			;
		alone = atomic_load(&turned) - turns;
		rate = (double)alone / time;
		begun = now();
		turns = atomic_load(&turned);
		for (int i = 0; i < FLUSHES; i++) {
			mprotect(page, PAGE, PROT_READ);
			mprotect(page, PAGE, PROT_READ | PROT_WRITE);
			page[0] = 1;
		}
		time = now() - begun;
		disturbed = atomic_load(&turned) - turns;
		lost[window] = (time - disturbed / rate) / FLUSHES;
	}
	atomic_store(&pair->go, 1);
	pthread_join(thread, NULL);
	qsort(lost, WINDOWS, sizeof(*lost), smaller_double);
	return lost[WINDOWS / 2] > 0 ? lost[WINDOWS / 2] : 0;
}

/* MEMBARRIER_CMD_GLOBAL is a synchronize_rcu(). */
static double grace_period(int cpu, int other)
{
	enum { FEW = 10 };
	long begun;

	if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0))
		fail("membarrier");
	begun = now();
	for (int i = 0; i < FEW; i++)
		syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
	return (double)(now() - begun) / FEW;
}

static const struct {
	const char *name;
	double (*measure)(int cpu, int other);
} primitives[] = {
	{ "lock", lock }, { "section", section }, { "handover", handover },
	{ "context-switch", context_switch }, { "waking", waking }, { "shootdown", shootdown },
	{ "interrupt", interrupted }, { "grace-period", grace_period }, { "look-up", look_up },
	{ "object", object }, { "cold-line", cold_line },
};

int main(int argc, char **argv)
{
	if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
		fail("prctl(PR_SET_THP_DISABLE)");
	prefer();
	file = memfd_create("file", 0);
	if (file < 0 || ftruncate(file, 1L << 30))
		fail("memfd_create");
	if (argc == 4 && !strcmp(argv[1], "play")) {
		const struct op *end, *ops = load(argv[3], &end);

		group = getenv("RMAPLAB_GROUP");
		if (group)
			tell_group("cgroup.procs", "0");
		stay_on(atoi(argv[2]));
		/* A child does not run before its parent waits for it. */
		if (sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){ 0 }))
			fail("sched_setscheduler");
		clock_overhead = overhead();
		play(ops, end);
		return 0;
	}
	if (argc > 4 || (argc == 4 && !strncmp(argv[1], "wak", 3)))
		stay_awake();
	if (argc > 4 && !strcmp(argv[1], "race"))
		return race(atoi(argv[2]), atof(argv[3]), argc - 4, argv + 4);
	if (argc == 4) {
		const int cpu = atoi(argv[2]), other = atoi(argv[3]);

		pair = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (pair == MAP_FAILED)
			fail("mmap");
		stay_on(cpu);
		if (!strcmp(argv[1], "wake-ups")) {
			wake_ups(cpu, other);
			return 0;
		}
		for (unsigned i = 0; i < sizeof(primitives) / sizeof(*primitives); i++) {
			if (!strcmp(argv[1], primitives[i].name)) {
				printf("%.2f\n", primitives[i].measure(cpu, other));
				return 0;
			}
		}
	}
	fprintf(stderr, "usage: %s play CPU SCRIPT | race CPUS SECONDS SCRIPT... | PRIMITIVE CPU OTHER\n", argv[0]);
	return 2;
}
