# Sourced by the launchers, after they have set `size` (1.5b, 3b, 7b) and `loss`: sets here, variant, model and loss_words.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
variant=${VARIANT:-base}
# The installation beside these files goes before one in PATH; CFPO names another command.
if [ -x "$here/../../.venv/bin/cfpo" ]; then PATH="$here/../../.venv/bin:$PATH"; fi

case "$size" in
  1.5b) model=Qwen/Qwen2.5-1.5B ;;
  3b) model=Qwen/Qwen2.5-3B ;;
  7b) model=Qwen/Qwen2.5-7B ;;
  *) echo "SIZE=$size is unknown; use 1.5b, 3b or 7b" >&2; exit 2 ;;
esac
case "$variant" in
  base) ;;
  instruct) model=$model-Instruct ;;
  *) echo "VARIANT=$variant is unknown; use base or instruct" >&2; exit 2 ;;
esac

# The paper's clip ratio is 0.2 [table 3]; dual clip's lower bound 3 is that of Ye et al. 2020.
case "$loss" in
  cfpo) knobs=(policy_loss.epsilon=0.2) ;;
  clip) knobs=(policy_loss.clip_low=0.2 policy_loss.clip_high=0.2) ;;
  dual_clip) knobs=(policy_loss.clip_low=0.2 policy_loss.clip_high=0.2 policy_loss.dual_clip=3.0) ;;
  *) knobs=() ;;
esac
loss_words=(policy_loss.name="$loss" ${knobs[@]+"${knobs[@]}"})
