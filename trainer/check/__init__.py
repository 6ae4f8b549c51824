"""``cfpo check``: the arithmetic, the off-policy pressure and the memory of a run, without starting anything."""
