/* A batch norm or activation that does not follow a linear layer or convolution directly; y may be x. */
struct pointwise {
    uint32_t channels;
    int32_t size; /* of a channel */
    struct finish finish;
};

static void pointwise(const struct pointwise *p, const float *x, float *y)
{
    for (uint32_t c = 0; c < p->channels; c++)
        for (int32_t i = 0; i < p->size; i++)
            *y++ = finish(&p->finish, c, *x++);
}
