"""The soft over-long punishment of DAPO: responses close to the length limit lose reward, the more the closer."""

from torch import Tensor

from cfpo_hybrid.errors import ConfigError


def overlong_punishment(response_lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    """From 0 down to -1, fp32 ``[batch]``: clip((max_length - buffer - length) / buffer, -1, 0).

    Yu et al., 2025 (arXiv 2503.14476), equation 13, where ``buffer`` is L_cache.

    Example: a limit of 10 tokens and a buffer of 4: lengths 6, 7, 10 give 0, -0.25, -1.

    Args:
        response_lengths: tokens of each response, ``[batch]``.
        max_length: tokens that a response may have.
        buffer: tokens below that limit over which the punishment grows.

    Raises:
        ConfigError: the buffer does not lie between 1 and the limit.
    """
    if not 1 <= buffer <= max_length:
        raise ConfigError(f"buffer={buffer} must be from 1 to the {max_length} tokens that a response may have")
    return ((max_length - buffer - response_lengths).float() / buffer).clamp(-1, 0)
