"""Driving simulators that live outside JAX, each in a worker process of its own."""
