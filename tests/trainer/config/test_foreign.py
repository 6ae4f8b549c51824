"""Words of other trainers are answered with ours."""

from pathlib import Path

import pytest

from cfpo_hybrid.algorithms.policy_loss import describe_losses
from trainer.config import Config
from trainer.config.foreign import FOREIGN, FOREIGN_VALUES, trackers
from trainer.config.merge import setting_types
from trainer.rules import read_config
from trainer.rules.values import NAMES
from trainer.tracking import TRACKERS


def answer(folder: Path, word: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text("model: {path: p}\ndata: {train_files: a.jsonl}\npolicy_loss: {name: cfpo}\n")
    (problem,) = read_config(path, [word]).problems
    return problem.message


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("actor.learning_rate=1e-6", "actor.lr=1e-6"),
        ("actor_rollout_ref.actor.optim.lr=1e-6", "actor.lr=1e-6"),
        ("trainer.logger=[console,wandb]", "trainer.trackers=[wandb]"),
        ("report_to=none", "trainer.trackers=[]"),
        ("trainer.test_freq=-1", "trainer.val_every=0"),
        ("trainer.save_freq=20", "trainer.save_every=20"),
        ("algorithm.adv_estimator=grpo_passk", "algorithm.advantage=pass_at_k"),
        ("algorithm.kl_ctrl.kl_coef=0.001", "algorithm.kl_coef=0.001"),
        ("actor.grad_clip=1.0", "actor.optimizer.clip_grad=1.0"),
        ("policy_loss.name=ppo", "policy_loss.name=clip"),
        ("policy_loss.name=Dr-GRPO", "algorithm.loss_aggregation=seq_mean_token_sum_norm"),
        ("policy_loss.clip_ratio=0.2", "policy_loss.clip_low=0.2 policy_loss.clip_high=0.2"),
        ("clip_ratio=0.2", "policy_loss.clip_low=0.2 policy_loss.clip_high=0.2"),
        ("clip_ratio_low=0.1", "policy_loss.clip_low=0.1 (a knob"),
        ("epsilon_high=0.28", "policy_loss.clip_high=0.28"),
        ("n=4", "rollout.group_size=4"),
        ("actor_rollout_ref.rollout.n=8", "rollout.group_size=8"),
        ("num_generations=4", "rollout.group_size=4"),
        ("max_completion_length=512", "data.max_response_length=512"),
        ("beta=0.04", "algorithm.kl_coef=0.04"),
        ("num_iterations=2", "algorithm.iterations=2"),
        ("loss_type=dr_grpo", "algorithm.loss_aggregation=seq_mean_token_sum_norm"),
        ("scale_rewards=false", "algorithm.advantage=grpo_no_std"),
        (
            "actor_rollout_ref.actor.ppo_mini_batch_size=64",
            "algorithm.batch_ratio (data.train_batch_size divided by it)",
        ),
        ("per_device_train_batch_size=8", "data.train_batch_size and algorithm.batch_ratio"),
        ("max_steps=100", "trainer.total_steps (counted in rollout steps, in TRL in optimizer steps)"),
        ("trainer.total_epochs=2", "trainer.total_steps (rollout steps: epochs x problems / data.train_batch_size)"),
        ("trainer.n_gpus_per_node=8", "trainer.workers_per_node=8"),
        ("trainer.nnodes=2", "trainer.nodes=2"),
        ("trainer.default_local_dir=1e3", "trainer.run_dir=1e3"),
        ("trainer.experiment_name=x", "trainer.run_name=x (for trackers; the folder is trainer.run_dir)"),
        ("actor_rollout_ref={rollout: {n: 4}}", "'actor_rollout_ref.rollout.n': here it is rollout.group_size=4"),
        ("critic.optim.lr=1e-5", "there is no critic"),
        ("actor_rollout_ref.rollout.name=vllm", "vLLM always generates; leave it out"),
        ("actor_rollout_ref.rollout.temperature=1.0", "did you mean rollout.temperature?"),
    ],
)
def test_the_answer(tmp_path: Path, word: str, ours: str):
    assert ours in answer(tmp_path, word)


def test_every_tracker_is_carried_over():
    assert trackers(["console", *TRACKERS.names()]) == list(TRACKERS.names())


def test_every_answer_exists():
    knobs = {f"policy_loss.{name}" for loss in describe_losses() for name, *_ in loss.knobs}
    known = setting_types(Config).keys() | knobs
    assert [row.words for row in FOREIGN if not known.issuperset(row.keys)] == []
    for key, names in FOREIGN_VALUES.items():
        allowed = {loss.name for loss in describe_losses()} if key == "policy_loss.name" else set(NAMES[key])
        assert {ours for ours, _ in names.values()} <= allowed
        assert not names.keys() & allowed


def test_every_word_stands_once_in_order_and_is_none_of_ours():
    words = [word for row in FOREIGN for word in row.words]
    assert len(words) == len(set(words))
    assert all(list(row.words) == sorted(row.words) for row in FOREIGN)
    assert not set(words) & setting_types(Config).keys()
    assert all(row.keys or row.note for row in FOREIGN)
    assert all(list(names) == sorted(names) for names in FOREIGN_VALUES.values())
