import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workers.config import ModelConfig

CHARACTERS = "".join(chr(code) for code in range(32, 127)) + "\n"


@pytest.fixture(scope="session")
def model_with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A tokenizer of single characters whose token 0 is the end of text."""
    vocabulary = {"<end>": 0} | {character: number for number, character in enumerate(CHARACTERS, start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    path = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(path)
    return ModelConfig(path=str(path))
