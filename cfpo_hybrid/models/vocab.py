"""Padded sizes of the embedding in either engine. Rows beyond the Hugging Face vocabulary belong to no token."""

MEGATRON_ROWS = 8
"""A tensor-parallel rank's embedding rows are a multiple of this: 16 bytes of bf16, which tensor cores like.

Megatron-LM's own 128 would make the tiny vocabularies of tests mostly padding.
"""

VLLM_ROWS = 64
"""vLLM pads the whole vocabulary to a multiple of this, whatever its tensor-parallel size is."""


def padded_vocab_size(vocab_size: int, tp: int) -> int:
    """Rows of Megatron's whole embedding: the smallest multiple of ``8 * tp`` that holds the vocabulary.

    Example: ``padded_vocab_size(100, 2) == 112``.
    """
    return _round_up(vocab_size, MEGATRON_ROWS * tp)


def vllm_padded_vocab_size(vocab_size: int) -> int:
    """Rows of vLLM's whole embedding (``pad_vocab_size`` of its ``VocabParallelEmbedding``)."""
    return _round_up(vocab_size, VLLM_ROWS)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
