#!/usr/bin/env python3
"""Times in PyTorch the convolutions that `cargo bench --package vqgan-cpu-kernels` times: milliseconds of the fastest of some runs,
contiguous and with channels last, for the output and the gradients at the input and at the weights."""
import time

import torch

LAYERS = [
    (128, 128, 256, 3, 1, (1, 1)), (256, 256, 128, 3, 1, (1, 1)), (256, 256, 64, 3, 1, (1, 1)), (512, 512, 32, 3, 1, (1, 1)),
    (512, 512, 16, 3, 1, (1, 1)), (64, 64, 224, 3, 1, (1, 1)), (128, 128, 112, 3, 1, (1, 1)), (3, 128, 256, 3, 1, (1, 1)),
    (128, 3, 256, 3, 1, (1, 1)), (128, 128, 256, 3, 2, (0, 1)), (512, 512, 16, 1, 1, (0, 0)), (128, 256, 64, 1, 1, (0, 0)),
    (64, 128, 128, 4, 2, (1, 1)), (256, 512, 32, 4, 1, (1, 1)), (3, 768, 224, 32, 32, (0, 0)),
]


def fastest(run):
    def once():
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    once()
    return min(once() for _ in range(10)) * 1e3


for inputs, outputs, size, kernel, stride, (before, after) in LAYERS:
    times = []
    for layout in (torch.contiguous_format, torch.channels_last):
        if before != after:  # as the models do it: a padded copy
            pad = lambda x: torch.nn.functional.pad(x, (before, after, before, after))
            padding = 0
        else:
            pad, padding = lambda x: x, before
        x = torch.rand(1, inputs, size, size).to(memory_format=layout)
        weights = torch.rand(outputs, inputs, kernel, kernel).to(memory_format=layout)
        padded = pad(x)
        run = lambda: torch.nn.functional.conv2d(pad(x), weights, stride=stride, padding=padding)
        gradient = torch.rand_like(run()).to(memory_format=layout)
        backward = lambda which: torch.ops.aten.convolution_backward(
            gradient, padded, weights, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [which == 0, which == 1, False])
        with torch.no_grad():
            times.append([fastest(run), fastest(lambda: backward(0)), fastest(lambda: backward(1))])
    shown = ["/".join(f"{t:.1f}" for t in pair) for pair in zip(*times)]
    print(f"{inputs} to {outputs} at {size}, {kernel}x{kernel}/{stride}: output {shown[0]}, at input {shown[1]}, at weights {shown[2]}")
