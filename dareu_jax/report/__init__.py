"""Reports: plain dicts in; tables, plots and files out. Independent of models and jax."""
