"""The filter of FMLP-Rec as what it is by the convolution theorem: a circular convolution over places."""

import cmath

import numpy as np


def kernel(weight, length):
    """Inverse Fourier transform of the filter's frequencies 0 to length / 2 and their conjugates.

    A real signal has no imaginary part at frequency 0 and, of an even length, at length / 2: they are left out.
    """
    full = [complex(value) for value in weight]
    for frequency in {0, length // 2 if length % 2 == 0 else 0}:
        full[frequency] = complex(full[frequency].real)
    full += [full[length - frequency].conjugate() for frequency in range(len(full), length)]
    return [
        sum(full[f] * cmath.exp(2j * cmath.pi * f * place / length) for f in range(length)).real / length
        for place in range(length)
    ]


def circular_convolution(signal, weight):
    """y[t] = Σ_s kernel[t − s mod length] · x[s], in one dimension."""
    length = len(signal)
    filtered = kernel(weight, length)
    return np.array([sum(filtered[(t - s) % length] * signal[s] for s in range(length)) for t in range(length)])
