static void pixels(const struct pixels *p, const uint8_t *x, float *y)
{
    for (uint32_t c = 0; c < p->channels; c++)
        for (uint32_t i = 0; i < p->size; i++)
            *y++ = *x++ * p->scale[c] + p->shift[c];
}
