"""Seeding for every step and every picture."""

from __future__ import annotations

import torch

__all__ = ["seed_step"]


def seed_step(seed: int) -> None:
    """Seeds torch's generators of this process, the CPU's and that of the GPU in use, if there is one.

    ``torch.manual_seed`` asks CUDA as well where there is none: it then keeps the request with a formatted stack, which
    takes a millisecond, and memory that nothing frees. Once for every picture, that was a third of a training.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)
