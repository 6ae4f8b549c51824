"""Rewards: what can be told at once of a boxed answer, and everything slower in a pool of killable processes.

    answers.py                    the box, and a verdict where spelling, numbers and units suffice
    notation.py                   one spelling for all notations
    quantity.py                   number, factor words, unit, base, time of day: taken apart and compared
    arithmetic.py, units.py       exact numbers; units, their dimensions and sizes
    grader.py                     a process with math-verify or the user's function in it
    grader_pool.py                starts, feeds, kills and replaces these
    user_function.py              finds the function that a recipe names
    scorers.py, reward_worker.py  responses -> rewards

Nothing here imports torch but ``reward_worker``: the processes of the pool load this package.
"""
