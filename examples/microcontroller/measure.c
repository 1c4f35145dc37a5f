/* Print the instructions and the stack that the program needs for one image, on the emulated board. QEMU counts one
   nanosecond per instruction (-icount shift=0), and the timer of the board ticks every 40 nanoseconds. */
#include "build/digits.h"

#include <stdio.h>

#define TIMER ((volatile uint32_t *)0xE000E010) /* SysTick: control, reload value, current value */
#define PAINTED 1024

static uint8_t image[DIGITS_INPUTS];
static float work[DIGITS_WORK], scores[DIGITS_OUTPUTS];

int main(int argc, char **argv)
{
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!file || fread(image, sizeof image, 1, file) != 1)
        return 1;
    register volatile uint8_t *stack __asm__("sp");
    volatile uint8_t *low = stack - PAINTED;
    for (int i = 0; i < PAINTED; i++)
        low[i] = 0xA5;
    TIMER[1] = TIMER[2] = 0xFFFFFF;
    TIMER[0] = 5;
    uint32_t before = TIMER[2];
    digits_predict(image, scores, work);
    uint32_t ticks = (before - TIMER[2]) & 0xFFFFFF;
    int left = 0;
    while (left < PAINTED && low[left] == 0xA5)
        left++;
    printf("instructions %lu\nstack %d\n", 40UL * ticks, PAINTED - left);
    return 0;
}
