/* Set values to 0. Compilers do not know this zero, so that they do not call memset, which belongs to a C library. */
static void clear(float *y, uint32_t count)
{
    static const volatile float zero = 0;
    float value = zero;
    for (uint32_t i = 0; i < count; i++)
        y[i] = value;
}
