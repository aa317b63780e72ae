/* Row by row, for numbers of type T. Strides count numbers, from one row to the next; rows are dense otherwise. */

/* silu(gate) * up. */
void NAME(gate)(int64_t rows, int64_t width, const T *gate, int64_t gate_stride, const T *up, int64_t up_stride, T *out) {
    for (int64_t r = 0; r < rows; r++, gate += gate_stride, up += up_stride, out += width)
        EACH(i, n, width) {
            V x = NAME(get)(gate + i, n);
            NAME(put)(out + i, x * inverse_of(1.0f + exp_of(-x)) * NAME(get)(up + i, n), n);
        }
}

/* The same product, and its gradients. Both have one stride, so that they can be the two halves of one matrix. */
void NAME(gate_back)(int64_t rows, int64_t width, const T *gate, int64_t gate_stride, const T *up, int64_t up_stride,
                     const T *gradient, T *product, T *to_gate, T *to_up, int64_t stride) {
    for (int64_t r = 0; r < rows; r++, gate += gate_stride, up += up_stride, gradient += width, product += width, to_gate += stride, to_up += stride)
        EACH(i, n, width) {
            V x = NAME(get)(gate + i, n), g = NAME(get)(gradient + i, n);
            V sigmoid = inverse_of(1.0f + exp_of(-x));
            V silu = x * sigmoid, other = NAME(get)(up + i, n);
            NAME(put)(product + i, silu * other, n);
            NAME(put)(to_up + i, g * silu, n);
            NAME(put)(to_gate + i, g * other * (sigmoid + silu * (1.0f - sigmoid)), n);
        }
}

/* x / rms(x), rounded to T as Llama's family does, and that times the weight. */
void NAME(norm)(int64_t rows, int64_t width, const T *x, const T *weight, float eps, T *normed, float *inverse, T *out) {
    for (int64_t r = 0; r < rows; r++, x += width, normed += width, out += width) {
        V squares = {0};
        EACH(i, n, width) {
            V one = NAME(get)(x + i, n);
            squares += one * one;
        }
        inverse[r] = 1.0f / sqrtf(sum_of(squares) / width + eps);
        EACH(i, n, width) {
            NAME(put)(normed + i, NAME(get)(x + i, n) * inverse[r], n);
            NAME(put)(out + i, NAME(get)(normed + i, n) * NAME(get)(weight + i, n), n);
        }
    }
}

void NAME(norm_back)(int64_t rows, int64_t width, const T *gradient, const T *normed, const float *inverse, const T *weight, T *out) {
    for (int64_t r = 0; r < rows; r++, gradient += width, normed += width, out += width) {
        V products = {0};
        EACH(i, n, width) products += NAME(get)(gradient + i, n) * NAME(get)(weight + i, n) * NAME(get)(normed + i, n);
        float along = sum_of(products) / width;
        EACH(i, n, width) {
            V scaled = NAME(get)(gradient + i, n) * NAME(get)(weight + i, n);
            NAME(put)(out + i, (scaled - NAME(get)(normed + i, n) * along) * inverse[r], n);
        }
    }
}

/* Each row times the weight. */
void NAME(weigh)(int64_t rows, int64_t width, const T *x, const T *weight, T *out) {
    for (int64_t r = 0; r < rows; r++, x += width, out += width)
        EACH(i, n, width) NAME(put)(out + i, NAME(get)(x + i, n) * NAME(get)(weight + i, n), n);
}

/* Heads of 2 half numbers turned by angles whose cosines and sines are (tokens, 2 half). `sign` -1 turns by the transpose. */
void NAME(rotate)(int64_t tokens, int64_t heads, int64_t half, const T *x, int64_t token_stride, int64_t head_stride,
                  const T *cosines, const T *sines, float sign, T *out) {
    for (int64_t t = 0; t < tokens; t++, cosines += 2 * half, sines += 2 * half) {
        const T *first_sines = sign < 0 ? sines + half : sines, *second_sines = sign < 0 ? sines : sines + half;
        for (int64_t h = 0; h < heads; h++, out += 2 * half) {
            const T *from = x + t * token_stride + h * head_stride;
            EACH(i, n, half) {
                V first = NAME(get)(from + i, n), second = NAME(get)(from + half + i, n);
                NAME(put)(out + i, first * NAME(get)(cosines + i, n) - sign * second * NAME(get)(first_sines + i, n), n);
                NAME(put)(out + half + i, second * NAME(get)(cosines + half + i, n) + sign * first * NAME(get)(second_sines + i, n), n);
            }
        }
    }
}
