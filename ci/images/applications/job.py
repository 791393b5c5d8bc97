"""A job of numpy's: one step after the other over two million numbers, and in the end their sum, which arithmetic alone predicts."""

import time

import numpy

NUMBERS, STEPS = 1 << 21, 400

numbers = numpy.arange(NUMBERS, dtype=numpy.uint64)
for step in range(1, STEPS + 1):
    numbers = numbers * numpy.uint64(6364136223846793005) + numpy.uint64(1442695040888963407)
    print(f"step {step} sum {numbers.sum(dtype=numpy.uint64)}", flush=True)
    time.sleep(0.05)
print(f"result {numbers.sum(dtype=numpy.uint64)}", flush=True)
while True:
    time.sleep(60)
