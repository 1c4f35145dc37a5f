/* The kept weights of a convolution, output channel by output channel; a column is channel * taps + tap. */
struct convolution {
    uint32_t units;
    const position *starts; /* of each output channel; the last entry is the end */
    const position *columns;
    const float *weights;
    struct finish finish;
    struct window window;
};

static void convolution(const struct convolution *l, const float *x, float *y)
{
    const struct window *s = &l->window;
    int32_t taps = s->kernel[0] * s->kernel[1], size = s->out[0] * s->out[1];
    for (uint32_t unit = 0; unit < l->units; unit++, y += size) {
        clear(y, (uint32_t)size);
        for (uint32_t i = l->starts[unit]; i < l->starts[unit + 1]; i++) {
            int32_t channel = (int32_t)l->columns[i] / taps, tap = (int32_t)l->columns[i] % taps;
            add_shifted(s, l->weights[i], tap, x + channel * s->in[0] * s->in[1], y);
        }
        finish_channel(&l->finish, unit, y, size);
    }
}
