// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A kernel module that calls trace_printk() and trace_puts() when it is loaded.
 *
 * It is made without a kernel's headers: guest.module() says how large `struct module`
 * is and where in it what is set here lies. What it lacks, versions of symbols, a
 * kernel does without that can force modules.
 */

int init_module(void);

static struct {
	char before_name[NAME_OFFSET];
	char name[INIT_OFFSET - NAME_OFFSET];
	int (*init)(void);
	char after_init[SIZE - INIT_OFFSET - sizeof(void *)];
} this_module __attribute__((used, aligned(64),
			     section(".gnu.linkonce.this_module"))) = {
	.name = "trace_printk",
	.init = init_module,
};

#define INFO(name, text)                                                        \
	static const char name[] __attribute__((used, section(".modinfo"))) = text

/* The symbols are exported to such only; the licence above allows it. */
INFO(license, "license=GPL");
INFO(module_name, "name=trace_printk");
INFO(vermagic, "vermagic=" VERMAGIC);
INFO(retpoline, "retpoline=Y");

int __trace_bprintk(unsigned long ip, const char *format, ...);
int __trace_bputs(unsigned long ip, const char *text);
int __trace_printk(unsigned long ip, const char *format, ...);
int __trace_puts(unsigned long ip, const char *text, int size);

/* Where this is used. */
#define HERE                                                                    \
	({                                                                      \
		__label__ here;                                                 \
	here:                                                                   \
		(unsigned long)&&here;                                          \
	})

/* A constant that the kernel keeps, even without the module. */
#define KEPT(text)                                                              \
	({                                                                      \
		static const char *kept                                         \
			__attribute__((used, section("__trace_printk_fmt"))) =  \
				text;                                           \
		kept;                                                           \
	})

#define trace(format, ...) __trace_bprintk(HERE, KEPT(format), ##__VA_ARGS__)

#define APART __attribute__((noinline, noclone))

static const unsigned char octets[] = { 10, 0, 2, 15, 0xab, 0xcd };

static APART void with_format(void)
{
	trace("nothing to fill in, 100%%\n");
	trace("%d %i %u %x %X %o\n", -1, -2, 3u, 0xdeadu, 0xbeefu, 0755u);
	trace("%ld %lu %lx\n", -5L, ~0UL, 1UL << 63);
	trace("%d then %lld and %d %llu\n", 1, -(1LL << 40), 2, ~0ULL);
	trace("%hhd %hhu %hd %hu %hhx %d\n", -1, 255, -2, 65535, 0xabu, 7);
	trace("%zu %zd %td %Lx\n", 1UL << 33, -9L, -8L, 0x123456789abcdefULL);
	trace("[%5d] [%-5d] [%05d] [%+d] [% d] [%#x] [%#o]\n", 42, 42, 42, 42, 42, 42u,
	      8u);
	trace("[%08x] [%#010lx] [%.3d] [%8.3d] [%-8.3x]\n", 1u, 2UL, 3, 4, 5u);
	trace("[%*d] [%-*d] [%*d] [%.*d]\n", 6, 1, 6, 2, -6, 3, 4, 5);
	trace("[%s] [%8s] [%-8s] [%.2s] [%8.3s] [%-8.3s]\n", "one", "two", "three",
	      "four", "fives", "sixes");
	trace("[%*s] [%.*s] [%*.*s] [%s]\n", 8, "width", 3, "precision", 9, 4, "both",
	      "");
	trace("%c%c [%3c] [%-3c] %s %c %d\n", 'o', 'k', 'r', 'l', "odd", '!', 12345);
	trace("%s %d %s %lld %s\n", "a", 1, "bc", 2LL, "def");
	trace("tab\there \"quoted\" back\\slash\n");
	trace("non-ASCII: \xc3\xa9\n");
}

static APART void with_pointers(void)
{
	const void *here = (const void *)with_pointers;
	const void *there = (const void *)__trace_bprintk;

	trace("%px %px\n", here, (const void *)0);
	trace("%p %p\n", here, there);
	trace("[%20px] [%-20px]\n", here, here);
	trace("[%20p] [%-20p]\n", here, here);
	trace("%p %p %p\n", (void *)0, (void *)-2L, (void *)-4000L);
	trace("%ps %pS %d\n", there, there, 1);
	trace("%ps %pS\n", here, here);
	trace("[%24ps] [%-24ps]\n", there, there);
	trace("%pK\n", there);
	trace("%pe %pe\n", (void *)-2L, (void *)-12L);
	trace("%pB %pSR|\n", there, there);
	trace("%pI4 %pi4 %pM\n", octets, octets, octets);
	trace("[%20pI4] [%-20pI4] %d\n", octets, octets, 3);
	trace("%*ph %*phC %*phN\n", 4, octets, 6, octets, 3, octets);
	trace("%pUb\n", "0123456789abcdef");
}

static APART void with_text(void)
{
	__trace_bputs(HERE, KEPT("a constant\n"));
	__trace_bputs(HERE, KEPT("100% constant, \"quoted\"\n"));
	__trace_puts(HERE, "not a constant\n", 15);
	__trace_puts(HERE, "cut", 2);
}

static APART void with_any_format(const char *format)
{
	__trace_printk(HERE, format, 1, "two", 3L);
	__trace_printk(HERE, "%ps and 100%%\n", __trace_bprintk);
}

static APART void without_end(void)
{
	trace("%d without an end", 1);
	trace("%d with it\n", 2);
}

int init_module(void)
{
	with_format();
	with_pointers();
	with_text();
	with_any_format("%d %s %ld\n");
	without_end();
	return 0;
}
