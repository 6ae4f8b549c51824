"""vLLM in the training process, one rank of it: its weights are live parameters that the resharder writes into.

Results do not depend on arrival order, batch composition, the number of replicas or how much fits at a time: every
request carries the seed of its row, and a row that is put off for want of cache goes on where its seed was. With tensor
parallelism all ranks of a replica get the same rows and sample the same tokens.
"""

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from vllm import LLM, SamplingParams
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.outputs import RequestOutput

from cfpo_hybrid.errors import BatchError, ReshardError
from cfpo_hybrid.models import FAMILIES, ModelShape
from cfpo_hybrid.models.engine_specs import vllm_specs
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.resharding import ShardSpec
from workers.config import RolloutConfig
from workers.rollout.engine import SamplingSettings, Stops
from workers.rollout.vllm_support import (
    PlainExperts,
    import_model,
    live_weights,
    own_shared_memory,
    preserved_random_state,
)

PAD_TOKEN = 0
"""Fills response columns beyond a response's length; nothing reads it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """What an engine rank is built from, besides the rollout's configuration.

    Args:
        folder: local Hugging Face folder; only config.json is read, weights come by resharding.
        shape: of that model.
        rank: in the world; replicas are consecutive ranks.
        dtype: of weights and activations.
        max_model_len: longest prompt + response, in tokens.
        stops: what ends a response.
        job: unique to the job, the same on all its ranks.
        device: where it runs.
        tokenizer: that writes responses as text, where a stop is a text.
    """

    folder: str
    shape: ModelShape
    rank: int
    dtype: torch.dtype
    max_model_len: int
    stops: Stops
    job: str
    device: torch.device
    tokenizer: PreTrainedTokenizerFast | None = None


class VllmEngine:
    """A rank of vLLM behind the RolloutEngine protocol.

    The constructor is collective over the default process group, which must exist. Its weights are random until the
    first reshard.

    Raises:
        ReshardError: weights shall be written directly, and vLLM's parameters are not those of the shard specs.
    """

    def __init__(self, config: RolloutConfig, settings: EngineSettings) -> None:
        self._settings = settings
        self._tp = config.tensor_parallel_size
        self._asleep: set[str] = set()
        self._reloading = False
        import_model(FAMILIES.get(settings.shape.family).architecture)
        with preserved_random_state(), live_weights(), own_shared_memory(settings.job):
            self._llm = LLM(
                settings.folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                dtype=str(settings.dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
                max_model_len=settings.max_model_len,
                tensor_parallel_size=self._tp,
                distributed_executor_backend="external_launcher",
                enable_prefix_caching=config.enable_prefix_caching,
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=max(config.max_num_batched_tokens, settings.max_model_len),
                logprobs_mode="processed_logprobs",
                **_device_arguments(config, settings.device),
            )
        # What vLLM would load itself; requests that ask for no text do without.
        self._llm.llm_engine.output_processor.tokenizer = settings.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        self._model: nn.Module = self._llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
        self._experts = PlainExperts(self._model)
        if config.load_format == "direct":
            _check_parameters(self.specs(), self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._settings.dtype

    def generate(self, batch: DataProto, sampling: SamplingSettings, response_width: int) -> DataProto:
        """Samples one response a row; see ``RolloutEngine``.

        Raises:
            BatchError: a token outside the vocabulary, an empty prompt, or a prompt that leaves no room.
        """
        prompts = [
            row[:length]
            for row, length in zip(batch["prompts"].tolist(), batch["prompt_lengths"].tolist(), strict=True)
        ]
        self._check_tokens(prompts, room=sampling.max_tokens)
        if sampling.max_tokens > response_width:
            raise BatchError(f"max_tokens={sampling.max_tokens} does not fit columns of {response_width} positions")
        parameters = [self._sampling_params(sampling, seed) for seed in batch["seeds"].tolist()]
        return DataProto(_response_columns(self._run(prompts, parameters), response_width))

    def score(self, sequences: list[list[int]]) -> list[Tensor]:
        """Log-probs of tokens 1, 2, ... of each sequence at temperature 1.

        Raises:
            BatchError: a token outside the vocabulary, or a sequence that does not fit.
        """
        self._check_tokens(sequences, room=1)
        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, flat_logprobs=True, detokenize=False
        )
        outputs = self._run(sequences, [parameters] * len(sequences))
        # Position 0 has no log-prob; every other one just its own token's.
        return [torch.tensor(output.prompt_logprobs.logprobs) for output in outputs]  # pyright: ignore

    def parameters(self) -> dict[str, Tensor]:
        """The live local parameters by vLLM's names; a layer's experts as the matrix of all their rows."""
        live = {name: parameter.data for name, parameter in self._model.named_parameters()} | self._experts.tensors
        return {
            name: tensor.view(-1, tensor.shape[-1]) if tensor.dim() > 2 else tensor for name, tensor in live.items()
        }

    def specs(self) -> list[ShardSpec]:
        """What each local parameter holds."""
        return vllm_specs(self._settings.shape, self._tp, self._settings.rank % self._tp)

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Takes full tensors under their Hugging Face names through vLLM's own loader.

        vLLM's protocol for new weights: each layer is loaded beside the live one, prepared for its kernels and copied
        into place once it is complete; :meth:`finish_update` ends it.
        """
        with live_weights():
            if not self._reloading:
                initialize_layerwise_reload(self._model)
                self._reloading = True
            self._model.load_weights(tensors)  # pyright: ignore[reportCallIssue]

    def finish_update(self) -> None:
        """Drops the prefix cache: its keys and values are those of the old weights."""
        if self._reloading:
            with live_weights():
                finalize_layerwise_reload(self._model, self._llm.model_config)
            self._reloading = False
            self._experts.take_over()
        self._experts.pack()
        if not self._llm.reset_prefix_cache():
            raise ReshardError("vLLM refused to reset its prefix cache; a request is still running")

    def sleep(self) -> None:
        """Frees weights and KV cache on a GPU; nothing on a CPU."""
        if self._settings.device.type == "cuda" and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = {"weights", "kv_cache"}

    def sleep_kv_cache(self) -> None:
        """Frees the KV cache on a GPU, and keeps the weights; nothing on a CPU."""
        if self._settings.device.type == "cuda" and not self._asleep:
            self._llm.sleep(level=0)  # vLLM frees the cache only of a paused engine; waking it unpauses
            self._llm.release_kv_cache_memory()
            self._asleep = {"kv_cache"}

    def wake_weights(self) -> None:
        """Takes memory for the weights again, on a GPU."""
        self._wake("weights")

    def wake_kv_cache(self) -> None:
        """Takes memory for the KV cache again, on a GPU."""
        self._wake("kv_cache")

    def close(self) -> None:
        """Frees the engine."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._model, self._llm
        gc.collect()

    def _wake(self, tag: str) -> None:
        # Waking what is awake would map its memory twice.
        if tag in self._asleep:
            self._llm.wake_up(tags=[tag])
            self._asleep.discard(tag)

    def _run(self, prompts: Sequence[list[int]], parameters: list[SamplingParams]) -> list[RequestOutput]:
        if not prompts:
            return []
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        with preserved_random_state():
            try:
                return self._llm.generate(requests, parameters, use_tqdm=False)  # pyright: ignore[reportArgumentType]
            except BaseException:
                # What is left of the requests would come out of the next call.
                engine = self._llm.llm_engine
                engine.abort_request(list(engine.output_processor.request_states), internal=True)
                raise

    def _sampling_params(self, sampling: SamplingSettings, seed: int) -> SamplingParams:
        stops = Stops(token_ids=()) if sampling.ignore_stop else self._settings.stops
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=0.0 if sampling.greedy else sampling.temperature,
            top_p=1.0 if sampling.greedy else sampling.top_p,
            top_k=0 if sampling.greedy else max(sampling.top_k, 0),
            seed=seed,
            stop_token_ids=list(stops.token_ids),
            ignore_eos=True,  # the stop tokens above are all there are
            stop=list(stops.texts),
            detokenize=bool(stops.texts),
            skip_special_tokens=False,  # a stop may hold one
            include_stop_str_in_output=True,  # of the text alone; the tokens are those sampled in either case
            logprobs=0,
            flat_logprobs=True,
        )

    def _check_tokens(self, sequences: Sequence[list[int]], room: int) -> None:
        """Refuses what would raise inside vLLM's step and leave its request in the engine for ever."""
        vocab_size, longest = self._settings.shape.vocab_size, self._settings.max_model_len - room
        for row, tokens in enumerate(sequences):
            if not 1 <= len(tokens) <= longest:
                raise BatchError(
                    f"row {row} has {len(tokens)} tokens; vLLM takes 1 to {longest} beside {room} new ones "
                    f"(max_model_len {self._settings.max_model_len})"
                )
            if min(tokens) < 0 or max(tokens) >= vocab_size:
                wrong = next(token for token in tokens if not 0 <= token < vocab_size)
                raise BatchError(f"row {row} has token id {wrong}; the model's vocabulary has {vocab_size} tokens")


