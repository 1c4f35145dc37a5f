/* The start of the program on a Cortex-M4: switch the floating-point unit on, and enter the C library. */
#include <stdint.h>

extern unsigned stack_top;
void _start(void);

static void reset(void)
{
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: full access to the coprocessors 10 and 11 */
    __asm volatile("dsb\n\tisb");
    _start();
}

__attribute__((section(".vectors"), used)) static const void *const vectors[2] = {&stack_top, (const void *)reset};
