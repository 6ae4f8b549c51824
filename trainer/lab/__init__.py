"""The lab: one frozen rollout, every policy loss, no step.

    saved_rollout.py        finds, loads and checks a rollout that a run saved
    policy_pair.py          the two policies whose ratio is looked at
    comparison.py           norms of gradients and cosines between them
    token_gradients.py      gradients with respect to the log-probs
    weight_curves.py        a token's weight against its ratio
    parameter_gradients.py  gradients with respect to a model's parameters
    lab_files.py            table, CSV files and pictures

``lab.py`` puts it together; docs/lab.md says how it is used.
"""
