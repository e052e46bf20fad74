"""Learners: DareU (PPO on attribution rewards), and the rule that picks the epoch to keep."""
