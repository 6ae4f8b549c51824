import pytest

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models import model_shape
from trainer.config import model as model_facts
from trainer.config.model import known_config
from workers.config import ModelConfig

# Totals of the safetensors files that Hugging Face shows on the models' pages.
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(path: str, revision: str | None = None) -> dict:
        raise ModelError(f"{path} could not be fetched")

    monkeypatch.setattr(model_facts, "load_hf_config", unreachable)


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_shapes_have_the_published_number_of_parameters(name: str):
    config = known_config(name)
    assert config is not None
    assert model_shape(config).num_parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-Math-7B", "Qwen/Qwen2.5-9B", "meta-llama/Llama-3.1-8B", "Qwen2.5-7B"])
def test_other_models_are_not_known(name: str):
    assert known_config(name) is None


@pytest.mark.usefixtures("offline")
def test_the_table_is_used_only_when_allowed_and_says_so():
    model = ModelConfig(path="Qwen/Qwen2.5-7B")
    facts = model_facts.find_model(model, known_models=True)
    assert facts.shape.num_layers == 28
    assert "built-in table" in facts.source
    with pytest.raises(ModelError):
        model_facts.find_model(model)


@pytest.mark.usefixtures("offline")
def test_a_model_that_nobody_knows_stays_a_mistake():
    with pytest.raises(ModelError, match="someone/else"):
        model_facts.find_model(ModelConfig(path="someone/else"), known_models=True)
