typedef float lanes __attribute__((vector_size(64)));

struct layer {
    const float *weight; /* one row for each input */
    const float *shift, *slope; /* y = sum + shift, then y < 0 ? slope * y : y */
    int inputs, units;
};

static void one(const struct layer *l, const float *x, float *restrict y)
{
    const float *w = l->weight;
    for (int j = 0; j < l->units; j++)
        y[j] = l->shift[j];
    for (int i = 0; i < l->inputs; i++, w += l->units)
        for (int j = 0; j < l->units; j++)
            y[j] += w[j] * x[i];
    for (int j = 0; j < l->units; j++)
        y[j] = y[j] < 0 ? l->slope[j] * y[j] : y[j];
}

/* Compute 16 inputs at a time in one vector, and four units at a time in registers. */
static void tile(const struct layer *l, const lanes *x, lanes *restrict y)
{
    for (int j = 0; j < l->units; j += 4) {
        int left = l->units - j < 4 ? l->units - j : 4;
        const float *w = l->weight + j;
        lanes sum[4] = {{0}, {0}, {0}, {0}};
        for (int i = 0; i < l->inputs; i++, w += l->units)
            for (int u = 0; u < 4; u++)
                sum[u] += w[u < left ? u : 0] * x[i];
        for (int u = 0; u < left; u++) {
            lanes all = sum[u] + l->shift[j + u], scaled = all * l->slope[j + u];
            for (int k = 0; k < 16; k++)
                y[j + u][k] = all[k] < 0 ? scaled[k] : all[k];
        }
    }
}

/* Compute the outputs of `count` inputs; the work memory has room for two activations of 16 inputs. */
void dense(const struct layer *l, int layers, int widest, const float *x, float *y, int count, lanes *work)
{
    int inputs = l[0].inputs, outputs = l[layers - 1].units;
    for (; count >= 16; count -= 16, x += 16 * inputs, y += 16 * outputs) {
        lanes *in = work, *out = work + widest, *swap;
        for (int i = 0; i < inputs; i++)
            for (int k = 0; k < 16; k++)
                in[i][k] = x[k * inputs + i];
        for (int n = 0; n < layers; n++) {
            tile(l + n, in, out);
            swap = in, in = out, out = swap;
        }
        for (int k = 0; k < 16; k++)
            for (int i = 0; i < outputs; i++)
                y[k * outputs + i] = in[i][k];
    }
    for (; count; count--, x += inputs, y += outputs) {
        float *out = (float *)work, *other = (float *)(work + widest), *swap;
        const float *in = x;
        for (int n = 0; n < layers; n++) {
            one(l + n, in, n == layers - 1 ? y : out);
            in = out;
            swap = out, out = other, other = swap;
        }
    }
}
