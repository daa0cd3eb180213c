"""Rewards: pure functions of (sample, completion, think-format), found by name in the plain dict REWARDS.

A recipe names them (`grpo.rewards`) with weights and a format gate; `Rewards` composes them (see compose). `answer`
is what we train with: it verifies the answer part and pays only for a well-formed completion, so that nothing cheaper
than a right answer earns it.
"""

from danlu.rewards.compose import FORM, REWARDS, Reward, Rewards, Scored, score_all

__all__ = ["FORM", "REWARDS", "Reward", "Rewards", "Scored", "score_all"]
