/* Row by row, for numbers of type T. Strides count numbers, from one row to the next; rows are dense otherwise. */

/* silu(gate) * up. */
void NAME(gate)(int64_t threads, int64_t rows, int64_t width, const T *gate, int64_t gate_stride, const T *up, int64_t up_stride, T *out) {
    EACH_ROW(r) {
        const T *g = gate + r * gate_stride, *u = up + r * up_stride;
        EACH(i, n, width) {
            V x = NAME(get)(g + i, n);
            NAME(put)(out + r * width + i, x * inverse_of(1.0f + exp_of(-x)) * NAME(get)(u + i, n), n);
        }
    }
}

/* The same product, and its gradients. Both have one stride, so that they can be the two halves of one matrix. */
void NAME(gate_back)(int64_t threads, int64_t rows, int64_t width, const T *gate, int64_t gate_stride, const T *up, int64_t up_stride,
                     const T *gradient, T *product, T *to_gate, T *to_up, int64_t stride) {
    EACH_ROW(r) {
        const T *of_gate = gate + r * gate_stride, *of_up = up + r * up_stride;
        EACH(i, n, width) {
            V x = NAME(get)(of_gate + i, n), g = NAME(get)(gradient + r * width + i, n);
            V sigmoid = inverse_of(1.0f + exp_of(-x));
            V silu = x * sigmoid, other = NAME(get)(of_up + i, n);
            NAME(put)(product + r * width + i, silu * other, n);
            NAME(put)(to_up + r * stride + i, g * silu, n);
            NAME(put)(to_gate + r * stride + i, g * other * (sigmoid + silu * (1.0f - sigmoid)), n);
        }
    }
}

/* x / rms(x), rounded to T as Llama's family does, and that times the weight. */
void NAME(norm)(int64_t threads, int64_t rows, int64_t width, const T *x, const T *weight, float eps, T *normed, float *inverse, T *out) {
    EACH_ROW(r) {
        const T *from = x + r * width;
        T *quotient = normed + r * width;
        V squares = {0};
        EACH(i, n, width) {
            V one = NAME(get)(from + i, n);
            squares += one * one;
        }
        inverse[r] = 1.0f / sqrtf(sum_of(squares) / width + eps);
        EACH(i, n, width) {
            NAME(put)(quotient + i, NAME(get)(from + i, n) * inverse[r], n);
            NAME(put)(out + r * width + i, NAME(get)(quotient + i, n) * NAME(get)(weight + i, n), n);
        }
    }
}

void NAME(norm_back)(int64_t threads, int64_t rows, int64_t width, const T *gradient, const T *normed, const float *inverse, const T *weight, T *out) {
    EACH_ROW(r) {
        const T *from = gradient + r * width, *quotient = normed + r * width;
        V products = {0};
        EACH(i, n, width) products += NAME(get)(from + i, n) * NAME(get)(weight + i, n) * NAME(get)(quotient + i, n);
        float along = sum_of(products) / width;
        EACH(i, n, width) {
            V scaled = NAME(get)(from + i, n) * NAME(get)(weight + i, n);
            NAME(put)(out + r * width + i, (scaled - NAME(get)(quotient + i, n) * along) * inverse[r], n);
        }
    }
}

/* Each row times the weight. */
void NAME(weigh)(int64_t threads, int64_t rows, int64_t width, const T *x, const T *weight, T *out) {
    EACH_ROW(r) EACH(i, n, width) NAME(put)(out + r * width + i, NAME(get)(x + r * width + i, n) * NAME(get)(weight + i, n), n);
}

/* Heads of `width` numbers turned by angles whose cosines and sines are (rows, width), a row being a token. `sign` -1 turns by the transpose. */
void NAME(rotate)(int64_t threads, int64_t rows, int64_t heads, int64_t width, const T *x, int64_t token_stride, int64_t head_stride,
                  const T *cosines, const T *sines, float sign, T *out) {
    int64_t half = width / 2;
    EACH_ROW(t) {
        const T *cosine = cosines + t * width, *sine = sines + t * width;
        const T *first_sine = sign < 0 ? sine + half : sine, *second_sine = sign < 0 ? sine : sine + half;
        for (int64_t h = 0; h < heads; h++) {
            const T *from = x + t * token_stride + h * head_stride;
            T *to = out + (t * heads + h) * width;
            EACH(i, n, half) {
                V first = NAME(get)(from + i, n), second = NAME(get)(from + half + i, n);
                NAME(put)(to + i, first * NAME(get)(cosine + i, n) - sign * second * NAME(get)(first_sine + i, n), n);
                NAME(put)(to + half + i, second * NAME(get)(cosine + half + i, n) + sign * first * NAME(get)(second_sine + i, n), n);
            }
        }
    }
}
