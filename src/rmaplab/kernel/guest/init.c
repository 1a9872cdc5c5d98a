// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The first process of the guest, and its workers: a server of system calls.
 *
 * Process 1 reads lines "slot number arg1 .. arg6" (hexadecimal) from the second serial port and hands each to
 * the process in that slot (0: itself), which does what it says and writes the result to the same port.  A
 * number below OWN is a system call's; what they all mean is decided on the other side of the wire.
 *
 * A worker must not disturb the memory that it is told to shape.  So there is no libc (no heap, no TLS), the
 * program is linked where no history maps anything, and every process runs on a stack of its own inside .bss,
 * which leaves the stack that execve() made to the history.
 */

#define OWN 0x1000
enum {
	TOUCH = OWN,	/* address, length, write: 0, or -EFAULT if a page could not be touched */
	FORK,		/* slot, clone flags: pid */
	EXEC,		/* -: 0, from the new program */
	SPAWN,		/* slot: pid of a new process in it, which has called execve() */
	POKE,		/* index, up to 5 words: stored in the scratch area */
	SCRATCH,	/* -: the scratch area's address */
	PEEK,		/* index: a word of the scratch area, unsigned */
	FILL,		/* address, length, byte: stored there, 0 or -EFAULT */
};

#define SLOTS 128
#define STACK_SIZE 4096
#define FIRST_PIPE 16

#define SYS_read 0
#define SYS_write 1
#define SYS_open 2
#define SYS_rt_sigaction 13
#define SYS_ioctl 16
#define SYS_dup2 33
#define SYS_close 3
#define SYS_clone 56
#define SYS_execve 59
#define SYS_exit 60
#define SYS_pipe2 293

#define EFAULT 14
#define SIGCHLD 17
#define CLONE_PARENT 0x8000

typedef unsigned long word;

static char stacks[SLOTS][STACK_SIZE] __attribute__((aligned(4096)));
static char scratch[65536] __attribute__((aligned(4096)));
static int serial;

static long call(long nr, word a, word b, word c, word d, word e, word f)
{
	register word r10 asm("r10") = d;
	register word r8 asm("r8") = e;
	register word r9 asm("r9") = f;
	long result;

	asm volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return result;
}

/*
 * One access each, and no stack but for the return address: the signal handler lets them return -EFAULT.  (Not an
 * atomic read-modify-write: QEMU's emulation reads first.)  What is written to the first byte of a page is one of
 * four values, by its address, so that KSM finds some pages equal and some not.
 */
long touch_read(word addr);
long touch_write(word addr);
long touch_fill(word addr, word byte);
void touch_failed(void);
void on_signal(int signal, void *info, void *context);
void restorer(void);
long clone_onto(word flags, char *stack_end, word slot);
void serve(word slot);
asm(".text\n"
    "touch_read: movb (%rdi), %al; xor %eax, %eax; ret\n"
    "touch_write: mov %rdi, %rsi; shr $12, %rsi; and $3, %esi; inc %esi\n"
    "touch_fill: movb %sil, (%rdi); xor %eax, %eax; ret\n"
    "touch_failed: mov $-14, %rax; ret\n"
    "restorer: mov $15, %eax; syscall\n"
    /* The child goes on in serve(slot), on another stack. */
    "clone_onto: mov %rdx, %r12; xor %edx, %edx; xor %r10d, %r10d; xor %r8d, %r8d\n"
    "  mov $56, %eax; syscall; test %rax, %rax; jz 1f; ret\n"
    "1: mov %r12, %rdi; xor %ebp, %ebp; call serve\n"
    ".globl _start\n"
    "_start: mov %rsp, %rdi; call start\n");

#define REG_RIP (168 / 8)	/* of struct ucontext */

void on_signal(int signal, void *info, void *context)
{
	((word *)context)[REG_RIP] = (word)touch_failed;
}

static void die(void)
{
	call(SYS_exit, 1, 0, 0, 0, 0, 0);
}

