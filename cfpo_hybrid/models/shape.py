"""The shape of a decoder-only transformer: sizes only, the same for every engine. Pure."""

from dataclasses import dataclass

from cfpo_hybrid.errors import ModelError


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3RopeScaling:
    """Stretches low rotary frequencies beyond the original context (Llama 3.1, ``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """The mixture that stands in the place of every layer's MLP.

    Raises:
        ModelError: a token takes more experts than there are, or a size is below 1.
    """

    count: int
    per_token: int
    """Experts that each token passes through: those with the highest router probability."""
    intermediate_size: int
    """Of one expert."""
    normalised: bool
    """The chosen experts' probabilities are rescaled to sum to one."""

    def __post_init__(self) -> None:
        if not 1 <= self.per_token <= self.count or self.intermediate_size < 1:
            raise ModelError(f"no mixture can be built of {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a pre-norm transformer with RMSNorm, SwiGLU, rotary positions and grouped-query attention.

    Raises:
        ModelError: heads that do not divide into query groups, or a size below 1.
    """

    family: str
    """Name in ``FAMILIES``: Hugging Face's ``model_type``."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Of the MLP; a mixture of experts has its own."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    """Rows of the Hugging Face embedding; each engine pads its own copy."""
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: Llama3RopeScaling | None
    rms_norm_eps: float
    qkv_bias: bool
    tied_embeddings: bool
    qk_norm: bool = False
    """Each head's query and key pass an RMSNorm over head_dim before they are rotated."""
    experts: Experts | None = None

    def __post_init__(self) -> None:
        sizes = (self.num_layers, self.hidden_size, self.intermediate_size, self.num_heads, self.num_kv_heads)
        if min(*sizes, self.head_dim, self.vocab_size, self.max_position_embeddings) < 1:
            raise ModelError(f"every size of a model must be at least 1: {self}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"{self.num_heads} attention heads do not divide into {self.num_kv_heads} key-value heads; "
                "config.json is not one of a model that can exist"
            )

    @property
    def query_size(self) -> int:
        """Output rows of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Output rows of the key projection, and of the value projection."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Trained numbers, without padding; a tied embedding counts once."""
        qkv = (self.query_size + 2 * self.kv_size) * (self.hidden_size + self.qkv_bias)
        attention = qkv + self.query_size * self.hidden_size + 2 * self.head_dim * self.qk_norm
        layer = attention + self.mlp_parameters + 2 * self.hidden_size
        embeddings = (1 if self.tied_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.num_layers * layer + embeddings + self.hidden_size

    @property
    def mlp_parameters(self) -> int:
        """Trained numbers of a layer's MLP, or of its router and all its experts."""
        if self.experts is None:
            return 3 * self.hidden_size * self.intermediate_size
        return self.experts.count * self.hidden_size * (1 + 3 * self.experts.intermediate_size)
