/* Geometry of a convolution or pooling layer: input, output, kernel, stride, padding, dilation; rows first. */
struct window {
    int32_t in[2], out[2], kernel[2], stride[2], padding[2], dilation[2];
};
