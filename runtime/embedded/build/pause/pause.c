/*
 * pause holds the namespaces of a pod: it sleeps until it is told to stop and
 * reaps orphans of a shared process namespace. Every pod pays for one of these,
 * so it has no C library and fits in a page or two.
 */
#include <asm/unistd.h>
#include <linux/signal.h>
#include <linux/types.h>

#if defined(__x86_64__)
static long call(long n, long a, long b, long c, long d)
{
	long r;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return r;
}
#elif defined(__aarch64__)
static long call(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#else
#error "pause: write the system call for this architecture"
#endif

enum { WNOHANG_ = 1, SET_SIZE = 8 };

/* Waiting for blocked signals needs no handler, and so no signal trampoline. */
static void rest(void)
{
	__u64 set = (1ull << (SIGINT - 1)) | (1ull << (SIGTERM - 1)) | (1ull << (SIGCHLD - 1));

	call(__NR_rt_sigprocmask, SIG_BLOCK, (long)&set, 0, SET_SIZE);
	for (;;) {
		/* Children may have ended before the signals were blocked. */
		while (call(__NR_wait4, -1, 0, WNOHANG_, 0) > 0)
			;
		long sig = call(__NR_rt_sigtimedwait, (long)&set, 0, 0, SET_SIZE);
		if (sig == SIGINT || sig == SIGTERM)
			call(__NR_exit_group, 0, 0, 0, 0);
	}
}

void _start(void)
{
	rest();
}
