// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the kernel of this machine takes for the operations that bench/ times in the model.
 *
 * usage: kernel CASE SIZE ROUNDS      prints one line a round: nanoseconds
 *
 * fork_vmas   fork and exit of a process with SIZE VMAs of one touched page each.  Holes keep the VMAs
 *             apart, so that none merges with its neighbour and each has an anon_vma of its own.
 * fork_pages  fork and exit of a process with SIZE touched pages in one VMA
 * mmap        mmap and munmap of one page among SIZE VMAs (one mmap and one munmap a round's operation)
 * mprotect    mprotect of one touched page there and back again, which splits nothing
 * mremap      mremap of one touched page to another place and back again
 * fault       first write to a page of a private anonymous mapping
 *
 * All memory is private, anonymous, and never of huge pages.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, OPERATIONS = 2000 };

static void fail(const char *what)
{
	perror(what);
	exit(2);
}

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static char *map(size_t length, int prot, int flags, char *at)
{
	char *p = mmap(at, length, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);

	if (p == MAP_FAILED)
		fail("mmap");
	return p;
}

static void touch(char *p, long pages)
{
	for (long i = 0; i < pages; i++)
		p[i * PAGE] = 1;
}

/* SIZE VMAs of one touched page, every second page of a range; returns the range's first page. */
static char *islands(long size)
{
	char *base = map((2 * size + 1) * PAGE, PROT_NONE, 0, NULL);

	if (munmap(base, (2 * size + 1) * PAGE))
		fail("munmap");
	for (long i = 0; i < size; i++)
		touch(map(PAGE, PROT_READ | PROT_WRITE, MAP_FIXED_NOREPLACE, base + 2 * i * PAGE), 1);
	return base;
}

static long fork_and_exit(void)
{
	long start = now();
	pid_t child = fork();

	if (child < 0)
		fail("fork");
	if (child == 0)
		_exit(0);
	if (waitpid(child, NULL, 0) != child)
		fail("waitpid");
	return now() - start;
}

static long mmaps(void)
{
	long start = now();

	for (int i = 0; i < OPERATIONS; i++)
		munmap(map(PAGE, PROT_READ, 0, NULL), PAGE);
	return (now() - start) / OPERATIONS;
}

static long mprotects(char *page)
{
	long start = now();

	for (int i = 0; i < OPERATIONS; i += 2)
		if (mprotect(page, PAGE, PROT_READ) || mprotect(page, PAGE, PROT_READ | PROT_WRITE))
			fail("mprotect");
	return (now() - start) / OPERATIONS;
}

static long mremaps(char *page, char *other)
{
	long start = now();

	for (int i = 0; i < OPERATIONS; i += 2)
		if (mremap(page, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other) == MAP_FAILED ||
		    mremap(other, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, page) == MAP_FAILED)
			fail("mremap");
	return (now() - start) / OPERATIONS;
}

static long faults(void)
{
	char *p = map(OPERATIONS * PAGE, PROT_READ | PROT_WRITE, 0, NULL);
	long start = now();

	touch(p, OPERATIONS);
	start = now() - start;
	munmap(p, OPERATIONS * PAGE);
	return start / OPERATIONS;
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: %s CASE SIZE ROUNDS\n", argv[0]);
		return 2;
	}
	const char *name = argv[1];
	long size = atol(argv[2]), rounds = atol(argv[3]);
	char *base = NULL;

	if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
		fail("prctl(PR_SET_THP_DISABLE)");
	if (!strcmp(name, "fork_pages"))
		touch(map(size * PAGE, PROT_READ | PROT_WRITE, 0, NULL), size);
	else
		base = islands(size);
	for (long i = 0; i < rounds; i++) {
		long took;

		if (!strncmp(name, "fork_", 5))
			took = fork_and_exit();
		else if (!strcmp(name, "mmap"))
			took = mmaps();
		else if (!strcmp(name, "mprotect"))
			took = mprotects(base + size / 2 * 2 * PAGE);
		else if (!strcmp(name, "mremap"))
			took = mremaps(base + size / 2 * 2 * PAGE, base + 2 * size * PAGE);
		else if (!strcmp(name, "fault"))
			took = faults();
		else {
			fprintf(stderr, "%s is no case\n", name);
			return 2;
		}
		printf("%ld\n", took);
	}
	return 0;
}
