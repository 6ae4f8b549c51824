"""Rewards: the boxed answer, its quick comparison, and everything slower in a pool of killable processes.

Nothing here imports torch but ``reward_worker``: the processes of the pool load this package.
"""
