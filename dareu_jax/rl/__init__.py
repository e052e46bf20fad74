"""Reinforcement learning: rewards, advantages, losses (pure); learner, guards, selection."""
