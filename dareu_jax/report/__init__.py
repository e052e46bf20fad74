"""The report room: plain dicts in, tables, figures and report files out; knows no model and no jax."""
