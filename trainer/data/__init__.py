"""Step 1 of the way of a batch: files of problems become batches of tokenised prompts.

source.py      a file or Hugging Face data set -> rows
records.py     rows -> problem, ground truth and the rest
chat.py        problems -> token ids, through the tokenizer's chat template
order.py       which prompt comes when, and the seed of each response; pure functions
curriculum.py  orders that go by the level of a problem
prompts.py     the batches of training and validation
inspect.py     what is wrong with the files, found without starting anything
"""

from trainer.data.chat import open_tokenizer
from trainer.data.inspect import inspect_files
from trainer.data.prompts import TrainPrompts, ValidationPrompts, load_validation

__all__ = ["TrainPrompts", "ValidationPrompts", "inspect_files", "load_validation", "open_tokenizer"]
