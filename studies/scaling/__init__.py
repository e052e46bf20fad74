"""How the job scales with the mesh: compiled for devices that need not be there, or run."""
