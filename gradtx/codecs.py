"""The formats that slots are stored in, apart from the maths of rules: what ``state_dtype`` takes."""

from __future__ import annotations

from gradtx._core.codecs import Blocks, Codec, Encoded, Rounded, decoded

__all__ = ["Blocks", "Codec", "Encoded", "Rounded", "decoded"]