def _device_arguments(config: RolloutConfig, device: torch.device) -> dict[str, Any]:
    """The arguments that differ between a CPU and a GPU."""
    if device.type == "cpu":
        return {
            # The share of the machine would be taken by every process. Sleep mode raises on a CPU.
            "kv_cache_memory_bytes": config.kv_cache_bytes,
            "enforce_eager": True,
            # vLLM draws a token after each piece of a prompt and rewinds the row's generator by what it drew; one on a
            # CPU cannot be rewound. A prompt that does not fit into a pass beside the others waits for the next.
            "enable_chunked_prefill": False,
        }
    return {
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enable_sleep_mode": True,
        "enforce_eager": config.enforce_eager,
    }


def _response_columns(outputs: Sequence[RequestOutput], width: int) -> dict[str, Tensor]:
    rows = len(outputs)
    responses = torch.full((rows, width), PAD_TOKEN, dtype=torch.int64)
    log_probs = torch.zeros(rows, width, dtype=torch.float32)
    lengths = torch.zeros(rows, dtype=torch.int64)
    truncated = torch.zeros(rows, dtype=torch.bool)
    for row, output in enumerate(outputs):
        completion = output.outputs[0]
        length = len(completion.token_ids)
        lengths[row] = length
        truncated[row] = completion.finish_reason == "length"
        responses[row, :length] = torch.tensor(completion.token_ids)
        log_probs[row, :length] = torch.tensor(completion.logprobs.logprobs)  # pyright: ignore
    return {
        "responses": responses,
        "response_lengths": lengths,
        "response_mask": torch.arange(width) < lengths[:, None],
        "rollout_log_probs": log_probs,
        "truncated": truncated,
    }


def _check_parameters(specs: Sequence[ShardSpec], parameters: dict[str, Tensor]) -> None:
    """Proves that the specs describe just the parameters that there are."""
    described = {spec.name: spec.shape for spec in specs}
    found = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    wrong = sorted(name for name in described.keys() | found.keys() if described.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ReshardError(
            f"vLLM's parameter {name} has shape {found.get(name)} where the shard specs expect {described.get(name)} "
            f"({len(wrong)} parameters differ); this model or kernel layout cannot be written directly"
        )
