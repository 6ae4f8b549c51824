"""Step 1 of the way of a batch: files of problems become batches of tokenised prompts.

records.py     files -> rows -> problem, ground truth and the rest
order.py       which prompt comes when, also by level, and the seed of each response; pure functions
prompts.py     records -> token ids, through the tokenizer's chat template -> the batches of training
validation.py  the sets of problems to validate on, and the parts of them that have figures of their own
chat.py        the chat template, and what is odd about the prompts that come of it
inspect.py     what is wrong with the files, found without starting anything
"""

from trainer.data.inspect import inspect_files
from trainer.data.prompts import TrainPrompts, run_tokenizer
from trainer.data.validation import ValidationPrompts, load_validation

__all__ = ["TrainPrompts", "ValidationPrompts", "inspect_files", "load_validation", "run_tokenizer"]
