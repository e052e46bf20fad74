"""Records of what models answer, metrics computed from them, logs of both, and attacks."""
