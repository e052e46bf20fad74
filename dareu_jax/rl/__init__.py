"""Reinforcement learning: rewards, advantages and losses as pure functions; learner, guards, selection."""
