/* The outputs begin, ..., end - 1 along one axis for which element k of the kernel lies inside the input. */
static void inside(const struct window *s, int axis, int32_t k, int32_t *begin, int32_t *end)
{
    int32_t low = s->padding[axis] - k * s->dilation[axis], high = s->in[axis] - 1 + low, stride = s->stride[axis];
    *begin = low > 0 ? (low + stride - 1) / stride : 0;
    *end = high < 0 ? 0 : high / stride + 1;
    if (*end > s->out[axis])
        *end = s->out[axis];
}

/* Add w times the shifted input channel x to the output channel y; `tap` is the position of w in the kernel. */
static void add_shifted(const struct window *s, float w, int32_t tap, const float *x, float *y)
{
    int32_t ky = tap / s->kernel[1], kx = tap % s->kernel[1], top, bottom, left, right;
    inside(s, 0, ky, &top, &bottom);
    inside(s, 1, kx, &left, &right);
    for (int32_t i = top; i < bottom; i++) {
        const float *row = x + (i * s->stride[0] + ky * s->dilation[0] - s->padding[0]) * s->in[1];
        int32_t first = kx * s->dilation[1] - s->padding[1];
        float *to = y + i * s->out[1];
        if (s->stride[1] == 1)
            for (int32_t j = left; j < right; j++)
                to[j] += w * row[first + j];
        else
            for (int32_t j = left; j < right; j++)
                to[j] += w * row[first + j * s->stride[1]];
    }
}

static void finish_channel(const struct finish *f, uint32_t unit, float *y, int32_t size)
{
    for (int32_t i = 0; i < size; i++)
        y[i] = finish(f, unit, y[i]);
}
