"""Rewards, advantages and PPO losses: pure functions on arrays. They know no model and no file."""
