"""The lab: one frozen rollout, every policy loss, no step.

    saved_rollout.py   finds, loads and checks a rollout that a run saved
    gradients.py       gradients with respect to the log-probs: norms, cosines, a token's weight against its ratio
    lab_files.py       table, CSV files and pictures

``lab.py`` chooses the two policies whose ratio is looked at, and puts it together; docs/lab.md says how it is used.
"""
