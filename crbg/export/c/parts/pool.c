struct pool {
    uint32_t channels;
    struct window window;
    int average;     /* otherwise the maximum */
    int32_t divisor; /* of averages: 0 for the number of elements inside the input, -1 for those inside the padding too */
};

static int32_t at_most(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static void pool(const struct pool *p, const float *x, float *y)
{
    const struct window *s = &p->window;
    for (uint32_t c = 0; c < p->channels; c++, x += s->in[0] * s->in[1])
        for (int32_t i = 0; i < s->out[0]; i++)
            for (int32_t j = 0; j < s->out[1]; j++) {
                int32_t top = i * s->stride[0] - s->padding[0], left = j * s->stride[1] - s->padding[1], count = 0;
                int32_t bottom = at_most(top + s->kernel[0], s->in[0] + s->padding[0]);
                int32_t right = at_most(left + s->kernel[1], s->in[1] + s->padding[1]);
                int32_t padded = (bottom - top) * (right - left);
                float sum = 0, most = 0;
                for (int32_t u = top < 0 ? 0 : top; u < at_most(bottom, s->in[0]); u++)
                    for (int32_t v = left < 0 ? 0 : left; v < at_most(right, s->in[1]); v++) {
                        float value = x[u * s->in[1] + v];
                        most = count && value < most ? most : value;
                        sum += value;
                        count++;
                    }
                if (p->average)
                    most = sum / (float)(p->divisor > 0 ? p->divisor : p->divisor ? padded : count);
                *y++ = most;
            }
}
