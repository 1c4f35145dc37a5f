/* Read images of 28 x 28 bytes from a file, and print the class of each. */
#include "build/digits.h"

#include <stdio.h>

static uint8_t image[DIGITS_INPUTS];
static float work[DIGITS_WORK], scores[DIGITS_OUTPUTS];

int main(int argc, char **argv)
{
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!file) {
        fprintf(stderr, "usage: main FILE (one byte per pixel, %d bytes per image)\n", DIGITS_INPUTS);
        return 1;
    }
    while (fread(image, sizeof image, 1, file) == 1) {
        int best = 0;
        digits_predict(image, scores, work);
        for (int i = 1; i < DIGITS_OUTPUTS; i++)
            if (scores[i] > scores[best])
                best = i;
        printf("%d\n", best);
    }
    fclose(file);
    return 0;
}
