/* A convolution whose weights are drawn each time they are used; a column is channel * taps + tap. */
struct convolution {
    struct drawn drawn;
    struct finish finish;
    struct window window;
    uint32_t group; /* output channels per group */
};

static void convolution(const struct convolution *l, const float *x, float *y)
{
    const struct drawn *d = &l->drawn;
    const struct window *s = &l->window;
    struct walk walk = walk_from_start(d);
    int32_t taps = s->kernel[0] * s->kernel[1], size = s->out[0] * s->out[1];
    clear(y, d->rows * (uint32_t)size);
    while (next(d, &walk)) {
        int32_t column = (int32_t)(walk.column + walk.row / l->group * d->columns);
        const float *channel = x + column / taps * s->in[0] * s->in[1];
        add_shifted(s, weight(d, &walk), column % taps, channel, y + walk.row * (uint32_t)size);
    }
    for (uint32_t row = 0; row < d->rows; row++)
        finish_channel(&l->finish, row, y + row * (uint32_t)size, size);
}