static char *put_hex(char *at, word value)
{
	int shift = 60;

	while (shift && !(value >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		*at++ = "0123456789abcdef"[value >> shift & 15];
	return at;
}

static void reply(long result)
{
	char line[24], *at = line;

	if (result < 0) {
		*at++ = '-';
		result = -result;
	}
	at = put_hex(at, result);
	*at++ = '\n';
	call(SYS_write, serial, (word)line, at - line, 0, 0, 0);
}

static long touch(word addr, word length, word write)
{
	long result = 0;

	for (word end = addr + length; addr < end; addr += 4096)
		if (write ? touch_write(addr) : touch_read(addr))
			result = -EFAULT;
	return result;
}

static long fill(word addr, word length, word byte)
{
	long result = 0;

	for (word end = addr + length; addr < end && !result; addr++)
		result = touch_fill(addr, byte);
	return result;
}

static void exec_into(word slot)
{
	char number[8], *args[] = { number, 0 }, *environment[] = { 0 };

	*put_hex(number, slot) = 0;
	call(SYS_execve, (word)"/init", (word)args, (word)environment, 0, 0, 0);
	die();
}

static long spawn(word slot)
{
	/* A copy that does nothing but execve() may use this stack: clone without CLONE_VM copies it. */
	long pid = call(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0);

	if (pid == 0)
		exec_into(slot);
	return pid;
}

/* Does what a line says, in the process in `slot`, and reports the result. */
static void obey(word slot, word *v)
{
	switch (v[0]) {
	case TOUCH:
		return reply(touch(v[1], v[2], v[3]));
	case FORK:
		/* All are children of process 1, which can wait for each of them. */
		return reply(clone_onto(v[2] | CLONE_PARENT | SIGCHLD, stacks[v[1] + 1], v[1]));
	case EXEC:
		exec_into(slot);
	case SPAWN:
		/* The new program replies with 0 when it is there; then comes its pid. */
		return reply(spawn(v[1]));
	case POKE:
		for (int i = 0; i < 5; i++)
			((word *)scratch)[v[1] + i] = v[2 + i];
		return reply(0);
	case SCRATCH:
		return reply((long)scratch);
	case PEEK:
		return reply(((word *)scratch)[v[1]]);
	case FILL:
		return reply(fill(v[1], v[2], v[3]));
	default:
		return reply(call(v[0], v[1], v[2], v[3], v[4], v[5], v[6]));
	}
}

void serve(word slot)
{
	word line[7];

	while (call(SYS_read, FIRST_PIPE + 2 * slot, (word)line, sizeof(line), 0, 0, 0) == sizeof(line))
		obey(slot, line);
	die();
}

static int next_byte(void)
{
	static char buffer[256];
	static long have, used;

	if (used == have) {
		used = 0;
		have = call(SYS_read, serial, (word)buffer, sizeof(buffer), 0, 0, 0);
		if (have <= 0)
			die();
	}
	return buffer[used++];
}

/* Process 1: from the wire to the slots. */
static void dispatch(void)
{
	for (;;) {
		word v[8] = { 0 };
		int n = 0, c;

		while ((c = next_byte()) != '\n') {
			if (c == ' ')
				n++;
			else
				v[n] = v[n] << 4 | (c <= '9' ? c - '0' : c - 'a' + 10);
		}
		if (v[0] == 0)
			obey(0, v + 1);
		else
			call(SYS_write, FIRST_PIPE + 2 * v[0] + 1, (word)(v + 1), 7 * sizeof(word), 0, 0, 0);
	}
}

static void begin(void)
{
	unsigned termios[16];
	int ends[2];

	serial = call(SYS_open, (word)"/dev/ttyS1", 2, 0, 0, 0, 0);
	call(SYS_dup2, serial, 3, 0, 0, 0, 0);
	serial = 3;
	call(SYS_ioctl, serial, 0x5401, (word)termios, 0, 0, 0);
	termios[0] = termios[1] = termios[3] = 0;	/* raw: iflag, oflag, lflag */
	call(SYS_ioctl, serial, 0x5402, (word)termios, 0, 0, 0);
	for (word slot = 1; slot < SLOTS; slot++) {
		call(SYS_pipe2, (word)ends, 0, 0, 0, 0, 0);
		call(SYS_dup2, ends[0], 1000, 0, 0, 0, 0);
		call(SYS_dup2, ends[1], 1001, 0, 0, 0, 0);
		call(SYS_close, ends[0], 0, 0, 0, 0, 0);
		call(SYS_close, ends[1], 0, 0, 0, 0, 0);
		call(SYS_dup2, 1000, FIRST_PIPE + 2 * slot, 0, 0, 0, 0);
		call(SYS_dup2, 1001, FIRST_PIPE + 2 * slot + 1, 0, 0, 0, 0);
	}
	call(SYS_close, 1000, 0, 0, 0, 0, 0);
	call(SYS_close, 1001, 0, 0, 0, 0, 0);
	reply(0);
	dispatch();
}

static void main_on_own_stack(word slot)
{
	struct {
		void (*handler)(int, void *, void *);
		word flags;
		void (*restorer)(void);
		word mask;
	} action = { on_signal, 0x04000000 | 0x4 | 0x40000000, restorer, 0 };	/* RESTORER, SIGINFO, NODEFER */

	call(SYS_rt_sigaction, 11, (word)&action, 0, 8, 0, 0);
	call(SYS_rt_sigaction, 7, (word)&action, 0, 8, 0, 0);
	if (slot == 0)
		begin();
	serial = 3;
	reply(0);
	serve(slot);
}

void start(word *initial)
{
	word slot = 0;

	/* A worker's name is its slot; the kernel calls process 1 by its path. */
	for (char *c = (char *)initial[1]; *(char *)initial[1] != '/' && *c; c++)
		slot = slot << 4 | (*c <= '9' ? *c - '0' : *c - 'a' + 10);
	asm volatile("mov %0, %%rsp; mov %1, %%rdi; xor %%ebp, %%ebp; call *%2" : : "r"(stacks[slot + 1]),
		     "r"(slot), "r"(main_on_own_stack) : "rdi");
	__builtin_unreachable();
}
